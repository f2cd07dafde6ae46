"""Random crops and flips of training images.

    (seed, epoch, row) -> a view: which part of image `row` that epoch sees, mirrored or not

Nothing else counts: neither the batch, nor the threads, nor how many processes there are. Must not import torch.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import NamedTuple

from vqgpt.data.options import Augment

SMALLEST_CROP = 0.8  # of the sides; as in the training of ADM (Dhariwal and Nichol 2021) and of LlamaGen


class DrawnWindow(NamedTuple):
    """A window of `share` of the sides of an image's square, at (top, left) of 0 to 1, anywhere in the image."""

    share: float
    top: float
    left: float


class DrawnView(NamedTuple):
    """How an image is seen: in a window, or as always; mirrored left to right or not."""

    window: DrawnWindow | None
    mirrored: bool


WHOLE = DrawnView(None, False)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn for each image in each epoch, anew."""

    kinds: tuple[Augment, ...]
    seed: int

    def view(self, epoch: int, row: int) -> DrawnView:
        """The view of an image, by its row in the training split."""
        share, top, left, side = _uniform_numbers(self.seed, epoch, row)
        window = DrawnWindow(SMALLEST_CROP + (1 - SMALLEST_CROP) * share, top, left)
        return DrawnView(window if "crop" in self.kinds else None, "hflip" in self.kinds and side < 0.5)


def _uniform_numbers(*key: int) -> tuple[float, ...]:
    """Four numbers in [0, 1), of 53 bits: those of no other key."""
    digest = hashlib.sha256(repr(("augment", *key)).encode()).digest()
    return tuple((word >> 11) * 2.0**-53 for word in struct.unpack("<4Q", digest))
