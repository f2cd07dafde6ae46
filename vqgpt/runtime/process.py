"""Keeping memory pages between steps, on Linux with glibc; and limits that are too low.

Must not import torch: it acts before torch allocates.

How this process was started: alone, or by torchrun as one of several, which tells it by variables.

Must not import torch.

What the machine had too little of when something failed: disk, memory, open files, threads.

Must not import torch: without memory for that, it could not tell.
"""

import ctypes
import errno
import os
import platform
import re
import resource
import socket
import time

from vqgpt.errors import ResourceError, UsageError
from vqgpt.storage.files import DISK_FULL

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
NEVER = 2**31 - 1
TORCH_NEEDS = 2**30  # bytes of addresses, to load it and its libraries
SECONDS_TO_RESOLVE = 60.0  # a cluster may make the name known while its processes start
REMEDY = "unset it to run alone, or start several processes with torchrun"
NO_MEMORY = ("not enough memory", "allocate memory", "failed to map segment", "out of memory")  # in what systems say
NO_THREAD = "can't start new thread"


def keep_memory_pages() -> bool:
    """Tell glibc's allocator to keep what is freed; True if it will.

    By default it returns each large block to the kernel at once, and every step of a network on a CPU then waits for
    the same pages to be mapped and zeroed again. All threads share one heap: what one frees, another can use, and the
    heaps that glibc gives to further threads would shrink again. Elsewhere (macOS, musl) this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_ARENA_MAX, 1))


def low_limit() -> str:
    """What to say of a limit of this process's memory that is too low for torch, "" if there is none.

    Its libraries end the process by themselves then, with words of their own.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= TORCH_NEEDS:
        return ""
    return f"memory is limited to {limit // 2**20:,} MiB (`ulimit -v`), and torch needs about {TORCH_NEEDS // 2**20:,}"


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


def out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed, on a CPU or a GPU, or a library found no room to be loaded."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)


def shortage(error: BaseException) -> ResourceError | None:
    """What ran out, for users; None if `error` is something else."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number in DISK_FULL:
        return ResourceError(
            f"no space left to write {error.filename or 'the file'}", "make room, then run the same command again"
        )
    if isinstance(error, OSError) and number in (errno.EMFILE, errno.ENFILE):
        return ResourceError(
            f"too many open files, at {error.filename or 'the next one'}",
            "allow more (`ulimit -n 1024`), then run the same command again",
        )
    if number == errno.EAGAIN or NO_THREAD in str(error):
        return ResourceError(
            "no more threads or processes can be started", "allow more (`ulimit -u`, `ulimit -v`), or stop others"
        )
    if out_of_memory(error):
        return ResourceError(
            "out of memory",
            "use smaller settings (--batch-size, --size), a larger machine, or a higher limit (`ulimit -v`)",
        )
    return None
