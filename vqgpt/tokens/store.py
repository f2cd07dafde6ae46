"""Where the files of a token cache lie: what the cache needs of a folder, or of an object store, and nothing more.

A key is the path of a file below the cache. Must not import torch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from vqgpt.config.cache_path import CachePath
from vqgpt.tokens.folder_store import FolderStore


class Store(Protocol):
    """The files of one token cache. Each appears as a whole, or not at all."""

    @property
    def threads(self) -> int:
        """How many files to read at the same time."""

    def exists(self) -> bool:
        """True if anything is there."""

    def read(self, key: str, most_bytes: int) -> bytes:
        """A file. Raises FileNotFoundError, IsADirectoryError, or, before it is read, TooLargeError."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """The bytes of those files that are there."""

    def files(self) -> dict[str, int]:
        """Every file with its bytes, whoever put it there. Raises InputError if the place can hold none."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file, or replace it; once this returns, it is durable."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files."""

    def clear(self) -> None:
        """Delete everything."""

    def tidy(self) -> None:
        """Clear away what a killed process left half-done, and make durable what it wrote."""


def store_at(path: CachePath) -> Store:
    """The files of the cache at `path`. Raises what `ObjectStore` raises if that is an address."""
    if isinstance(path, Path):
        return FolderStore(path)
    from vqgpt.tokens.object_store import ObjectStore

    return ObjectStore(path)
