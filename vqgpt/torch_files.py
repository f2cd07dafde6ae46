"""Reading a file of `torch.save` without running any code in it, and without loading its tensors until they are asked.

    path -> the saved object, in which every tensor is a StoredTensor: shape, dtype, and a way to read it

A pickle is a small program. This reader lets it build dicts, lists, numbers and strings, and describe tensors; any
other class or function that it names becomes `Inert`, which takes whatever is done to it and does nothing. Both layouts
of torch are read: the zip archive, and what torch wrote before version 1.6. Knows neither images nor tokens.
"""

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError

OLD_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # first pickle of a file from before torch 1.6
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The flat array behind one or more tensors: so many numbers, which `read` gets from the file."""

    dtype: torch.dtype
    length: int
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file. `read` loads it onto the CPU; it raises InputError if the file claims more than it holds."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Inert:
    """Stands in for anything that a file names and that is neither a tensor nor a plain container."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __call__(self, *arguments: Any, **named: Any) -> "Inert":
        """Be called as a function, and do nothing."""
        return Inert()

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """Be filled as a list, and keep nothing."""

    def extend(self, values: Any) -> None:
        """Be filled as a list, and keep nothing."""

    def add(self, value: Any) -> None:
        """Be filled as a set, and keep nothing."""


def read_torch_file(path: Path) -> Any:
    """The object in a file of `torch.save`, its tensors not yet loaded.

    Raises MissingDataError if there is no such file, InputError if it is not one of torch, truncated or damaged.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no checkpoint {path}", "check the path")
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_archive(path, file)
            file.seek(0)
            return _read_old_layout(path, file)
    except (OSError, InputError):
        raise
    except Exception as error:  # a damaged pickle can raise anything, MemoryError too
        raise InputError(
            f"{path} is not a checkpoint, or is truncated ({type(error).__name__}: {error})", "get the file again"
        ) from None


def _read_archive(path: Path, file: BinaryIO) -> Any:
    archive = zipfile.ZipFile(file)
    sizes = {item.filename: item.file_size for item in archive.infolist()}
    names = [name for name in sizes if name.endswith("/data.pkl")]
    if len(names) != 1 or any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
        raise InputError(f"{path} is a zip archive, but not one of torch.save", "give a checkpoint")
    folder = names[0].removesuffix("data.pkl")
    if sizes.get(f"{folder}byteorder") and archive.read(f"{folder}byteorder") != b"little":
        raise InputError(f"{path} was saved on a big-endian machine", "save it again on this one")

    def storage(dtype: torch.dtype, key: str, length: int) -> Storage:
        name = f"{folder}data/{key}"
        return Storage(dtype=dtype, length=sizes[name] // dtype.itemsize, read=lambda: _read_member(path, name))

    return _Unpickler(archive.open(names[0]), storage).load()


def _read_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise InputError(f"{path} is damaged (checksum of {name})", "get the file again") from None


def _read_old_layout(path: Path, file: BinaryIO) -> Any:
    offsets: dict[str, int] = {}
    dtypes: dict[str, torch.dtype] = {}

    def storage(dtype: torch.dtype, key: str, length: int) -> Storage:
        dtypes[key] = dtype
        return Storage(
            dtype=dtype, length=length, read=lambda: _read_range(path, offsets[key], length * dtype.itemsize)
        )

    def load() -> Any:
        return _Unpickler(file, storage).load()

    if load() != OLD_MAGIC_NUMBER:
        raise InputError(f"{path} is a pickle, but not a checkpoint", "give a checkpoint")
    load()  # the version of the layout
    load()  # sizes of C types
    content = load()
    for key in load():
        length = struct.unpack("<q", file.read(8))[0]
        offsets[key] = file.tell()
        file.seek(length * dtypes[key].itemsize, 1)
    return content


def _read_range(path: Path, start: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(length)
    if len(data) < length:
        raise InputError(f"{path} is truncated", "get the file again")
    return data


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and StoredTensors; `storage(dtype, key, length)` makes the array behind a tensor."""

    def __init__(self, file: Any, storage: Callable[[torch.dtype, str, int], Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for; it is never imported."""
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): _stored_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _stored_tensor,
            ("torch._utils", "_rebuild_parameter"): _stored_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _stored_parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): _stored_with_type,
        }
        return known.get((module, name), Inert)

    def persistent_load(self, reference: Any) -> Storage | type[Inert]:
        """The array that a reference ("storage", type, key, device, length, ...) means."""
        if reference[0] != "storage" or not isinstance(reference[1], torch.dtype):
            return Inert
        _, dtype, key, _, length = reference[:5]
        return self.storage(dtype, str(key), int(length))


def _stored_tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> StoredTensor | Inert:
    if not isinstance(storage, Storage):
        return Inert()
    shape, stride = tuple(map(int, shape)), tuple(map(int, stride))

    def read() -> Tensor:
        reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
        too_many = prod(shape) > storage.length or (prod(shape) and reach > storage.length)
        if min((offset, *shape, *stride)) < 0 or too_many:
            raise InputError(
                f"a tensor of shape {shape} claims more numbers than the {storage.length} that are stored",
                "get the file again, from its author",
            )
        if not prod(shape):
            return torch.empty(shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(storage.read()), dtype=storage.dtype)
        return flat.as_strided(shape, stride, offset).clone()

    return StoredTensor(shape=shape, dtype=storage.dtype, read=read)


def _stored_parameter(data: Any, *_: Any) -> Any:
    return data


def _stored_with_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    return rebuild(*arguments)
