"""A tensor in a file, described and not loaded until it is asked for; and reading a safetensors file.

    Storage: a flat array in a file, of which a range can be read       StoredTensor: a view of a storage
    read_safetensors: path -> the strings of its header (metadata), and a StoredTensor by name

A file may come from anyone: a tensor that claims more than is stored can be described, and is never read. A safetensors
file is the length of its header (8 bytes), the header in JSON, and the numbers of all tensors. Knows neither images nor
tokens.
"""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError
from vqgpt.storage.files import check_is_not_special, open_regular

MOST_DIMENSIONS = 64  # as many as torch has
LARGEST_SIZE = 2**63 - 1
MOST_HEADER = 2**24  # bytes: the format allows 100 MB, which is more than a million tensors
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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


def read_range(path: Path, start: int, count: int) -> Tensor:
    """`count` bytes of a file, (count,) uint8. Raises InputError if there are fewer."""
    data = torch.empty(count, dtype=torch.uint8)
    with open_regular(path) as file:
        file.seek(start)
        if file.readinto(data.numpy().data) < count:
            raise InputError(f"{path} is truncated", "get the file again")
    return data


def check_stored(tensors: Iterable[tuple[str, StoredTensor]], path: Path) -> None:
    """Raise InputError if tensors, with their names, claim to be more than the file can hold: before any is read."""
    num_bytes = 0
    for name, tensor in tensors:
        num_bytes += tensor.num_bytes
        if not tensor.complete:
            raise InputError(
                f"{path}: {name} claims more numbers ({' x '.join(map(str, tensor.shape))}) than are stored",
                "get the file again, from its author",
            )
    if num_bytes > path.stat().st_size:
        raise InputError(f"{path}: the weights claim to be larger than the file", "get the file again")


def check_is_file(path: Path, remedy: str) -> None:
    """Raise MissingDataError, with `remedy`, if there is no checkpoint at `path`, and InputError if it is no file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint", "give the path of the file itself")
    check_is_not_special(path)
    if not path.exists():
        raise MissingDataError(f"there is no checkpoint {path}", remedy)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors. Raises MissingDataError if there is no file, InputError if it is damaged or another."""
    check_is_file(path, "check the path")
    size = path.stat().st_size
    try:
        with open_regular(path) as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(MOST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = parse_json(file.read(length))
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that are not text")
        tensors = {name: _stored_tensor(path, length + 8, entry) for name, entry in header.items()}
        _check_cover(sorted(tuple(entry["data_offsets"]) for entry in header.values()), size - length - 8)
        return metadata, tensors
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated ({error})", "get the file again") from None


def _stored_tensor(path: Path, start: int, entry: Mapping[str, Any]) -> StoredTensor:
    first, last = entry["data_offsets"]
    if type(first) is not int or type(last) is not int:
        raise ValueError("a tensor that begins or ends in the middle of a byte")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    storage = Storage(
        dtype=dtype,
        length=(last - first) // dtype.itemsize,
        read=lambda begin, end: read_range(path, start + first + begin, end - begin),
    )
    stride = tuple(prod(shape[place + 1 :]) for place in range(len(shape)))  # its rows lie one after the other
    tensor = StoredTensor(storage=storage, offset=0, shape=shape, stride=stride)
    if tensor.num_bytes != last - first:
        raise ValueError(f"a tensor of shape {shape} in {last - first} bytes")
    return tensor


def _check_cover(ranges: list[tuple[int, int]], size: int) -> None:
    """Raise ValueError unless ranges of bytes follow one another from 0 to `size`."""
    end = 0
    for first, last in ranges:
        if first != end or last < first:
            raise ValueError("tensors that do not lie one after the other")
        end = last
    if end != size:
        raise ValueError(f"{size} bytes of tensors where {end} are expected")


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError where it is none: for NaN and infinities, and for a key that is there twice."""
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key that is there twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant}")
