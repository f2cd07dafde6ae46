"""Where the files of a token cache lie, and who may write them: `Store`, in a folder or on an object store.

A key is the path of a file below the cache. In a folder, a file is written under a temporary name, flushed and renamed;
the folder may be a link, files and folders in it may be links for readers alone. Must not import torch.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vqgpt.errors import InputError
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report, silent
from vqgpt.storage.files import (
    check_can_be_written,
    check_writable,
    links_below,
    open_regular,
    place_of,
    tidy_after_a_kill,
    write_atomically,
)
from vqgpt.storage.write_lock import WriteLock

if TYPE_CHECKING:
    from vqgpt.tokens.lease import Lease


class Store(Protocol):
    """The files of one token cache. Each appears as a whole, or not at all."""

    @property
    def threads(self) -> int:
        """How many files to read at the same time."""

    def exists(self) -> bool:
        """True if anything is there."""

    def read(self, key: str, most_bytes: int) -> bytes:
        """A file. Raises FileNotFoundError or, unread, IsADirectoryError, SpecialFileError or TooLargeError."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """The bytes of those files that are there."""

    def files(self) -> dict[str, int]:
        """Every file with its bytes, whoever put it there. Raises InputError if the place can hold none."""

    def check_can_write(self) -> None:
        """Raise OSError if no file can be written there."""

    def check_no_links(self) -> None:
        """Raise InputError if a file or folder there is a link to another place; to be called before a change."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file, or replace it; once this returns, it is durable."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files."""

    def clear(self) -> None:
        """Delete everything."""

    def tidy(self) -> None:
        """Clear away what a killed process left half-done, and make durable what it wrote."""


def may_always_write() -> None:
    """The check of a run whose place no other takes."""


def store_at(path: CachePath, check_may_write: Callable[[], None] = may_always_write) -> Store:
    """The files of the cache at `path`. Raises what `ObjectStore` raises if that is an address.

    `check_may_write` raises an error if another run writes the cache now; a change may raise it on an object store.
    """
    if isinstance(path, Path):
        return FolderStore(path)
    from vqgpt.tokens.object_store import ObjectStore

    return ObjectStore(path, check_may_write=check_may_write)


def check_can_lie_at(path: CachePath) -> None:
    """Raise OSError or InputError now, not after hours of work, if there can be no cache in a folder at `path`."""
    if isinstance(path, Path):
        check_can_be_written(path)


def lock_of(path: CachePath, run: str = "", report: Report = silent) -> "WriteLock | Lease":
    """The right to write the cache at `path`: `WriteLock` in a folder, `Lease` on an object store.

    `run` is a name that the processes of one run have in common, and no other run has. `report` is told of a wait.
    """
    if isinstance(path, Path):
        return WriteLock(path, run)
    from vqgpt.tokens.lease import Lease

    return Lease(path, run, report)


class TooLargeError(Exception):
    """A file has `size` bytes, more than were expected, and was not read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class FolderStore:
    """A `Store` in the folder `path`, which need not exist. Files raise OSError where the disk does."""

    threads = min(8, os.cpu_count() or 1)  # hashing and decompressing leave Python to the others

    def __init__(self, path: Path) -> None:
        """Raises what `place_of` raises."""
        self.path = place_of(path)

    def exists(self) -> bool:
        """True if anything is there, a file in its place included."""
        return self.path.exists()

    def read(self, key: str, most_bytes: int) -> bytes:
        """See `Store`."""
        try:
            with open_regular(self.path / key) as file:
                size = os.fstat(file.fileno()).st_size
                data = b"" if size > most_bytes else file.read(size + 1) or b""
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None
        if size > most_bytes or len(data) > most_bytes:
            raise TooLargeError(max(size, len(data)))
        return data

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """See `Store`."""
        sizes = {}
        for key in keys:
            try:
                sizes[key] = (self.path / key).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                continue
        return sizes

    def files(self) -> dict[str, int]:
        """See `Store`; links are not followed."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder", "give another path")
        files = [file for file in self.path.rglob("*") if file.is_symlink() or not file.is_dir()]
        return {file.relative_to(self.path).as_posix(): file.lstat().st_size for file in files}

    def check_can_write(self) -> None:
        """See `Store`."""
        check_writable(self.path)

    def check_no_links(self) -> None:
        """See `Store`."""
        for link in links_below(self.path):
            raise InputError(
                f"{link} is a link: inside a cache, nothing is written or deleted through one",
                "put what it leads to in its place, or give another path",
            )

    def write(self, key: str, data: bytes) -> None:
        """See `Store`."""
        write_atomically(self.path / key, data)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store`."""
        for key in keys:
            (self.path / key).unlink()

    def clear(self) -> None:
        """See `Store`."""
        shutil.rmtree(self.path)

    def tidy(self) -> None:
        """See `Store`."""
        if self.path.exists():
            tidy_after_a_kill(self.path)
