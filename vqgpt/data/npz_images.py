"""Images in an .npz file, in the layout of ADM's evaluator, read as a stream: numpy.load would take all into memory.

    arr_0  (N, H, W, 3) uint8, or (N, H, W, 1), or (N, H, W)      arr_1  (N,) whole numbers, the classes; may be absent

Nothing in the file is trusted: its headers are read as text, it is unpacked in blocks, and no pickle is ever loaded.
Must not import torch.
"""

import hashlib
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, VQGPTError
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.storage.files import open_regular
from vqgpt.tokens.third_party import BYTES_OF_LENGTH, LONGEST_HEADER, MAGIC, MOST_CLASSES, parse_npy_header

IMAGES, LABELS = "arr_0.npy", "arr_1.npy"
FEATURES = "features.npy"  # in the files that vqgpt keeps features in
ENCRYPTED = 1  # flag of a member of a zip file
UNPACKED_IN_PARTS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python unpacks others to gigabytes at once
BLOCK = 2**22  # bytes that are unpacked at once
MOST_IMAGES = 2**24  # whose labels are held in memory
LARGEST_IMAGE = 2**28  # bytes
LARGEST_SIDE = 2**16  # pixels
MOST_SHOWN = 8  # sides of an array
NAMED_TYPE = re.compile(rb"'descr'\s*:\s*'(?![<>|=]?[iu][1248]')([^']{1,20})'")  # not of whole numbers
LAYOUT = "give an array arr_0 (N, H, W, 3) of type uint8, as `vqgpt render --format npz` writes it"


@dataclass(frozen=True, kw_only=True)
class NpzImages:
    """An .npz file that was read once: `count` images of `shape` (C, H, W), their labels (count,), -1 for none.

    `sha256` is that of the shape and the pixels as they are stored, which have `stored_channels`.
    """

    path: Path
    sha256: str
    count: int
    shape: tuple[int, int, int]
    stored_channels: int
    labels: NDArray[np.int64]

    __repr__ = one_line

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[NDArray[np.uint8]]:
        """The images of each batch of row numbers, (n, C, H, W); numbers ascend, from batch to batch too.

        Raises InputError if the file is damaged, or is another one by now.
        """
        channels, height, width = self.shape
        image_bytes = height * width * self.stored_channels
        with _opened(self.path) as archive, _member(archive, IMAGES, self.path) as member:
            _, stored = _read_header(member, f"{self.path}: arr_0")
            if stored[:3] != (self.count, height, width):
                raise InputError(f"{self.path} has changed since it was checked", "run the command again")
            position = 0
            for rows in batches:
                images = np.empty((len(rows), height, width, self.stored_channels), np.uint8)
                for image, row in zip(images, rows, strict=True):
                    _skip(member, (row - position) * image_bytes)
                    image.reshape(-1)[:] = np.frombuffer(_exactly(member, image_bytes), np.uint8)
                    position = row + 1
                yield np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, :channels])


def open_npz(path: Path, report: Report) -> NpzImages:
    """Read all of a file once. Raises InputError, naming it and what is wrong, if it is not of this layout."""
    with _opened(path) as archive:
        names = archive.namelist()
        if FEATURES in names:
            raise InputError(f"{path} holds features, not images", "give the images that they were computed from")
        if IMAGES not in names:
            others = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "nothing"
            raise InputError(f"{path} has no array arr_0; it holds: {others}", LAYOUT)
        with _member(archive, IMAGES, path) as member:
            count, height, width, stored = _image_shape(member, archive.getinfo(IMAGES).file_size, path)
            digest, is_grey = _read_all(member, (count, height, width, stored), report)
        labels = np.full(count, -1)
        if LABELS in names:
            with _member(archive, LABELS, path) as member:
                labels = _read_labels(member, archive.getinfo(LABELS).file_size, count, path)
    shape = (1 if is_grey else 3, height, width)
    return NpzImages(path=path, sha256=digest, count=count, shape=shape, stored_channels=stored, labels=labels)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`. What damage makes Python raise in the block becomes an InputError that names the file."""
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except VQGPTError:
            raise
        except Exception as error:  # a damaged archive can make Python raise anything
            fault = f"{path} is damaged, or not an .npz file ({str(error) or type(error).__name__})"
            raise InputError(fault, "make or fetch it again") from None


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> IO[bytes]:
    """A member, to be read in parts. Raises InputError if it is encrypted or compressed in an unusual way."""
    info = archive.getinfo(name)
    if info.flag_bits & ENCRYPTED:
        raise InputError(f"{path} is encrypted", "write it without a password")
    if info.compress_type not in UNPACKED_IN_PARTS:
        raise InputError(f"{path} is not compressed by deflate, as .npz files are", "write it with numpy.savez")
    return archive.open(info)


def _image_shape(member: IO[bytes], size: int, path: Path) -> tuple[int, int, int, int]:
    """(N, H, W, C) of the images. Raises InputError for other arrays, and if the member has not as many bytes."""
    dtype, shape = _read_header(member, f"{path}: arr_0")
    if dtype != np.uint8:
        raise InputError(f"{path}: arr_0 has type {dtype}, not uint8", LAYOUT)
    count, height, width, channels = (*shape, 1) if len(shape) == 3 else shape if len(shape) == 4 else (0, 0, 0, 0)
    image_bytes = height * width * channels
    possible = 0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE and image_bytes <= LARGEST_IMAGE
    if channels not in (1, 3) or not possible or count > MOST_IMAGES:
        raise InputError(f"{path}: arr_0 has shape {_shown(shape)}", LAYOUT)
    if member.tell() + count * image_bytes != size:
        raise InputError(
            f"{path}: arr_0 has {size:,} bytes, not those of an array of shape {_shown(shape)}", "make it again"
        )
    return count, height, width, channels


def _read_all(member: IO[bytes], shape: tuple[int, int, int, int], report: Report) -> tuple[str, bool]:
    """The digest of shape and pixels, and whether no image has colors. Past the last byte, zipfile checks the CRC."""
    content, is_grey = hashlib.sha256(str(shape).encode()), True
    count, channels, image_bytes = shape[0], shape[3], math.prod(shape[1:])
    at_once = max(1, BLOCK // image_bytes)
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        data = _exactly(member, (stop - start) * image_bytes)
        content.update(data)
        pixels = np.frombuffer(data, np.uint8).reshape(-1, channels)
        is_grey = is_grey and bool((pixels == pixels[:, :1]).all())
        report(Progress(task="check images", done=stop, total=count, unit="images"))
    return content.hexdigest(), is_grey


def _read_labels(member: IO[bytes], size: int, count: int, path: Path) -> NDArray[np.int64]:
    """The classes (count,). Raises InputError unless there is a whole number for each image, -1 for none or more."""
    dtype, shape = _read_header(member, f"{path}: arr_1")
    if shape != (count,) or member.tell() + count * dtype.itemsize != size:
        raise InputError(
            f"{path}: arr_1 has shape {_shown(shape)}, and there are {count:,} images", "give one label for each image"
        )
    labels = np.frombuffer(_exactly(member, count * dtype.itemsize), dtype)
    if count and not -1 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        raise InputError(
            f"{path}: arr_1 holds labels {labels.min()} to {labels.max()}", f"give classes of 0 to {MOST_CLASSES - 1}"
        )
    return labels.astype(np.int64)


def _read_header(member: IO[bytes], where: str) -> tuple[np.dtype[np.integer], tuple[int, ...]]:
    """Type and shape of an array of whole numbers, rows first. Raises InputError, naming `where`, for all others."""
    start = _exactly(member, len(MAGIC) + 2)
    width = BYTES_OF_LENGTH.get(start[len(MAGIC) :])
    if not start.startswith(MAGIC) or width is None:
        raise InputError(f"{where} is not an array of numpy", LAYOUT)
    length = int.from_bytes(_exactly(member, width), "little")
    if length > LONGEST_HEADER:
        raise InputError(f"{where} has a header of {length:,} bytes", LAYOUT)
    header = _exactly(member, length)
    found = parse_npy_header(header)
    if found is None:
        named = NAMED_TYPE.findall(header)
        fault = f"has type {named[0].decode('latin-1')}, not" if len(named) == 1 else "is not an array of"
        raise InputError(f"{where} {fault} whole numbers", LAYOUT)
    dtype, shape, columns_first = found
    if columns_first:
        raise InputError(f"{where} is stored in Fortran order", "write it with numpy.ascontiguousarray")
    return dtype, shape


def _exactly(member: IO[bytes], count: int) -> bytes:
    """The next bytes. Raises EOFError if there are not as many."""
    data = member.read(count)
    if len(data) < count:
        raise EOFError("it ends in the middle of an array")
    return data


def _skip(member: IO[bytes], count: int) -> None:
    while count > 0:
        count -= len(_exactly(member, min(count, BLOCK)))


def _shown(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= MOST_SHOWN else f"of {len(shape)} dimensions"
