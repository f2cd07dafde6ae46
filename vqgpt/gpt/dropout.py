"""Dropout on a CPU: the masks of some images of a step, and attention that uses them.

    (seed, step, image's place in the batch) -> 0 or 1 for each activation, int16 -> float32 factors

torch draws dropout on a CPU in one thread, at 5 ns per activation: a third of a step of the default GPT. Here one draw
of 64 bits decides on four activations. An image's masks depend on (seed, step, place) alone, so that they are the same
however a batch is cut into passes or among processes. Elsewhere torch's own dropout is used.
"""

import math
from typing import Any

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
        words = math.ceil(masks_per_image / 4)
        bits = np.empty((len(places), words), dtype=np.uint64)
        for row, place in enumerate(places):
            bits[row] = np.random.SFC64([seed, step, place]).random_raw(words)
        lowest_kept = dropped - LEVELS // 2
        self.kept = torch.from_numpy(bits.view(np.int16)).clamp_(lowest_kept - 1, lowest_kept).sub_(lowest_kept - 1)
        self.position = 0

    def keep(self, *shape: int) -> Tensor:
        """The next masks, (B, *shape) float32: 1 where an activation stays."""
        start, self.position = self.position, self.position + math.prod(shape)
        assert self.position <= self.kept.shape[1]
        return self.kept[:, start : self.position].float().view(-1, *shape)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of x (B, T, D)."""
        return x * self.keep(*x.shape[1:]).mul_(self.scale)


class DroppedAttention(torch.autograd.Function):
    """Causal attention with dropout: queries, keys, values (N, T, d), keep (N, T, T), scale -> (N, T, d).

    Softmax in place, and the backward pass of Dao et al. 2022 (eq. 4): the sum over keys that the gradient of a softmax
    needs is one inner product of the output and its gradient. For small heads this beats the flash kernel.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, scale: float) -> Tensor:
        """Keeps the weights before and after dropout for the backward pass."""
        positions = q.shape[1]
        future = torch.full((1, positions, positions), -math.inf, dtype=q.dtype).triu_(1)
        weights = torch.baddbmm(future, q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5)
        torch.softmax(weights, -1, out=weights)
        kept = weights * keep
        y = torch.bmm(kept, v).mul_(scale)
        ctx.save_for_backward(q, k, v, weights, kept, y)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and values."""
        (gradient,) = gradients
        q, k, v, weights, kept, y = ctx.saved_tensors
        inner = (gradient * y).sum(-1, keepdim=True)
        scaled = gradient * ctx.scale
        of_scores = torch.bmm(scaled, v.transpose(1, 2)).mul_(kept).addcmul_(weights, inner, value=-1)
        of_scores.mul_(q.shape[2] ** -0.5)
        of_values = torch.bmm(kept.transpose(1, 2), scaled)
        return torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q), of_values, None, None
