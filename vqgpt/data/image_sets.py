"""Sets of images to measure: a split of a dataset, a folder or archive of pictures, or an .npz file.

    split_images, file_images, npz_images  ->  ImageSet  --batches-->  (n, C, H, W) uint8, one batch after the other

All images of a set have one size, and are grey (C = 1) or RGB (C = 3). Only one batch, and what threads decode ahead,
is in memory; the rows of an array that is in memory already stay there. Must not import torch.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqgpt.data.decoding import BrokenImageError, decode, no_decoder_warnings
from vqgpt.data.folder import read_folder
from vqgpt.data.images import (
    FILES_AHEAD_PER_WORKER,
    FileImages,
    ImageSplit,
    ordered_map,
    prepare,
    prepared_batches,
)
from vqgpt.data.npz_images import open_npz
from vqgpt.data.options import Preprocessing, PreprocessingOptions
from vqgpt.errors import InputError, UsageError, nearest_hint
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.storage.files import canonical_json

BatchesOfRows = Sequence[Sequence[int]]  # row numbers, ascending within a batch and from batch to batch


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one size, which are read when they are asked for.

    `name` is what the user wrote, such as mnist:test. `sha256` covers what decides every pixel and label, and which
    rows were chosen. `labels` (N,) are -1 for none; `class_names` is () without classes. `shape` is (C, H, W). Features
    are kept at `features_stem` with "-EXTRACTOR.npz" added; None where nothing can be kept. `rows` (N,) are the numbers
    of these images in their source, ascending. `read` gives (n, C, H, W) uint8 for each batch of such numbers.
    `stored_in_color` is true of grey images whose files could show colors.
    """

    name: str
    sha256: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    features_stem: Path | None
    rows: NDArray[np.int64]
    read: Callable[[BatchesOfRows], Iterator[NDArray[np.uint8]]]
    stored_in_color: bool = False

    __repr__ = one_line

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, at_once: int, first: int = 0, step: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Every `step`-th batch of `at_once` images, from batch number `first`: for processes that share the work.

        The last batch of the set may be smaller.
        """
        starts = range(first * at_once, len(self), step * at_once)
        return self.read([self.rows[start : start + at_once].tolist() for start in starts])

    def images(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """The images with these numbers among those of the set, in this order, (n, C, H, W); each is read once."""
        places = sorted(set(numbers))
        (found,) = self.read([self.rows[places].tolist()])
        return found[[places.index(number) for number in numbers]]

    def subset(self, numbers: Sequence[int] | NDArray[np.integer]) -> "ImageSet":
        """The images with these numbers among those of the set, ascending; itself if these are all."""
        chosen = np.asarray(numbers, dtype=np.int64)
        if len(chosen) == len(self):
            return self
        rows, stem = self.rows[chosen], self.features_stem
        return replace(
            self,
            sha256=content_sha256({"of": self.sha256}, rows),
            labels=self.labels[chosen],
            features_stem=stem and stem.with_name(f"{stem.name}-{len(rows)}"),
            rows=rows,
        )

    def in_color(self) -> "ImageSet":
        """Grey images as RGB ones that show no color."""

        def read(batches: BatchesOfRows) -> Iterator[NDArray[np.uint8]]:
            return (images.repeat(3, axis=1) for images in self.read(batches))

        shape = (3, *self.shape[1:])
        return replace(self, sha256=content_sha256({"of": self.sha256, "channels": 3}), shape=shape, read=read)

    def drawn(self, count: int) -> "ImageSet":
        """`count` images as `drawn_rows` chooses them; itself if `count` is 0 or there are no more."""
        return self if count == 0 or count >= len(self) else self.subset(drawn_rows(len(self), count))


def drawn_rows(total: int, most: int) -> NDArray[np.int64]:
    """The numbers of all `total` rows, ascending, or of `most` of them, drawn at random, always the same ones.

    Rows at equal distances could all be of one class, where samples cycle through them.
    """
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).permutation(total)[:most])


def content_sha256(about: Mapping[str, Any], *arrays: NDArray[Any]) -> str:
    """A digest of plain values and of the bytes of arrays, in hexadecimal."""
    total = hashlib.sha256(canonical_json(about))
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def split_images(
    split: ImageSplit,
    preprocessing: Preprocessing,
    *,
    name: str,
    dataset_sha256: str,
    class_names: tuple[str, ...],
    features_stem: Path | None,
    workers: int,
) -> ImageSet:
    """A split of a dataset as the VQ-GAN is fed, in the first view. Many labels of an image count as none."""
    size = preprocessing.size
    with_classes = split.labels.ndim == 1
    labels = split.labels.astype(np.int64) if with_classes else np.full(len(split), -1)
    about = {"dataset": dataset_sha256, "size": size, "channels": preprocessing.channels, **preprocessing.record}

    def read(batches: BatchesOfRows) -> Iterator[NDArray[np.uint8]]:
        for images in prepared_batches(split, batches, preprocessing, workers):
            yield images[:, 0]

    return ImageSet(
        name=name,
        sha256=content_sha256(about, labels, split.source_index),
        labels=labels,
        class_names=class_names if with_classes else (),
        shape=(preprocessing.channels, size, size),
        features_stem=features_stem,
        rows=np.arange(len(split)),
        read=read,
    )


def file_images(path: Path, split: str | None, size: int | None, workers: int, report: Report) -> ImageSet:
    """The pictures of a folder, zip or tar file, in class folders or flat; prepared at `size` pixels, if it is given.

    Every picture is decoded once before. The set is grey if no picture has colors. A single class counts as none.
    Raises UsageError if there are several splits and none is chosen, or if there is no such split; InputError for a
    broken picture and, without `size`, for pictures of several sizes.
    """
    preparation = PreprocessingOptions()
    splits, class_names = read_folder(path, preparation.background_rgb, report)
    chosen = chosen_split(str(path), split, tuple(splits))
    images = splits[chosen]
    assert isinstance(images.source, FileImages)
    content, (width, height), is_grey, in_color = _inspect_all(images.source, images, size is None, workers, report)
    channels = 1 if is_grey else 3
    shape = (channels, size or height, size or width)
    preprocessing = size and Preprocessing(size=size, channels=channels, options=preparation)

    def load(row: int) -> NDArray[np.uint8]:
        image = images.image(row)
        found = prepare(image, preprocessing)[0] if preprocessing else _to_array(image, channels)
        if found.shape != shape:
            raise InputError(f"{images.name_of(row)} has changed since it was checked", "run the command again")
        return found

    def read(batches: BatchesOfRows) -> Iterator[NDArray[np.uint8]]:
        with no_decoder_warnings():
            loaded = ordered_map(load, _flat(batches), workers, FILES_AHEAD_PER_WORKER * workers)
            for rows in batches:
                yield np.stack([next(loaded) for _ in rows])

    has_classes = len(class_names) > 1
    labels = images.labels.astype(np.int64) if has_classes else np.full(len(images), -1)
    about = {"size": size, "channels": channels, "classes": class_names if has_classes else (), "files": content}
    return ImageSet(
        name=f"{path}:{chosen}" if len(splits) > 1 else str(path),
        sha256=content_sha256(about, labels),
        labels=labels,
        class_names=class_names if has_classes else (),
        shape=shape,
        features_stem=stem_beside(path, f"-{chosen}" + (f"-{size}px" if size else "")),
        rows=np.arange(len(images)),
        read=read,
        stored_in_color=in_color,
    )


def npz_images(path: Path, report: Report) -> ImageSet:
    """The images of an .npz file as the evaluator of ADM reads them: arr_0 (N, H, W, 3) uint8, labels arr_1 (N,).

    The labels may be absent; classes are named by their numbers. Of three equal channels, one is taken. The file is
    read in order, in bounded memory, once here and once per reading. Raises InputError for anything else.
    """
    file = open_npz(path, report)
    names = tuple(map(str, range(int(file.labels.max(initial=-1)) + 1)))
    return ImageSet(
        name=str(path),
        sha256=content_sha256({"array": file.sha256, "channels": file.shape[0]}, file.labels),
        labels=file.labels,
        class_names=names,
        shape=file.shape,
        features_stem=stem_beside(path, ""),
        rows=np.arange(file.count),
        read=file.read,
        stored_in_color=file.stored_channels == 3,
    )


def chosen_split(source: str, asked: str | None, known: tuple[str, ...]) -> str:
    """The split that is asked for, or the only one. Raises UsageError if there is none, or a choice to make."""
    if asked is None and len(known) > 1:
        raise UsageError(
            f"{source} has several splits: {', '.join(known)}", f"name one of them, as in {source}:{known[-1]}"
        )
    if asked is not None and asked not in known:
        raise UsageError(f"{source} has no split {asked!r}", nearest_hint(asked, known))
    return asked or known[0]


def stem_beside(path: Path, ending: str) -> Path | None:
    """Where features of what lies at `path` are kept: beside it, under its name; None where no file can be written."""
    place = path if path.name not in ("", "..") else path.resolve()
    name = place.name if place.is_dir() else place.stem
    return place.with_name(name + ending) if name and os.access(place.parent, os.W_OK) else None


def _inspect_all(
    source: FileImages, images: ImageSplit, one_size: bool, workers: int, report: Report
) -> tuple[str, tuple[int, int], bool, bool]:
    """The digest of all files, the size (width, height) of the first, whether no image has colors, and could have.

    Raises InputError for a broken image and, with `one_size`, for two of different sizes.
    """
    content, all_grey, in_color = hashlib.sha256(), True, False
    indices = images.source_index.tolist()
    first_size = (0, 0)
    with no_decoder_warnings():
        inspections = ordered_map(partial(_inspect, source), indices, workers, FILES_AHEAD_PER_WORKER * workers)
        for row, (sha256, size, is_grey, stored_in_color, fault) in enumerate(inspections):
            if fault:
                message = source.broken(indices[row], fault).message
                raise InputError(message, "replace it, or move it out of the folder")
            first_size = size if row == 0 else first_size
            if one_size and size != first_size:
                raise InputError(
                    f"images have different sizes: {images.name_of(0)} {first_size[0]} x {first_size[1]} pixels, "
                    f"{images.name_of(row)} {size[0]} x {size[1]}",
                    "--size N prepares all at one size",
                )
            content.update(sha256)
            all_grey, in_color = all_grey and is_grey, in_color or stored_in_color
            report(Progress(task="check images", done=row + 1, total=len(indices), unit="images"))
    return content.hexdigest(), first_size, all_grey, in_color


def _inspect(source: FileImages, index: int) -> tuple[bytes, tuple[int, int], bool, bool, str]:
    """A file's SHA-256 digest, (width, height), whether it shows no colors, could do so, and what is wrong, or ""."""
    try:
        data = source.tree.read(source.names[index])
        image = decode(data, source.background)
    except BrokenImageError as error:
        return b"", (0, 0), True, False, str(error)
    is_grey = image.mode == "L"
    return hashlib.sha256(data).digest(), image.size, is_grey or _shows_no_color(image), not is_grey, ""


def _shows_no_color(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())


def _to_array(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """A grey or RGB image -> (C, H, W). Three equal channels give the same level of grey."""
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _flat(batches: BatchesOfRows) -> Iterator[int]:
    return (row for rows in batches for row in rows)
