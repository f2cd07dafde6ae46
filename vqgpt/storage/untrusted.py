"""Values from files that anyone may have made: arrays of whole numbers in .npy files, and plain values in bounds.

numpy's own parser raises errors of many kinds for a damaged header, and allocates whatever the header claims. Must not
import torch.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError
from vqgpt.storage.files import read_regular

MAGIC = b"\x93NUMPY"
BYTES_OF_LENGTH = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # of the header's length, by version
LONGEST_HEADER = 10_000  # bytes, as in numpy
MOST_DIMENSIONS = 32  # of numpy 1; numpy 2 has 64
TYPE = re.compile(r"'descr'\s*:\s*'([<>|=]?[iu][1248])'")
ORDER = re.compile(r"'fortran_order'\s*:\s*(False|True)")
SHAPE = re.compile(r"'shape'\s*:\s*\(((?:\s*[0-9]{1,18}\s*,)*(?:\s*[0-9]{1,18})?\s*)\)")
BETWEEN = re.compile(r"\s*\{[\s,]*\}\s*")  # what is left of a header without the three, which may come in any order
MOST_VALUES = 2**22
DEEPEST = 64
LARGEST_NUMBER = 128  # bits


def read_npy(path: Path, most: int, hint: str) -> NDArray[np.integer[Any]]:
    """The whole numbers in an .npy file of at most `most` bytes, read-only. Nothing in the file is trusted.

    Raises InputError with the hint if the file holds anything else, nothing, or columns first; and what `read_regular`
    raises.
    """
    fault = InputError(f"{path} is not an .npy file of whole numbers", hint)
    data = read_regular(path, most)
    width = BYTES_OF_LENGTH.get(data[6:8])
    if not data.startswith(MAGIC) or width is None:
        raise fault
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    if not start < end <= min(len(data), start + LONGEST_HEADER):
        raise fault
    header = data[start:end].decode("latin-1")
    types, orders, shapes = TYPE.findall(header), ORDER.findall(header), SHAPE.findall(header)
    rest = TYPE.sub("", ORDER.sub("", SHAPE.sub("", header)))
    if not len(types) == len(orders) == len(shapes) == 1 or not BETWEEN.fullmatch(rest):
        raise fault
    dtype = np.dtype(types[0])
    shape = tuple(int(side) for side in shapes[0].split(",") if side.strip())
    columns_first = orders[0] == "True" and len(shape) > 1
    is_whole = end + math.prod(shape) * dtype.itemsize == len(data)
    if columns_first or len(shape) > MOST_DIMENSIONS or 0 in shape or not is_whole:
        raise fault
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def check_plain(content: Any) -> None:
    """Raise ValueError, saying what there is, for more values, or deeper ones, than a checkpoint or a manifest has.

    Also for numbers that do not fit elsewhere, and for strings that cannot be written as UTF-8.
    """
    _measure(content, 0, {})


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values there are, and how many levels. `known` are the containers that were met, by identity."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("text that is no Unicode") from None
    elif isinstance(value, int) and value.bit_length() > LARGEST_NUMBER:
        raise ValueError(f"a number of {value.bit_length()} bits")
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    if id(value) not in known:
        inner, values, levels = depth + 1, 1, 0
        if inner > DEEPEST:
            raise ValueError(f"more than {DEEPEST} values inside one another")
        if isinstance(value, dict):
            for key in value:
                _measure(key, inner, known)
        for element in value.values() if isinstance(value, dict) else value:
            of_element = _measure(element, inner, known)
            values, levels = values + of_element[0], max(levels, of_element[1])
        known[id(value)] = values, levels + 1
    values, levels = known[id(value)]
    if values > MOST_VALUES or depth + levels > DEEPEST:
        raise ValueError(f"more than {MOST_VALUES} values, or {DEEPEST} of them inside one another")
    return values, levels
