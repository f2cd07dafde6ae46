"""Writing files so that a crash, at any instant, leaves the old file or the new one, and never a part.

Must not import torch: the token cache is written through this too.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".partial"
BLOCK = 2**16  # bytes
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def user_cache_folder() -> Path:
    """Where the user keeps what can be fetched or made again. Raises RuntimeError if no home is known."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqgpt"


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, flush it to disk, then rename; make missing folders.

    Raises OSError (disk full, not writable); then `path` is as it was and the temporary file is gone.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """The same for what does not fit into memory: a file to write, which is `path` once the block has ended well."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            error.filename = error.filename or str(path)  # Python does not tell which file it could not write to
        raise
    fsync_folder(path.parent)


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
    make_folder(path.parent)
    temporary, old = (path.with_name(f".{path.name}{suffix}") for suffix in (PARTIAL_SUFFIX, ".old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    make_folder(temporary)
    try:
        yield temporary
        fsync_folder(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and raise OSError now, not after hours of work, if files cannot be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / f".trial{PARTIAL_SUFFIX}"
    trial.touch()
    trial.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and flush their names to disk."""
    if not folder.is_dir():
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
    """Delete the temporary files of a killed process below `folder`, and flush the folders it made there to disk."""
    for leftover in folder.rglob(f".*{PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    for inner in (folder.parent, folder, *folder.rglob("*/")):
        if inner.is_dir():
            fsync_folder(inner)


def sha256(data: bytes) -> str:
    """The SHA-256 digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and fixed white space: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
