"""The files of a token cache in a folder: temporary name, fsync, rename. Must not import torch.

The folder may be a link; files and folders in it may be links for readers alone.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from vqgpt.errors import InputError
from vqgpt.storage.files import check_writable, links_below, open_regular, place_of, tidy_after_a_kill, write_atomically


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
