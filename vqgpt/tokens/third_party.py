"""Codes that other projects extracted, read and checked.

    LlamaGen   NAME_codes/I.npy (1, V, T) and NAME_labels/I.npy (1,), for I from 0: image I, its V views of T tokens
    RAR        a .jsonl file: a line {"class_id": ..., "tokens": [...]} per view of an image, in no known order

They say nothing else of what they are. Files of numpy are read without its parser, which raises errors of many kinds
for a damaged header and allocates whatever the header claims. Must not import torch.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, MissingDataError
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.storage.files import open_regular, read_regular

LARGEST_FILE = 2**20  # bytes of one .npy file, or of one line
MOST_CLASSES = 2**16
AGAIN = "extract it again"
ROWS_BETWEEN_REPORTS = 1000
VIEWS = {
    1: ("identity",),
    2: ("identity", "hflip"),
    10: (  # as torchvision's TenCrop, which mirrors first: its mirrored top left is the top right, mirrored
        "crop-top-left",
        "crop-top-right",
        "crop-bottom-left",
        "crop-bottom-right",
        "crop-center",
        "crop-top-right-hflip",
        "crop-top-left-hflip",
        "crop-bottom-right-hflip",
        "crop-bottom-left-hflip",
        "crop-center-hflip",
    ),
}
MAGIC = b"\x93NUMPY"
BYTES_OF_LENGTH = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # of the header's length, by version
LONGEST_HEADER = 10_000  # bytes, as in numpy
MOST_DIMENSIONS = 32  # of numpy 1; numpy 2 has 64
TYPE = re.compile(r"'descr'\s*:\s*'([<>|=]?[iu][1248])'")
ORDER = re.compile(r"'fortran_order'\s*:\s*(False|True)")
SHAPE = re.compile(r"'shape'\s*:\s*\(((?:\s*[0-9]{1,18}\s*,)*(?:\s*[0-9]{1,18})?\s*)\)")
BETWEEN = re.compile(r"\s*\{[\s,]*\}\s*")  # what is left of a header without the three, which may come in any order


@dataclass(frozen=True, kw_only=True)
class ThirdPartyCodes:
    """Codes (N, V, T) uint16, labels (N,) int64, source_index (N,) int64, -1 where it is not known; names of V views.

    `dataset` and `image_size` are what the name of a folder says, "" and None if it does not.
    """

    home: str
    codes: NDArray[np.uint16]
    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]
    views: tuple[str, ...]
    dataset: str = ""
    image_size: int | None = None

    __repr__ = one_line


def read_llamagen(folder: Path, codebook_size: int, report: Report) -> ThirdPartyCodes:
    """A code folder of LlamaGen. Raises MissingDataError or InputError, naming the file, for what is not as it must be.

    All codes are held in memory, two bytes each.
    """
    place = folder.resolve()
    name = re.fullmatch(r"(?P<dataset>\w*?)(?P<size>\d{0,5})_codes", place.name)
    if name is None:
        raise InputError(f"{folder} is not a folder NAME_codes", "give the folder of codes that LlamaGen wrote")
    labels_folder = place.with_name(place.name.removesuffix("_codes") + "_labels")
    count = _count_numbered(folder)
    if not labels_folder.is_dir() or _count_numbered(labels_folder) != count:
        raise InputError(
            f"{labels_folder} does not hold a label for each of the {count:,} files in {folder}",
            "put the folder of labels that LlamaGen wrote beside it",
        )
    first = read_npy(folder / "0.npy", LARGEST_FILE, AGAIN)
    if first.ndim != 3 or first.shape[0] != 1 or first.shape[1] not in VIEWS or not first.size:
        hint = "give codes of shape (1, V, tokens), of 1, 2 or 10 views"
        raise InputError(f"{folder}/0.npy has shape {first.shape}", hint)
    stored = sum(entry.stat().st_size for entry in os.scandir(folder))
    if count * first.size > stored:  # a byte per code at least, before memory is taken for all of them
        raise InputError(f"{folder} has {stored:,} bytes, too few for {count:,} files like 0.npy", AGAIN)
    codes = np.empty((count, *first.shape[1:]), np.uint16)
    labels = np.empty(count, np.int64)
    for row in range(count):
        path = folder / f"{row}.npy"
        found = read_npy(path, LARGEST_FILE, AGAIN)
        if found.shape != first.shape:
            raise InputError(f"{path} has shape {found.shape}, 0.npy {first.shape}", AGAIN)
        codes[row] = _checked(found, codebook_size, str(path))[0]
        label = read_npy(labels_folder / f"{row}.npy", LARGEST_FILE, AGAIN)
        if label.shape != (1,) or not 0 <= int(label[0]) < MOST_CLASSES:
            raise InputError(f"{labels_folder}/{row}.npy holds no class", AGAIN)
        labels[row] = int(label[0])
        if (row + 1) % ROWS_BETWEEN_REPORTS == 0 or row + 1 == count:
            report(Progress(task="read", done=row + 1, total=count, unit="images"))
    return ThirdPartyCodes(
        home="a code folder of LlamaGen",
        codes=codes,
        labels=labels,
        source_index=np.arange(count),
        views=VIEWS[first.shape[1]],
        dataset=name["dataset"],
        image_size=int(name["size"] or 0) or None,
    )


def read_rar(file: Path, codebook_size: int, views_per_image: int, report: Report) -> ThirdPartyCodes:
    """A .jsonl file of RAR; with `views_per_image` 10, ten lines in a row are one image.

    Raises InputError that names the first line that is not as it must be. All codes are held in memory.
    """
    tokens_of_all, length = bytearray(), 0
    labels: list[int] = []
    total = file.stat().st_size
    with open_regular(file) as lines:
        while line := lines.readline(LARGEST_FILE + 1):
            where = f"line {len(labels) + 1} of {file}"
            if len(line) > LARGEST_FILE:
                raise InputError(f"{where} has more than {LARGEST_FILE:,} bytes", "give a .jsonl file of RAR")
            label, tokens = _read_line(line, where)
            length = length or len(tokens)
            if len(tokens) != length:
                raise InputError(f"{where} has {len(tokens)} tokens, line 1 has {length}", AGAIN)
            tokens_of_all += _checked(tokens, codebook_size, where).tobytes()
            labels.append(label)
            if len(labels) % ROWS_BETWEEN_REPORTS == 0:
                report(Progress(task="read", done=lines.tell(), total=total, unit="bytes"))
    if not labels or len(labels) % views_per_image:
        words = f"{file} has {len(labels):,} lines, {views_per_image} of them per image"
        raise InputError(words, "give another --views-per-image")
    of_images = np.array(labels).reshape(-1, views_per_image)
    different = np.flatnonzero((of_images != of_images[:, :1]).any(axis=1))
    if len(different):
        first = int(different[0]) * views_per_image + 1
        raise InputError(
            f"lines {first} to {first + views_per_image - 1} of {file} are of several classes, so not of one image",
            "leave --views-per-image out",
        )
    return ThirdPartyCodes(
        home="a .jsonl file of RAR",
        codes=np.frombuffer(tokens_of_all, np.uint16).reshape(-1, views_per_image, length),
        labels=of_images[:, 0].astype(np.int64),
        source_index=np.full(len(of_images), -1, np.int64),
        views=VIEWS[views_per_image],
    )


def _count_numbered(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... a folder holds. Raises if one of them is missing, or there is any other file."""
    if not folder.is_dir():
        raise MissingDataError(f"there is no folder {folder}", "give the folder of codes that LlamaGen wrote")
    names = set(os.listdir(folder))
    expected = {f"{number}.npy" for number in range(len(names))}
    if not names:
        raise InputError(f"{folder} is empty", "give the folder of codes that LlamaGen wrote")
    if names != expected:
        words = f"{folder} has no {min(expected - names)}, but {min(names - expected)}"
        raise InputError(words, "extract the codes again, to the end")
    return len(names)


def _read_line(line: bytes, where: str) -> tuple[int, NDArray[np.integer[Any]]]:
    words = f'{where} is not {{"class_id": a class, "tokens": a list of codes}}'
    fault = InputError(words, "give a .jsonl file of RAR")
    try:
        content = json.loads(line)
        label, listed = content["class_id"], content["tokens"]
        tokens = np.array(listed)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise fault from None
    if type(label) is not int or not 0 <= label < MOST_CLASSES or not isinstance(listed, list):
        raise fault
    if set(map(type, listed)) != {int} or tokens.dtype.kind not in "iu":
        raise fault
    return label, tokens


def _checked(codes: NDArray[np.integer[Any]], codebook_size: int, where: str) -> NDArray[np.uint16]:
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise InputError(
            f"{where} holds codes {low} to {high}, outside 0..{codebook_size - 1}",
            "give the VQ-GAN that made them, with --checkpoint-vae, or its --codebook-size",
        )
    return codes.astype(np.uint16)


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
    found = parse_npy_header(data[start:end])
    if found is None:
        raise fault
    dtype, shape, columns_first = found
    is_whole = end + math.prod(shape) * dtype.itemsize == len(data)
    if columns_first or len(shape) > MOST_DIMENSIONS or 0 in shape or not is_whole:
        raise fault
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def parse_npy_header(header: bytes) -> tuple[np.dtype[np.integer[Any]], tuple[int, ...], bool] | None:
    """Type and shape of an array of whole numbers, and whether its columns come first; None for any other header."""
    text = header.decode("latin-1")
    types, orders, shapes = TYPE.findall(text), ORDER.findall(text), SHAPE.findall(text)
    rest = TYPE.sub("", ORDER.sub("", SHAPE.sub("", text)))
    if not len(types) == len(orders) == len(shapes) == 1 or not BETWEEN.fullmatch(rest):
        return None
    shape = tuple(int(side) for side in shapes[0].split(",") if side.strip())
    return np.dtype(types[0]), shape, orders[0] == "True" and len(shape) > 1
