"""The members of an uncompressed tar file, be it of V7, ustar, pax or GNU tar. Nothing in the file is trusted.

Python's `tarfile` is sent backwards by a negative size, for ever, recurses into names of names, and searches a long pax
header for hours. Here each header is read once, from front to back, and all that one claims is bounded.
"""

from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

BLOCK = 512  # bytes; headers and contents begin at multiples of it
LONGEST_EXTENSION = 2**20  # bytes of what comes before a header: long names, pax records
LONGEST_PATH = 4096  # bytes, as Linux has it
LARGEST_SIZE = 2**63 - 1
CHECKSUM = slice(148, 156)
PAX_KEYS = ("path", "linkpath", "size")  # pax records that matter here
SPARSE = "GNU.sparse."  # with pax records that begin so, a file's bytes are not stored as they are

Kind = Literal["file", "folder", "link", "hard link", "other"]
KINDS: dict[bytes, Kind] = {b"0": "file", b"\0": "file", b"7": "file", b"1": "hard link", b"2": "link", b"5": "folder"}
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")


class DamagedTarError(Exception):
    """It is no tar file, or claims what cannot be; the text says what."""


class Member(NamedTuple):
    """One member: `size` bytes at `start` of the file, if it is a file; `target` is the path that a link is."""

    name: str
    kind: Kind
    target: str
    start: int
    size: int


def is_tar(header: bytes) -> bool:
    """True if a file that begins with these 512 bytes is a tar file, or is empty as one."""
    return len(header) == BLOCK and (not any(header) or _has_its_checksum(header))


def tar_members(file: BinaryIO, start: int, stop: int) -> Iterator[Member]:
    """The members of a tar file that lies at these bytes of a file. Raises DamagedTarError."""
    of_all: dict[str, str] = {}
    of_next: dict[str, str] = {}
    position = start
    while position < stop:
        file.seek(position)
        header = file.read(min(BLOCK, stop - position))
        if not is_tar(header):
            raise DamagedTarError(f"there is no header at byte {position}")
        if not any(header):
            return
        kind, size, content = header[156:157], _number(header[124:136]), position + BLOCK
        if kind in b"xXgLK":
            data = _extension(file, size, stop - content)
            if kind == b"g":
                of_all |= _pax_records(data)
            else:
                of_next |= (
                    _pax_records(data) if kind in b"xX" else {"path" if kind == b"L" else "linkpath": _text(data)}
                )
            position = content + _whole_blocks(size)
            continue
        overrides = of_all | of_next
        of_next = {}
        name, target = overrides.get("path") or _name(header), overrides.get("linkpath") or _text(header[157:257])
        if max(len(name), len(target)) > LONGEST_PATH:
            raise DamagedTarError(f"there is a name of {max(len(name), len(target))} characters")
        if "size" in overrides:
            size = _decimal(overrides["size"].encode())
        is_folder = kind in (b"0", b"\0") and name.endswith("/")  # as V7 has them
        what = "folder" if is_folder else "other" if SPARSE in overrides else KINDS.get(kind, "other")
        yield Member(name.rstrip("/") if what == "folder" else name, what, target, content, size)
        position = content + (0 if kind in WITHOUT_CONTENT else _whole_blocks(size))


def _has_its_checksum(header: bytes) -> bool:
    try:
        expected = _number(header[CHECKSUM])
    except DamagedTarError:
        return False
    rest = header[: CHECKSUM.start] + header[CHECKSUM.stop :]
    signed = sum(rest) - 256 * sum(byte > 127 for byte in rest)  # as some old programs add
    return expected - 8 * ord(" ") in (sum(rest), signed)


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or to the base of 256."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
    else:
        digits = field.partition(b"\0")[0].strip() or b"0"
        if not all(digit in b"01234567" for digit in digits):
            raise DamagedTarError(f"{field!r} is no number")
        number = int(digits, 8)
    if number > LARGEST_SIZE:
        raise DamagedTarError(f"there is a number of {number.bit_length()} bits")
    return number


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > len(str(LARGEST_SIZE)) or int(digits) > LARGEST_SIZE:
        raise DamagedTarError(f"{digits[:30]!r} is no size")
    return int(digits)


def _extension(file: BinaryIO, size: int, most: int) -> bytes:
    """What comes next, before a header."""
    if size > min(LONGEST_EXTENSION, most):
        raise DamagedTarError(f"there is a header of {size} bytes")
    return file.read(size)


def _pax_records(data: bytes) -> dict[str, str]:
    """Those of the records `LENGTH KEY=VALUE` that matter, by key; SPARSE if the key of one begins so."""
    records: dict[str, str] = {}
    position = 0
    while position < len(data) and data[position]:
        space = data.find(b" ", position, position + len(str(LONGEST_EXTENSION)) + 1)
        stop = position + (_decimal(data[position:space]) if space >= 0 else 0)
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if stop <= space or data[stop - 1 : stop] != b"\n" or not equals:
            raise DamagedTarError("there is a pax record that is none")
        if key.startswith(SPARSE.encode()):
            records[SPARSE] = ""
        elif (name := key.decode("utf-8", "replace")) in PAX_KEYS:
            records[name] = value.decode("utf-8", "surrogateescape")
        position = stop
    return records


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
