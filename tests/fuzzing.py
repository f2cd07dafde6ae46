"""What the tests that change files at random share: how long they run, how files are changed, what no reader may do.

`FUZZ_SECONDS` is how long each test runs, `FUZZ_SEED` what it begins with. The path of a file that fails is told.
"""

import functools
import os
import random
import re
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqgpt.errors import InputError, MissingDataError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.4"))  # for each test
SEED = int(os.environ.get("FUZZ_SEED", "0"))
FEWEST = 20  # files of each test
SLOWEST = 20  # seconds for a file, on a busy machine
MOST_MEMORY = 2**29  # bytes beyond what was in use
REFUSED = "refused"

Change = Callable[[bytes, random.Random], bytes]


class TooSlow(BaseException):
    """A file took too long: no reader takes this for a fault of the file."""


def fuzz(
    name: str,
    bad: Path,
    data: bytes,
    changes: Sequence[Change],
    read: Callable[[Change], str],
    named: Path | None = None,
    fewest: int = FEWEST,
) -> Counter[str]:
    """Write changed `data` to `bad` until the time is over. How many files were refused, or what `read` says they were.

    `read` is told the change. What it raises must be InputError or MissingDataError, and name the file, or `named` that
    it belongs to; it must be quick, take little memory, and leave no file behind.
    """
    chance = random.Random(f"{SEED} {name}")
    outcomes: Counter[str] = Counter()
    files = {*bad.parent.rglob("*"), bad}
    usual = signal.signal(signal.SIGALRM, too_slow)
    start = time.monotonic()
    try:
        while outcomes.total() < fewest or time.monotonic() < start + SECONDS:
            change = chance.choice(changes)
            bad.write_bytes(change(data, chance))
            before, said = peak_memory(), str(named or bad)
            signal.alarm(SLOWEST)
            try:
                outcome = read(change)
            except (InputError, MissingDataError) as error:
                outcome, said = REFUSED, error.message
            finally:
                signal.alarm(0)
            outcomes[outcome] += 1
            assert str(named or bad) in said, said
            assert peak_memory() - before < MOST_MEMORY
        assert {*bad.parent.rglob("*")} == files
    except BaseException:
        print(f"the file is {bad}, of FUZZ_SEED={SEED}")
        raise
    finally:
        signal.signal(signal.SIGALRM, usual)
    print(f"{name}: {outcomes.total() / (time.monotonic() - start):.0f} files a second, {dict(outcomes)}")
    return outcomes


def too_slow(*_: Any) -> None:
    raise TooSlow(SLOWEST)


def peak_memory() -> int:
    """The most bytes that this process had in memory at any time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, cut out, put in or repeated, often near either end, where the tables are."""
    for _ in range(chance.choice([1, 1, 2, 8])):
        reach = chance.choice([len(data), min(len(data), 2_000), min(len(data), 200)])
        start = chance.randrange(reach + 1)
        start = chance.choice([start, len(data) - start])
        length = chance.choice([0, 1, 1, 4, 8, 100])
        piece = chance.choice(
            [chance.randbytes(length), b"\xff" * length, bytes(length), data[start : start + length] * 2, b""]
        )
        kept = chance.choice([len(piece), length])
        data = data[:start] + piece + data[start + kept :]
    return data


ODD_NUMBERS = [-1, 0, 1, 2**16, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 0.5, float("nan"), 1e308]
ODD_VALUES = [
    *ODD_NUMBERS,
    None,
    True,
    "",
    "..",
    "../../x",
    "/tmp/x",
    "\ud800",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": {}},
    "x" * 9_999,
    ["x"] * 9_999,
    functools.reduce(lambda inner, _: [inner], range(100), []),
]


def changed_values(content: Any, chance: random.Random) -> Any:
    """A copy of nested dicts and lists but for one value, which is another, gone, elsewhere, or there twice.

    What is neither of the two, as a tensor, is kept as it is.
    """
    content = copied(content)
    place, node = content, content
    while isinstance(node, dict | list) and node and chance.random() < 0.9:
        place, key = node, chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    if place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key, other = chance.choice(keys), chance.choice(keys)
        act = chance.random()
        if act < 0.1:
            del place[key]
        elif act < 0.2:
            place[key], place[other] = place[other], place[key]
        elif act < 0.3 and isinstance(place, list):
            place.insert(key, place[key])
        elif act < 0.3:
            place[chance.choice(["", "x", "1", "-1", "../x", "\ud800", f"{key}."])] = place.pop(key)
        elif act < 0.6:
            place[key] = near(place[key], chance)
        else:
            place[key] = chance.choice(ODD_VALUES)
    return content


def near(value: Any, chance: random.Random) -> Any:
    """A value of the same kind that can hardly be told from a true one, or of a kind that is often taken for it."""
    if isinstance(value, bool | None):
        return chance.choice([True, False, 0, 1])
    if isinstance(value, int | float):
        return chance.choice([value + 1, value - 1, value * 2, -value, value * 10**6, str(value), [value]])
    if isinstance(value, str):
        return chance.choice([value * 2, value[:-1], value.upper(), f"{value}\n", f"{value}\0", [value], list(value)])
    if isinstance(value, list):
        return chance.choice([value[::-1], value * 2, value[:1] * 1_000, [value], dict(enumerate(map(str, value)))])
    return [value]


def copied(node: Any) -> Any:
    """Nested dicts and lists anew, with the same values in them."""
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list | tuple) else node


ZIP_RECORDS = {  # how each kind begins, and its fields
    b"PK\x03\x04": "<4s5H3L2H",  # before a member
    b"PK\x01\x02": "<4s6H3L5H2L",  # a member, in the directory
    b"PK\x05\x06": "<4s4H2LH",  # the end
    b"PK\x06\x06": "<4sQ2H2L4Q",  # the end, of 64 bits
    b"PK\x06\x07": "<4sLQL",  # where that lies
}
BYTES_OF = {"H": 2, "L": 4, "Q": 8}


def changed_directory(data: bytes, chance: random.Random) -> bytes:
    """A zip archive with other numbers in its directory, before its members or at its end, of 32 bits or 64."""
    end = data.rfind(b"PK\x05\x06")
    if end >= 0 and chance.random() < 0.2:
        of_64_bits = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *end_of_64_bits(data, end))
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
        few = struct.pack("<4s4H2L", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1)
        data = data[:end] + of_64_bits + locator + few + data[end + len(few) :]
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        mark = chance.choice(list(ZIP_RECORDS))
        places = [found.start() for found in re.finditer(re.escape(mark), data)]
        if places:
            data = with_another_number(data, chance.choice(places), ZIP_RECORDS[mark], chance)
    return data


def end_of_64_bits(data: bytes, end: int) -> tuple[int, int, int, int]:
    """What the end of an archive tells: how many members there are (twice), bytes of the directory, its place."""
    _, _, _, here, all_of_them, size, place, _ = struct.unpack_from(ZIP_RECORDS[b"PK\x05\x06"], data, end)
    return here, all_of_them, size, place


def with_another_number(data: bytes, start: int, layout: str, chance: random.Random) -> bytes:
    """Bytes in which one field of a record that begins at `start` has another value."""
    if start + struct.calcsize(layout) > len(data):
        return data
    fields = list(struct.unpack_from(layout, data, start))
    widths = [BYTES_OF[kind] for kind, times in parsed(layout) for _ in range(times)]
    number = chance.randrange(len(widths))
    most = 256 ** widths[number] - 1
    old = fields[number + 1]
    odd = [0, 1, most, most - 1, most // 2, old + 1, old - 1, old * 2, old ^ 1 << chance.randrange(8 * widths[number])]
    fields[number + 1] = chance.choice([*odd, len(data), chance.randrange(len(data))]) & most
    return data[:start] + struct.pack(layout, *fields) + data[start + struct.calcsize(layout) :]


def parsed(layout: str) -> list[tuple[str, int]]:
    """The kinds of numbers in a layout of `struct` that begins with a mark of 4 bytes, each with how many there are."""
    found, times = [], ""
    for char in layout.removeprefix("<4s"):
        if char.isdigit():
            times += char
        else:
            found.append((char, int(times or 1)))
            times = ""
    return found
