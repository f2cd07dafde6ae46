"""The images that a VQ-GAN is trained on: in memory, or decoded as they are needed, ahead of the network.

    a split of a dataset  ->  the images of a step's rows, (n, C, H, W) uint8 on the CPU, in views drawn for them

Both give the same images. A crop is cut out of the image as its file has it; what is in memory was resized before, and
would give others. So crops are always decoded anew.
"""

import math
from collections.abc import Generator, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqgpt.data.augmentation import WHOLE, Augmentation, DrawnView, DrawnWindow
from vqgpt.data.images import Box, ImageSplit, Part, batches_ahead, parts_of_image, window_box
from vqgpt.data.options import Preprocessing
from vqgpt.errors import InputError, ResourceError
from vqgpt.runtime.device import local_rows, world_size
from vqgpt.runtime.process import shortage
from vqgpt.training.schedule import Schedule, Step

Drawn = tuple[int, DrawnView]  # a row of the split, and the view to take of it


class LoadedImages:
    """Images (N, C, H, W) uint8 in memory; they can be mirrored, and not cropped."""

    def __init__(self, images: Tensor, augmentation: Augmentation | None = None) -> None:
        assert augmentation is None or "crop" not in augmentation.kinds
        self.images, self.augmentation = images, augmentation

    def batch(self, step: Step) -> Tensor:
        """The images of this rank's rows of a step."""
        rows = local_rows(step.rows)
        images = self.images[rows]
        if self.augmentation is None:
            return images
        mirrored = torch.tensor([self.augmentation.view(step.epoch, row).mirrored for row in rows.tolist()])
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def passes(self, rows: Tensor, at_once: int) -> Generator[Tensor]:
        """Some images as they are, so many at a time."""
        return (self.images[some] for some in rows.split(at_once))

    def close(self) -> None:
        """Nothing is open."""


class StreamedImages:
    """Images of a split, decoded by threads while the network computes. To be closed.

    They follow the steps of the schedule, about a batch ahead, and no others are in memory. Every rank decodes its own
    rows alone.
    """

    def __init__(
        self,
        split: ImageSplit,
        preprocessing: Preprocessing,
        workers: int,
        schedule: Schedule,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.split, self.preprocessing, self.workers = split, preprocessing, workers
        self.schedule, self.augmentation = schedule, augmentation
        self.ahead: Generator[Tensor] | None = None
        self.next_step: int | None = None

    def batch(self, step: Step) -> Tensor:
        """The images of this rank's rows of a step. Raises what `drawn_images` raises."""
        if self.ahead is None or step.index != self.next_step:
            self.close()
            self.ahead = self._follow(step.index)
        self.next_step = step.index + 1
        return next(self.ahead)

    def passes(self, rows: Tensor, at_once: int) -> Generator[Tensor]:
        """Some images as they are, so many at a time. Raises what `drawn_images` raises."""
        return whole_images(self.split, self.preprocessing, self.workers, rows, at_once)

    def close(self) -> None:
        """Drop what waits to be decoded; what a thread is decoding is waited for."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    def _follow(self, first: int) -> Generator[Tensor]:
        """The images of the steps from `first` on."""
        batches = (self._drawn(step) for step in self.schedule.outlook(first))
        largest = math.ceil(self.schedule.batch_size / world_size())
        return drawn_images(self.split, self.preprocessing, self.workers, batches, largest)

    def _drawn(self, step: Step) -> list[Drawn]:
        rows = local_rows(step.rows).tolist()
        return [(row, self.augmentation.view(step.epoch, row) if self.augmentation else WHOLE) for row in rows]


def whole_images(
    split: ImageSplit, preprocessing: Preprocessing, workers: int, rows: Tensor, at_once: int
) -> Generator[Tensor]:
    """Rows of a split as they are, so many at a time, (n, C, H, W) uint8. Raises what `drawn_images` raises."""
    batches = ([(row, WHOLE) for row in some.tolist()] for some in rows.split(at_once))
    return drawn_images(split, preprocessing, workers, batches, at_once)


def drawn_images(
    split: ImageSplit, preprocessing: Preprocessing, workers: int, batches: Iterable[Sequence[Drawn]], largest: int
) -> Generator[Tensor]:
    """The images of each batch in their views, (n, C, H, W) uint8; `workers` threads are the `largest` batch ahead.

    Raises InputError or MissingDataError, which name it, for an image that is broken, has changed or is gone, and
    ResourceError for one that memory does not suffice for.
    """

    def prepare_row(drawn: Drawn) -> NDArray[np.uint8]:
        row, view = drawn
        try:
            return prepare_view(split.image(row), preprocessing, view)
        except (OSError, MemoryError) as error:
            name = split.name_of(row)
            if lacking := shortage(error):
                raise ResourceError(f"{name}: {lacking.message}", lacking.hint) from error
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{name} cannot be read ({reason})", "check its permissions, and the disk") from error

    for images in batches_ahead(split, prepare_row, batches, workers, largest):
        yield torch.from_numpy(images)


def prepare_view(image: Image.Image, preprocessing: Preprocessing, view: DrawnView) -> NDArray[np.uint8]:
    """A grey or RGB image -> (C, size, size) uint8, in a view that was drawn for it."""
    fit = preprocessing.options.fit
    box = drawn_box(image.size, view.window, fit) if view.window else window_box(image.size, None, fit)
    return parts_of_image(image, preprocessing, [Part(box, view.mirrored)])[0]


def drawn_box(size: tuple[int, int], window: DrawnWindow, fit: str) -> Box:
    """The part of an image of (width, height) in a drawn window: left, top, right, bottom in its pixels.

    Cropping, it is square, and may lie where the centre crop does not reach.
    """
    width, height = (window.share * side for side in (size if fit == "stretch" else (min(size), min(size))))
    left, top = window.left * (size[0] - width), window.top * (size[1] - height)
    return left, top, min(left + width, size[0]), min(top + height, size[1])  # a sum may be rounded up
