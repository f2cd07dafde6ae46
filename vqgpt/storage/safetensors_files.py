"""Reading a safetensors file, its tensors not loaded until they are asked for. Knows neither images nor tokens.

    path -> the strings of its header (metadata), and a StoredTensor by name

The file is the length of its header (8 bytes), the header in JSON, and the numbers of all tensors, one after the other.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from vqgpt.errors import InputError
from vqgpt.storage.files import open_regular
from vqgpt.storage.stored_tensor import (
    MOST_DIMENSIONS,
    Storage,
    StoredTensor,
    check_is_file,
    contiguous_stride,
    read_range,
)

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
    tensor = StoredTensor(storage=storage, offset=0, shape=shape, stride=contiguous_stride(shape))
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
