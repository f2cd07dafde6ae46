"""Writing files so that a crash, at any instant, leaves the old file or the new one, and never a part.

A link is followed before anything is written: it stays, and what it leads to is replaced. Two processes must not write
one file at the same time: `storage.write_lock` is for that. Values from files that anyone may have made are checked to
be plain, and few (`check_plain`). Must not import torch: the token cache is written through this too.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from vqgpt.errors import InputError, MissingDataError

PARTIAL_SUFFIX = ".partial"
BLOCK = 2**16  # bytes
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MOST_VALUES = 2**22
DEEPEST = 64
LARGEST_NUMBER = 128  # bits


class SpecialFileError(InputError):
    """In place of a file there is a FIFO, a device or a socket: reading it could wait, or never end."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a pipe, a device or a socket, and was not read", "put a plain file there, or give another path"
        )


class TooLargeError(Exception):
    """A file has `size` bytes, more than were expected, and was not read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def open_regular(path: Path) -> BufferedReader:
    """Open a file of a stranger to read. A link is followed, and nothing is ever waited for.

    Raises OSError as `open` does, and SpecialFileError for what is neither a file nor a folder, which is not opened.
    """
    if not _is_regular(os.stat(path), path):
        raise SpecialFileError(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not _is_regular(os.fstat(descriptor), path):  # it was replaced in between
            raise SpecialFileError(path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a file, as many as it has when it is opened. Nothing is waited for.

    Raises what `open_regular` raises, and InputError if it has more than `most`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path} has {size:,} bytes, and may have at most {most:,}", "give another file")
        return file.read(size) or b""


def check_is_not_special(path: Path) -> None:
    """Raise SpecialFileError if there is something that is neither a file nor a folder."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SpecialFileError(path)


def _is_regular(status: os.stat_result, path: Path) -> bool:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return stat.S_ISREG(status.st_mode)


def user_cache_folder() -> Path:
    """Where the user keeps what can be fetched or made again. Raises RuntimeError if no home is known."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vqgpt"


def place_of(path: Path) -> Path:
    """Where that lies which is written to `path`, be it there or not: a link is followed to its end.

    Raises InputError if links lead in a circle, and MissingDataError if one leads into a folder that is not there, as
    on a disk that is not mounted: no folders are made at the other end of a link.
    """
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            end = Path(os.path.realpath(part))
            if _leads_in_a_circle(part):
                raise InputError(f"{part} is a link that leads in a circle", "delete it, or give another path")
            if not end.parent.is_dir():
                raise MissingDataError(
                    f"{part} is a link to {end}, and there is no folder {end.parent}",
                    "make or mount that folder, or give another path",
                )
            return Path(os.path.realpath(path))
    if path.is_symlink() or path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return path


def _leads_in_a_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, flush it to disk, then rename; make missing folders.

    Raises OSError (disk full, not writable), and InputError if `path` is no file, or what `place_of` raises; then
    `path` is as it was and the temporary file is gone.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """The same for what does not fit into memory: a file to write, which is `path` once the block has ended well."""
    place = place_of(path)
    if place.exists() and not place.is_file():
        raise InputError(f"{path} is not a file", "give another path")
    make_folder(place.parent)
    temporary = partial_path(place)
    if os.path.lexists(temporary):  # of a killed run; or it is a link, or a pipe
        temporary.unlink()
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            error.filename = error.filename or str(path)  # Python does not tell which file it could not write to
        raise
    fsync_folder(place.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; make missing folders. A last line that a crash tore is dropped first.

    Raises OSError (disk full); then the file is as it was. Only one process may do this at a time.
    """
    make_folder(path.parent)
    with open(path, "ab+") as file:
        end = _end_of_lines(file)
        file.truncate(end)
        try:
            file.write(line.encode() + b"\n")
            file.flush()
        except OSError as error:
            os.truncate(path, end)
            error.filename = error.filename or str(path)
            raise


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line of a file ends, in bytes."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """The same for a folder: one to fill, which takes the place of what is at `path` once the block has ended well."""
    place = place_of(path)
    if place.is_mount():
        raise InputError(f"{path} is where a disk is mounted, and cannot be replaced", "give a folder in it")
    if place.exists() and place.samefile(os.curdir):  # whoever works there would be left in one that is gone
        raise InputError(f"{path} is the current folder, and cannot be replaced", "give a folder in it")
    make_folder(place.parent)
    temporary, old = partial_path(place), place.with_name(f".{place.name}.old")
    if old.exists() and not place.exists():  # a run was killed between the two renames
        os.replace(old, place)
    for leftover in (temporary, old):
        remove(leftover)
    try:
        make_folder(temporary)
        yield temporary
        fsync_folder(temporary)
        if place.exists():
            os.replace(place, old)
        os.replace(temporary, place)
    except BaseException:
        remove(temporary)
        if old.exists() and not place.exists():
            os.replace(old, place)
        raise
    fsync_folder(place.parent)
    remove(old)


def partial_path(path: Path) -> Path:
    """Where a file or folder lies while it is not whole."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def remove(path: Path) -> None:
    """Delete a file or folder of ours, if it is there; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise OSError now, not after hours of work, if files cannot be written in a folder, be it there yet or not.

    The file that is tried has no name, or one that nobody else takes, and is gone when this returns.
    """
    place = place_of(folder)
    there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there, prefix=".", suffix=PARTIAL_SUFFIX):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def check_can_be_written(path: Path) -> None:
    """Raise what `check_writable` raises if a file or folder cannot be written to `path`, or be locked there."""
    check_writable(place_of(path).parent)


def is_vacant(path: Path) -> bool:
    """True if there is nothing, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def links_below(folder: Path) -> list[Path]:
    """The links in a folder and its folders, which are not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink())


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and flush their names to disk. Raises OSError, also if it is a file."""
    if not folder.is_dir():
        if folder.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, which makes a rename in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy_after_a_kill(folder: Path) -> None:
    """Delete temporary files and empty folders of a killed process below `folder`, and flush its folders to disk."""
    for leftover in folder.rglob(f".*{PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    for inner in sorted(folder.rglob("*/"), reverse=True):  # the deepest first
        if inner.is_dir() and not any(inner.iterdir()):
            inner.rmdir()
    for inner in (folder.parent, folder, *folder.rglob("*/")):
        if inner.is_dir():
            fsync_folder(inner)


def sha256(data: bytes) -> str:
    """The SHA-256 digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and fixed white space: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def check_plain(content: Any) -> None:
    """Raise ValueError, saying what there is, for more values, or deeper ones, than a checkpoint or a manifest has.

    Also for numbers that do not fit elsewhere, and for strings that cannot be written as UTF-8.
    """
    _measure(content, 0, {})


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values there are, and how many levels. `known` are the containers that were met, by identity."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("text that is no Unicode") from None
    elif isinstance(value, int) and value.bit_length() > LARGEST_NUMBER:
        raise ValueError(f"a number of {value.bit_length()} bits")
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    if id(value) not in known:
        inner, values, levels = depth + 1, 1, 0
        if inner > DEEPEST:
            raise ValueError(f"more than {DEEPEST} values inside one another")
        if isinstance(value, dict):
            for key in value:
                _measure(key, inner, known)
        for element in value.values() if isinstance(value, dict) else value:
            of_element = _measure(element, inner, known)
            values, levels = values + of_element[0], max(levels, of_element[1])
        known[id(value)] = values, levels + 1
    values, levels = known[id(value)]
    if values > MOST_VALUES or depth + levels > DEEPEST:
        raise ValueError(f"more than {MOST_VALUES} values, or {DEEPEST} of them inside one another")
    return values, levels
