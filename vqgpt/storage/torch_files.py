"""Reading a file of `torch.save` without running any code in it, and without loading its tensors until they are asked.

    path -> the saved object, in which every tensor is a StoredTensor

Both layouts of torch are read: the zip archive, and what torch wrote before version 1.6. Knows neither images nor
tokens.
"""

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vqgpt.errors import InputError
from vqgpt.storage.files import open_regular
from vqgpt.storage.restricted_pickle import MOST_BYTES, MakeStorage, unpickle
from vqgpt.storage.stored_tensor import Storage, check_is_file, read_range

OLD_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # first pickle of a file from before torch 1.6
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in an archive: its mark, and the lengths of what follows it
BLOCK = 2**20  # bytes


def read_torch_file(path: Path) -> Any:
    """The object in a file of `torch.save`, its tensors not yet loaded.

    Raises MissingDataError if there is no such file, InputError if it is not one of torch, truncated or damaged.
    """
    check_is_file(path, "check the path")
    with open_regular(path) as file:
        try:
            if zipfile.is_zipfile(file):
                return _read_archive(path, file)
            file.seek(0)
            return _read_old_layout(path, file)
        except InputError:
            raise
        except Exception as error:  # a damaged file can raise anything, MemoryError too
            raise InputError(
                f"{path} is not a checkpoint, or is truncated ({type(error).__name__}: {error})", "get the file again"
            ) from None


def _read_archive(path: Path, file: BinaryIO) -> Any:
    archive = zipfile.ZipFile(file)
    items = {item.filename: item for item in archive.infolist()}
    names = [name for name in items if name.endswith("/data.pkl")]
    if len(names) != 1 or any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
        raise InputError(f"{path} is a zip archive, but not one of torch.save", "give a checkpoint")
    size = path.stat().st_size
    is_inside = all(0 <= item.header_offset < size for item in archive.infolist())
    if not is_inside or sum(item.file_size for item in archive.infolist()) > size:
        raise _claims_too_much(path)
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in items and archive.read(f"{folder}byteorder") != b"little":
        raise InputError(f"{path} was saved on a big-endian machine", "save it again on this one")

    def storage(dtype: torch.dtype, key: str, length: int) -> Storage:
        item = items[f"{folder}data/{key}"]
        if item.file_size != length * dtype.itemsize:
            raise InputError(
                f"{path}: storage {key} has {item.file_size} bytes, not {length} numbers", "get the file again"
            )
        return Storage(dtype=dtype, length=length, read=_reader_of(path, item))

    if items[names[0]].file_size > MOST_BYTES:
        raise InputError(f"{path} has a pickle of {items[names[0]].file_size} bytes", "give a checkpoint of tensors")
    return unpickle(io.BytesIO(archive.read(names[0])), _one_each(storage, {}))


def _reader_of(path: Path, item: zipfile.ZipInfo) -> Callable[[int, int], Tensor]:
    """What reads bytes of a file in an archive that is not compressed, once its checksum has proved to hold."""

    @functools.cache
    def checked_start() -> int:
        damaged = InputError(f"{path} is damaged (checksum of {item.filename})", "get the file again")
        with open_regular(path) as file:
            file.seek(item.header_offset)
            header = file.read(LOCAL_HEADER.size)
            if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                raise damaged
            start = file.seek(sum(LOCAL_HEADER.unpack(header)[1:]), 1)
            found, left = 0, item.file_size
            while block := file.read(min(left, BLOCK)):
                found, left = zlib.crc32(block, found), left - len(block)
        if found != item.CRC:
            raise damaged
        return start

    return lambda first, last: read_range(path, checked_start() + first, last - first)


def _read_old_layout(path: Path, file: BinaryIO) -> Any:
    offsets: dict[str, int] = {}
    storages: dict[str, Storage] = {}

    def storage(dtype: torch.dtype, key: str, length: int) -> Storage:
        if length * dtype.itemsize > path.stat().st_size:
            raise _claims_too_much(path)
        return Storage(
            dtype=dtype, length=length, read=lambda first, last: read_range(path, offsets[key] + first, last - first)
        )

    make_storage = _one_each(storage, storages)
    if unpickle(file, make_storage) != OLD_MAGIC_NUMBER:
        raise InputError(f"{path} is a pickle, but not a checkpoint", "give a checkpoint")
    unpickle(file, make_storage)  # the version of the layout
    unpickle(file, make_storage)  # sizes of C types
    content = unpickle(file, make_storage)
    end = path.stat().st_size
    for key in unpickle(file, make_storage):
        length = struct.unpack("<q", file.read(8))[0]
        offsets[key] = file.tell()
        if length != storages[key].length or file.seek(length * storages[key].dtype.itemsize, 1) > end:
            raise _claims_too_much(path)
    if offsets.keys() != storages.keys():
        raise _claims_too_much(path)
    if file.tell() != end:
        raise InputError(f"{path} has {end - file.tell()} bytes after its last tensor", "get the file again")
    return content


def _one_each(make: MakeStorage, made: dict[str, Storage]) -> MakeStorage:
    """The same storage for all tensors that share its key in `made`. Raises ValueError if they do not agree on it."""

    def storage(dtype: torch.dtype, key: str, length: int) -> Storage:
        if key not in made:
            made[key] = make(dtype, key, length)
        if (made[key].dtype, made[key].length) != (dtype, length):
            raise ValueError(f"storage {key} is of two kinds")
        return made[key]

    return storage


def _claims_too_much(path: Path) -> InputError:
    return InputError(f"{path} claims more than it holds, or is truncated", "get the file again")
