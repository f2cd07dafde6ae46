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
QUERIES = 32  # of a head, in one block


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
        """The next masks, (B, *shape) int16: 1 where an activation stays, 0 where it is dropped."""
        start, self.position = self.position, self.position + math.prod(shape)
        assert self.position <= self.kept.shape[1]
        return self.kept[:, start : self.position].view(-1, *shape)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of x (B, T, D)."""
        return x * self.keep(*x.shape[1:]).float().mul_(self.scale)


def query_blocks(positions: int) -> list[slice]:
    """Causal attention is computed for some queries at a time: the keys after them are not looked at."""
    return [slice(first, min(first + QUERIES, positions)) for first in range(0, positions, QUERIES)]


def attention_masks(positions: int) -> int:
    """How many weights of a head `DroppedAttention` computes, and drops some of."""
    return sum((block.stop - block.start) * block.stop for block in query_blocks(positions))


class DroppedAttention(torch.autograd.Function):
    """Causal attention with dropout: queries, keys and values (3, B, A, T, d), the masks -> (B, A, T, d).

    Heads lie with their features first, (B * A, d, T), for a matrix product whose result has few columns is slow. The
    backward pass is that of Dao et al. 2022 (eq. 4): the sum over keys that the gradient of a softmax needs is one
    inner product of the output and its gradient. For small heads this beats the flash kernel.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, masks: Masks) -> Tensor:
        """Keeps the softmax's weights for the backward pass."""
        _, images, heads, positions, features = qkv.shape
        q, k, v = qkv.transpose(-1, -2).flatten(1, 2).contiguous()
        q *= features**-0.5
        v *= masks.scale
        y = torch.empty_like(v)
        future = torch.full((QUERIES, QUERIES), -math.inf, dtype=q.dtype).triu_(1)
        kept, weights = [], []
        for block in query_blocks(positions):
            keep = masks.keep(heads, block.stop - block.start, block.stop).flatten(0, 1)
            scores = torch.bmm(q[:, :, block].transpose(1, 2), k[:, :, : block.stop])
            scores[:, :, block].add_(future[: scores.shape[1], : scores.shape[1]])
            weights.append(torch.softmax(scores, -1))
            kept.append(keep)
            y[:, :, block] = torch.bmm(v[:, :, : block.stop], (weights[-1] * keep).transpose(1, 2))
        ctx.save_for_backward(q, k, v, y, *kept, *weights)
        ctx.value_scale = masks.scale
        return y.view(images, heads, features, positions).transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of queries, keys and values."""
        q, k, v, y, *rest = ctx.saved_tensors
        kept, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        images, heads, positions, features = gradients[0].shape
        gradient = gradients[0].transpose(-1, -2).flatten(0, 1).contiguous()
        inner = (gradient * y).sum(1)[:, :, None]
        of_qkv = q.new_zeros(3, *q.shape)
        of_q, of_k, of_v = of_qkv
        for block, keep, weight in zip(query_blocks(positions), kept, weights, strict=True):
            of_y, keep = gradient[:, :, block], keep.to(q.dtype)
            of_scores = torch.bmm(of_y.transpose(1, 2), v[:, :, : block.stop])
            of_scores.mul_(keep).sub_(inner[:, block]).mul_(weight)
            of_q[:, :, block] = torch.bmm(k[:, :, : block.stop], of_scores.transpose(1, 2))
            of_k[:, :, : block.stop].add_(torch.bmm(q[:, :, block], of_scores))
            of_v[:, :, : block.stop].add_(torch.bmm(of_y, keep.mul_(weight)))
        of_q *= features**-0.5
        of_v *= ctx.value_scale
        return of_qkv.view(3, images, heads, features, positions).transpose(-1, -2), None
