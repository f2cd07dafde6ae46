"""Images -> what the VQ-GAN is fed, in batches, decoded ahead by threads while the network works.

    ImageSplit  --prepared_batches-->  (n, V, C, size, size) uint8, one after the other
                --load_tensor-->       (N, C, size, size) uint8, all at once

Pillow decodes and resizes outside Python's lock, so threads are enough.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqgpt.data.decoding import no_decoder_warnings
from vqgpt.data.images import ArrayImages, ImageSplit, ordered_map
from vqgpt.data.options import VIEWS, ZOOM_OF_CROPS, Preprocessing
from vqgpt.errors import ResourceError
from vqgpt.progress import Progress, Report

IMAGES_PER_TASK = 16
BATCH_OF_LOADING = 1024
SHARE_OF_MEMORY = 0.7  # that one set of images may take


def prepare(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """A grey or RGB image -> (V, C, size, size) uint8."""
    image = image.convert("L" if preprocessing.channels == 1 else "RGB")
    size, fit = preprocessing.size, preprocessing.options.fit
    views = [VIEWS[name] for name in preprocessing.views]
    windows = {}
    for window in dict.fromkeys(view.window for view in views):
        box = window_box(image.size, window, fit)
        windows[window] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    seen = np.stack([windows[view.window][:, ::-1] if view.mirrored else windows[view.window] for view in views])
    return seen.reshape(len(views), size, size, -1).transpose(0, 3, 1, 2)


def window_box(
    size: tuple[int, int], window: tuple[float, float] | None, fit: str
) -> tuple[float, float, float, float]:
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

    def prepare_rows(rows: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([prepare(split.image(row), preprocessing) for row in rows])

    def tasks(rows: Sequence[int]) -> list[Sequence[int]]:
        return [rows[start : start + IMAGES_PER_TASK] for start in range(0, len(rows), IMAGES_PER_TASK)]

    if isinstance(split.source, ArrayImages):
        workers = min(workers, 1)  # nothing to decode: more threads would only wait for Python's lock
    largest = max((len(tasks(rows)) for rows in batches), default=0)
    with no_decoder_warnings():
        every_task = (task for rows in batches for task in tasks(rows))
        prepared = ordered_map(prepare_rows, every_task, workers, ahead=workers + largest)
        for rows in batches:
            yield np.concatenate([next(prepared) for _ in tasks(rows)])


def row_batches(start: int, stop: int, batch_size: int) -> list[range]:
    """The numbers from `start` to `stop`, in batches."""
    return [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]


def load_tensor(split: ImageSplit, preprocessing: Preprocessing, workers: int, name: str, report: Report) -> Tensor:
    """All images of a split, in the first view: (N, C, size, size) uint8.

    Raises ResourceError before anything is read if they do not fit into memory, and InputError for a broken image.
    """
    shape = (len(split), preprocessing.channels, preprocessing.size, preprocessing.size)
    check_fits_memory(int(np.prod(shape)), f"{len(split):,} images of {name} at {preprocessing.size} pixels")
    images = torch.empty(shape, dtype=torch.uint8)
    batches = row_batches(0, len(split), BATCH_OF_LOADING)
    for rows, batch in zip(batches, prepared_batches(split, batches, preprocessing, workers), strict=True):
        images[rows.start : rows.stop] = torch.from_numpy(batch[:, 0])
        report(Progress(task=f"load {name}", done=rows.stop, total=len(split), unit="images"))
    return images


def check_fits_memory(needed_bytes: int, what: str) -> None:
    """Raise ResourceError if this machine has not the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed_bytes > SHARE_OF_MEMORY * memory:
        raise ResourceError(
            f"{what} take {needed_bytes / 1e9:.1f} GB of memory; this machine has {memory / 1e9:.1f} GB",
            "train on a part of them with --limit, or give a smaller --size",
        )
