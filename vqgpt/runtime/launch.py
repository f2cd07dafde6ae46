"""How this process was started: alone, or by torchrun as one of several, which tells it by variables.

Must not import torch.
"""

import os
import re
import socket
import time

from vqgpt.errors import UsageError

SECONDS_TO_RESOLVE = 60.0  # a cluster may make the name known while its processes start
REMEDY = "unset it to run alone, or start several processes with torchrun"


def processes() -> int:
    """How many processes do the work together. Raises UsageError if WORLD_SIZE is no such number."""
    return _number("WORLD_SIZE", alone=1, lowest=1)


def process_rank() -> int:
    """Which of them this is, from 0. Raises UsageError if RANK is no such number, or if they cannot find each other."""
    together = processes()
    rank = _number("RANK", alone=None if together > 1 else 0)
    if rank >= together:
        size = f"WORLD_SIZE={together}" if "WORLD_SIZE" in os.environ else "WORLD_SIZE is not set"
        raise UsageError(f"RANK={rank} is too high: {size}", REMEDY)
    if together > 1:
        if not os.environ.get("MASTER_ADDR"):
            raise UsageError(f"WORLD_SIZE={together}, and MASTER_ADDR is not set", REMEDY)
        if _number("MASTER_PORT", alone=None) >= 2**16:
            raise UsageError(f"MASTER_PORT={os.environ['MASTER_PORT']} is not a port", REMEDY)
    return rank


def wait_for_address() -> None:
    """Return once MASTER_ADDR can be resolved; torch would try for as long as processes wait for each other.

    Raises UsageError if it cannot be in a minute.
    """
    address, end = os.environ["MASTER_ADDR"], time.monotonic() + SECONDS_TO_RESOLVE
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= end:
                raise UsageError(
                    f"MASTER_ADDR={address} cannot be resolved ({error})", "check the name, or use torchrun"
                ) from None
        time.sleep(min(1.0, SECONDS_TO_RESOLVE))


def device_number(devices: int) -> int:
    """Which of the devices of this machine is for this process. Raises UsageError if LOCAL_RANK tells none of them."""
    number = _number("LOCAL_RANK", alone=None)
    if number >= devices:
        raise UsageError(f"LOCAL_RANK={number}, and this machine has {devices} devices", "start fewer processes here")
    return number


def _number(name: str, alone: int | None, lowest: int = 0) -> int:
    """A variable's number; `alone` where it is not set, and None there means that it is needed."""
    text = os.environ.get(name)
    if text is None and alone is not None:
        return alone
    if text is None:
        raise UsageError(f"WORLD_SIZE={processes()}, and {name} is not set", REMEDY)
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < lowest:
        raise UsageError(f"{name}={text} is not a whole number of {lowest} or more", REMEDY)
    return int(text)
