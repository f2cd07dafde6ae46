"""A tensor in a file: its shape, its type and where its numbers lie. They are not loaded until they are asked for.

    Storage: a flat array in a file, of which a range can be read       StoredTensor: a view of a storage

Files are of strangers: a tensor that claims more than is stored can be described, and is never read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError
from vqgpt.storage.files import check_is_not_special, open_regular

MOST_DIMENSIONS = 64  # as many as torch has
LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The flat array behind one or more tensors: `length` numbers. `read(start, stop)` loads some of its bytes."""

    dtype: torch.dtype
    length: int
    read: Callable[[int, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A view of a storage, as `torch.as_strided` makes it. Raises ValueError for sizes that no tensor of torch has."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or len(self.shape) > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {len(self.shape)} dimensions")
        if not all(type(number) is int and 0 <= number <= LARGEST_SIZE for number in numbers):
            raise ValueError("a tensor of impossible sizes")

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.storage.dtype

    @property
    def _span(self) -> int:
        """From its first number to its last, how many numbers of the storage there are."""
        if not prod(self.shape):
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def complete(self) -> bool:
        """False if it claims more numbers than are stored, as an expanded tensor does: then it cannot be read."""
        many = prod(self.shape) > self.storage.length or prod(max(size, 1) for size in self.shape) > LARGEST_SIZE
        return not many and self.offset + self._span <= self.storage.length

    @property
    def num_bytes(self) -> int:
        """How much memory it takes to load."""
        return max(prod(self.shape), self._span) * self.dtype.itemsize

    def read(self) -> Tensor:
        """It, on the CPU. Raises InputError if the file is damaged, or stores less than is claimed."""
        if not self.complete:
            raise InputError(
                f"a tensor of shape {self.shape} claims more numbers than the {self.storage.length} that are stored",
                "get the file again, from its author",
            )
        start, size = self.offset * self.dtype.itemsize, self.dtype.itemsize
        numbers = self.storage.read(start, start + self._span * size).view(self.dtype)
        return numbers.as_strided(self.shape, self.stride)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps between the numbers of a tensor whose rows lie one after the other."""
    return tuple(prod(shape[place + 1 :]) for place in range(len(shape)))


def read_range(path: Path, start: int, count: int) -> Tensor:
    """`count` bytes of a file, (count,) uint8. Raises InputError if there are fewer."""
    data = torch.empty(count, dtype=torch.uint8)
    with open_regular(path) as file:
        file.seek(start)
        if file.readinto(data.numpy().data) < count:
            raise InputError(f"{path} is truncated", "get the file again")
    return data


def check_stored(tensors: Mapping[str, StoredTensor], path: Path) -> None:
    """Raise InputError if tensors, by name, claim to be more than the file can hold: before any of them is read."""
    for name, tensor in tensors.items():
        if not tensor.complete:
            raise InputError(
                f"{path}: {name} claims more numbers ({' x '.join(map(str, tensor.shape))}) than are stored",
                "get the file again, from its author",
            )
    if sum(tensor.num_bytes for tensor in tensors.values()) > path.stat().st_size:
        raise InputError(f"{path}: the weights claim to be larger than the file", "get the file again")


def check_is_file(path: Path, remedy: str) -> None:
    """Raise MissingDataError, with `remedy`, if there is no checkpoint at `path`, and InputError if it is no file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint", "give the path of the file itself")
    check_is_not_special(path)
    if not path.exists():
        raise MissingDataError(f"there is no checkpoint {path}", remedy)
