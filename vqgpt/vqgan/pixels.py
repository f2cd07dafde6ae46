"""The map between stored pixels and what the networks see. Knows neither datasets nor tokens."""

import torch
from torch import Tensor

PIXELS_PER_PASS = 2**20
MOST_IMAGES_PER_PASS = 256


def images_per_pass(height: int, width: int) -> int:
    """How many images of this size a network takes at once where nothing is to be learnt: few of the large ones."""
    return max(1, min(MOST_IMAGES_PER_PASS, PIXELS_PER_PASS // (height * width)))


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1. Inverse of `to_uint8`."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float -1..1 -> uint8 0..255, rounded. Inverse of `to_unit_range`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
