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
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

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
    """A tensor in a file. `read` loads it onto the CPU.

    `complete` is false if it claims more numbers than are stored, as an expanded tensor does: then `read` raises
    InputError.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    complete: bool
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """How much memory it takes."""
        return prod(self.shape) * self.dtype.itemsize


class Inert:
    """Stands in for anything that a file names and that is neither a tensor nor a plain container."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __call__(self, *arguments: Any, **named: Any) -> "Inert":
        """Be called as a function, and do nothing."""
        return Inert()

    def append(self, value: Any) -> None:
        """Be filled as a list, and keep nothing."""

    def extend(self, values: Any) -> None:
        """Be filled as a list, and keep nothing."""


def check_is_file(path: Path, remedy: str) -> None:
    """Raise MissingDataError, with `remedy`, if there is no checkpoint at `path`, and InputError if it is a folder."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint", "give the path of the file itself")
    if not path.is_file():
        raise MissingDataError(f"there is no checkpoint {path}", remedy)


def read_torch_file(path: Path) -> Any:
    """The object in a file of `torch.save`, its tensors not yet loaded.

    Raises MissingDataError if there is no such file, InputError if it is not one of torch, truncated or damaged.
    """
    check_is_file(path, "check the path")
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
    if sum(sizes.values()) > path.stat().st_size:
        raise InputError(f"{path} claims more than it holds", "get the file again")
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
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError):
        raise InputError(f"{path} is damaged (checksum of {name})", "get the file again") from None


def _read_old_layout(path: Path, file: BinaryIO) -> Any:
    offsets: dict[str, int] = {}
    dtypes: dict[str, torch.dtype] = {}

    def storage(dtype: torch.dtype, key: str, length: int) -> Storage:
        dtypes[key] = dtype
        if length * dtype.itemsize > path.stat().st_size:
            raise InputError(f"{path} claims more than it holds", "get the file again")
        return Storage(
            dtype=dtype, length=length, read=lambda: _read_range(path, offsets.get(key), length * dtype.itemsize)
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


def _read_range(path: Path, start: int | None, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start or 0)
        data = file.read(length)
    if start is None or len(data) < length:
        raise InputError(f"{path} is truncated", "get the file again")
    return data


class _Unpickler(pickle._Unpickler):
    """Builds plain containers and StoredTensors; `storage(dtype, key, length)` makes the array behind a tensor.

    Python's own unpickler, not the one in C, which a file of a few bytes can make allocate gigabytes or overflow its
    stack. Dicts keep their string keys only, so that no key is ever hashed that was built to be slow, and no state is
    put into any object.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, storage: Callable[[torch.dtype, str, int], Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def load_setitem(self) -> None:
        """One item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """Some items of a dict."""
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def load_dict(self) -> None:
        """A dict and its items."""
        items = self.pop_mark()
        self.append({})
        _put(self.stack[-1], items)

    def load_set(self) -> None:
        """An empty set, of which nothing is kept."""
        self.append(Inert())

    def load_frozenset(self) -> None:
        """A set and its items, of which nothing is kept."""
        self.pop_mark()
        self.append(Inert())

    def load_additems(self) -> None:
        """Some items of a set."""
        self.pop_mark()

    def load_build(self) -> None:
        """The state of an object."""
        self.stack.pop()

    def load_bytearray8(self) -> None:
        """An array of bytes, which no checkpoint needs."""
        raise pickle.UnpicklingError("an array of bytes")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.EMPTY_SET[0]] = load_set
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for; it is never imported."""
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _new_dict,
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


def _put(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)


def _new_dict(pairs: Any = (), *_: Any) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, value in pairs:
        _put(filled, [key, value])
    return filled


def _stored_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor | Inert:
    if not isinstance(storage, Storage):
        return Inert()
    offset, shape, stride = int(offset), tuple(map(int, shape)), tuple(map(int, stride))
    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    too_many = prod(shape) > storage.length or (prod(shape) > 0 and reach > storage.length)
    complete = min((offset, *shape, *stride)) >= 0 and not too_many

    def read() -> Tensor:
        if not complete:
            raise InputError(
                f"a tensor of shape {shape} claims more numbers than the {storage.length} that are stored",
                "get the file again, from its author",
            )
        if not prod(shape):
            return torch.empty(shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(storage.read()), dtype=storage.dtype)
        if len(flat) < reach:
            raise InputError("a tensor is stored in part only", "get the file again")
        return flat.as_strided(shape, stride, offset).clone()

    return StoredTensor(shape=shape, dtype=storage.dtype, complete=complete, read=read)


def _stored_parameter(data: Any, *_: Any) -> Any:
    return data


def _stored_with_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    return rebuild(*arguments)
