"""What a dataset is once its files are understood: splits of images, decoded when they are asked for, ahead by threads.

    ImageSplit  --prepared_batches-->  (n, V, C, size, size) uint8, one after the other, as the VQ-GAN is fed
                --load_tensor-->       (N, C, size, size) uint8, all at once

Pillow decodes and resizes outside Python's lock, so threads are enough. Must not import torch before `load_tensor`
runs.
"""

import hashlib
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqgpt.data.decoding import BrokenImageError, decode, no_decoder_warnings
from vqgpt.data.file_trees import FileTree
from vqgpt.data.options import VIEWS, ZOOM_OF_CROPS, Preprocessing
from vqgpt.errors import InputError, ResourceError
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
FILES_AHEAD_PER_WORKER = 8
IMAGES_PER_TASK = 16
BATCH_OF_LOADING = 1024
SHARE_OF_MEMORY = 0.7  # that images may take


class ArrayImages:
    """Images that are in memory: (N, H, W) or (N, H, W, 3) uint8."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = np.ascontiguousarray(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return Image.fromarray(self.pixels[index])

    def name_of(self, index: int) -> str:
        """What errors call an image."""
        return f"image {index}"

    def digest_parts(self) -> Iterator[bytes]:
        """The shape and all pixels."""
        yield str(self.pixels.shape).encode()
        yield from (rows.tobytes() for rows in np.array_split(self.pixels, max(1, len(self.pixels) // 1024)))


class FileImages:
    """Image files of a tree, by name; `background` shows through transparent ones."""

    def __init__(self, tree: FileTree, names: tuple[str, ...], background: tuple[int, int, int]) -> None:
        self.tree = tree
        self.names = names
        self.background = background

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """One image, grey ("L") or "RGB", read and decoded now. Raises OSError, and InputError if it is broken."""
        try:
            return decode(self.tree.read(self.names[index]), self.background)
        except BrokenImageError as error:
            raise self.broken(index, str(error)) from None

    def name_of(self, index: int) -> str:
        """What errors call an image."""
        return str(self.tree.path / self.names[index])

    def broken(self, index: int, fault: str) -> InputError:
        """The error that names a broken image."""
        return InputError(f"{self.name_of(index)} is broken ({fault})", "replace it, or give --on-error skip")

    def digest_parts(self) -> Iterator[bytes]:
        """Names and sizes, not contents: those of a published dataset do not change."""
        yield from (os.fsencode(name) + f" {self.tree.sizes[name]}\n".encode() for name in self.names)


ImageSource = ArrayImages | FileImages  # images by their number, in the order of the dataset's own files


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Some images of a source: image n is number `source_index[n]` there.

    `labels` (n,) int64, -1 for none, or (n, L) uint8 bits; `source_index` (n,) int64.
    """

    source: ImageSource
    labels: NDArray[np.integer[Any]]
    source_index: NDArray[np.int64]

    __repr__ = one_line

    @classmethod
    def whole(cls, source: ImageSource, labels: NDArray[np.integer[Any]]) -> "ImageSplit":
        """All images of a source. Raises ValueError if there are not as many labels."""
        if len(source) != len(labels):
            raise ValueError(f"{len(source):,} images and {len(labels):,} labels")
        return cls(source=source, labels=labels, source_index=np.arange(len(source)))

    def __len__(self) -> int:
        return len(self.source_index)

    def image(self, row: int) -> Image.Image:
        """Image `row` of the split."""
        return self.source.image(int(self.source_index[row]))

    def name_of(self, row: int) -> str:
        """What errors call image `row`."""
        return self.source.name_of(int(self.source_index[row]))

    def evenly_spaced(self, count: int) -> "ImageSplit":
        """`count` images from all over the split, or all if it has no more."""
        return self.subset([row * len(self) // count for row in range(count)]) if count < len(self) else self

    def subset(self, rows: list[int] | NDArray[np.bool_]) -> "ImageSplit":
        """The images at `rows`: their numbers, or True for each one to keep."""
        return replace(self, labels=self.labels[rows], source_index=self.source_index[rows])


@dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """A dataset. `sha256` identifies all its images and labels, `skipped` names the broken ones that were left out."""

    splits: dict[str, ImageSplit]
    class_names: tuple[str, ...]
    channels: int
    sha256: str
    skipped: tuple[str, ...] = ()

    __repr__ = one_line


def digest(splits: dict[str, ImageSplit]) -> str:
    """SHA-256 over the images and labels of all splits."""
    total = hashlib.sha256()
    for name, split in splits.items():
        total.update(f"{name} {split.labels.shape}\n".encode())
        for part in split.source.digest_parts():
            total.update(part)
        total.update(split.labels.tobytes())
        total.update(split.source_index.tobytes())
    return total.hexdigest()


def hold_out(train: ImageSplit, share: float) -> tuple[ImageSplit, ImageSplit]:
    """Divide a split in two: what remains for training, and what `held_out_rows` says. Raises InputError as it does."""
    held_out = held_out_rows(train.labels, share)
    return train.subset(~held_out), train.subset(held_out)


def held_out_rows(labels: NDArray[np.integer[Any]], share: float) -> NDArray[np.bool_]:
    """Which images are held out, to be judged on, (n,): `share` of each class, evenly spaced.

    The choice depends on the labels, (n,) or (n, L), alone. Images with many labels, or none, count as one class.
    Raises InputError if all, or none, would be held out.
    """
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    by_class = np.argsort(classes, kind="stable")
    held_out[by_class[np.diff(np.floor(np.arange(len(labels) + 1) * share)) > 0]] = True
    if not held_out.any() and len(labels) > 1:
        held_out[-1] = True
    if not held_out.any() or held_out.all():
        raise InputError(
            f"{len(labels)} training image{'s'[: len(labels) != 1]} cannot be divided to hold out {share:g} of them",
            "give more images, or another --val-split",
        )
    return held_out


def ordered_map(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int, ahead: int, together: int = 1
) -> Iterator[ResultT]:
    """`map(function, items)` with up to `ahead` tasks done in advance by `workers` threads; with none, plain `map`.

    A task is a few items `together`. What `function` raises is raised here, in order, before the results of its task.
    A consumer that leaves early waits for the items that the threads have in hand, and no others.
    """
    if not workers:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting: deque[Future[list[ResultT]]] = deque()
    leaving = threading.Event()

    def run(task: list[ItemT]) -> list[ResultT]:
        return [function(item) for item in task if not leaving.is_set()]

    try:
        remaining = iter(items)
        while task := list(itertools.islice(remaining, together)):
            waiting.append(executor.submit(run, task))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        leaving.set()
        executor.shutdown(cancel_futures=True)


class Part(NamedTuple):
    """What is seen of an image: a box in its pixels, mirrored left to right or not, then turned anticlockwise."""

    box: Box
    mirrored: bool = False
    quarter_turns: int = 0

    def turned(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels (size, size, ...) of its box -> as they are seen."""
        return np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.quarter_turns)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """A grey or RGB image -> (V, C, size, size) uint8."""
    views = [VIEWS[name] for name in preprocessing.views]
    boxes = [window_box(image.size, view.window, preprocessing.options.fit) for view in views]
    parts = [Part(box, view.mirrored, view.quarter_turns) for box, view in zip(boxes, views, strict=True)]
    return parts_of_image(image, preprocessing, parts)


def parts_of_image(image: Image.Image, preprocessing: Preprocessing, parts: Sequence[Part]) -> NDArray[np.uint8]:
    """Some parts of a grey or RGB image, each resized: (n, C, size, size) uint8."""
    image, size = image.convert("L" if preprocessing.channels == 1 else "RGB"), preprocessing.size
    boxes = dict.fromkeys(part.box for part in parts)
    resized = {box: np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box)) for box in boxes}
    seen = np.stack([part.turned(resized[part.box]) for part in parts])
    return seen.reshape(len(parts), size, size, -1).transpose(0, 3, 1, 2)


def window_box(size: tuple[int, int], window: tuple[float, float] | None, fit: str) -> Box:
    """The part of an image of (width, height) in a view's window: left, top, right, bottom in its pixels.

    The whole begins at a whole pixel, so that an image that needs no resizing stays as it is.
    """
    width, height = size if fit == "stretch" else (min(size), min(size))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    if window is None:
        return left, top, left + width, top + height
    window_width, window_height = width / ZOOM_OF_CROPS, height / ZOOM_OF_CROPS
    top_of_window = top + window[0] * (height - window_height)
    left_of_window = left + window[1] * (width - window_width)
    return left_of_window, top_of_window, left_of_window + window_width, top_of_window + window_height


def prepared_batches(
    split: ImageSplit, batches: Sequence[Sequence[int]], preprocessing: Preprocessing, workers: int
) -> Iterator[NDArray[np.uint8]]:
    """The rows of each batch as (n, V, C, size, size), in order; `workers` threads are ahead, or none.

    Raises InputError for a broken image.
    """
    largest = max(map(len, batches), default=0)
    yield from batches_ahead(split, lambda row: prepare(split.image(row), preprocessing), batches, workers, largest)


def batches_ahead(
    split: ImageSplit,
    prepare_item: Callable[[ItemT], NDArray[np.uint8]],
    batches: Iterable[Sequence[ItemT]],
    workers: int,
    largest: int,
) -> Iterator[NDArray[np.uint8]]:
    """What `prepare_item` makes of each item of a split, stacked batch by batch, in order.

    The batches may be endless. As many items as the `largest` of them has, and those that the `workers` are making, are
    ahead; threads take a few at a time.
    """
    if isinstance(split.source, ArrayImages):
        workers = min(workers, 1)  # nothing to decode: more threads would only wait for Python's lock
    to_make, to_give = itertools.tee(batches)
    with no_decoder_warnings():
        every_item = itertools.chain.from_iterable(to_make)
        ahead = workers + math.ceil(largest / IMAGES_PER_TASK)
        made = ordered_map(prepare_item, every_item, workers, ahead, IMAGES_PER_TASK)
        for batch in to_give:
            yield np.stack([next(made) for _ in batch])


def row_batches(start: int, stop: int, batch_size: int) -> list[range]:
    """The numbers from `start` to `stop`, in batches."""
    return [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]


def load_tensor(split: ImageSplit, preprocessing: Preprocessing, workers: int, name: str, report: Report) -> "Tensor":
    """All images of a split, in the first view: (N, C, size, size) uint8.

    Raises ResourceError before anything is read if they do not fit into memory, and InputError for a broken image.
    """
    import torch

    shape = (len(split), preprocessing.channels, preprocessing.size, preprocessing.size)
    check_fits_memory(math.prod(shape), f"{len(split):,} images of {name} at {preprocessing.size} pixels")
    images = torch.empty(shape, dtype=torch.uint8)
    batches = row_batches(0, len(split), BATCH_OF_LOADING)
    for rows, batch in zip(batches, prepared_batches(split, batches, preprocessing, workers), strict=True):
        images[rows.start : rows.stop] = torch.from_numpy(batch[:, 0])
        report(Progress(task=f"load {name}", done=rows.stop, total=len(split), unit="images"))
    return images


def check_fits_memory(needed_bytes: int, what: str) -> None:
    """Raise ResourceError if this machine has not the memory."""
    if lack := lack_of_memory(needed_bytes):
        raise ResourceError(f"{what} {lack}", "give a smaller --size, or fewer images")


def lack_of_memory(needed_bytes: int) -> str:
    """What to say of images that take more memory than they may on this machine, "" if they fit."""
    if needed_bytes <= SHARE_OF_MEMORY * memory_of_machine():
        return ""
    most = f"{SHARE_OF_MEMORY:.0%} of this machine's {memory_of_machine() / 1e9:.1f} GB"
    return f"take {needed_bytes / 1e9:.3f} GB of memory, more than {most}"


def memory_of_machine() -> int:
    """Bytes, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
