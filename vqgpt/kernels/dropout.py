"""The masks of dropout on a CPU, of some images of a step.

    (seed, step, image's place in the batch) -> 16 bits of chance for each activation, of which a rate makes 0 or 1

torch draws dropout on a CPU in one thread, at 5 ns per activation: a third of a step of the default GPT. Here one draw
of 64 bits decides on four activations. An image's masks depend on (seed, step, place) alone, so that they are the same
however a batch is cut into passes or among processes. Elsewhere torch's own dropout is used.
"""

import math

import numpy as np
import torch
from torch import Tensor

LEVELS = 2**16  # a draw of 16 bits decides on one activation; rates are rounded to 1 / LEVELS


class Masks:
    """The masks of B images, handed out site by site in the order in which the network asks."""

    def __init__(self, rate: float, seed: int, step: int, places: range, masks_per_image: int) -> None:
        """Draw `masks_per_image` masks for the images at some places of a step's batch. SFC64 is numpy's fastest."""
        dropped = round(rate * LEVELS)
        self.scale = LEVELS / (LEVELS - dropped)
        self.lowest_kept = dropped - LEVELS // 2  # of the draws, which are signed
        words = math.ceil(masks_per_image / 4)
        bits = np.empty((len(places), words), dtype=np.uint64)
        for row, place in enumerate(places):
            bits[row] = np.random.SFC64([seed, step, place]).random_raw(words)
        self.drawn = torch.from_numpy(bits.view(np.int16))  # (B, at least masks_per_image)
        self.position = 0

    def draw(self, count: int) -> Tensor:
        """The next bits of chance, (B, count) int16: an activation stays where they are at least `lowest_kept`."""
        start, self.position = self.position, self.position + count
        assert self.position <= self.drawn.shape[1]
        return self.drawn[:, start : self.position]

    def keep(self, *shape: int) -> Tensor:
        """The next masks, (B, *shape) bool: whether an activation stays."""
        return (self.draw(math.prod(shape)) >= self.lowest_kept).view(-1, *shape)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of x (B, T, D)."""
        return x * self.keep(*x.shape[1:]).float().mul_(self.scale)
