"""Causal attention with dropout on a CPU, and the masks of dropout.

    queries, keys and values (B, T, 3, A, d), masks -> what the heads see (B, T, A, d)
    (seed, step, image's place in the batch) -> 16 bits of chance for each activation, of which a rate makes 0 or 1

By `attention.c` in float32, where there is a C compiler and d is a multiple of 8; else by torch. Queries are taken in
blocks, and the keys after a block are not looked at. Letters: B images, T positions, A heads, d features of a head.

torch draws dropout on a CPU in one thread, at 5 ns per activation: a third of a step of the default GPT. Here one draw
of 64 bits decides on four activations. An image's masks depend on (seed, step, place) alone, so they are the same
however a batch is cut into passes or among processes.
"""

import ctypes
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.kernels.build import call, compiled_library

SOURCE = Path(__file__).with_name("attention.c")
LEVELS = 2**16  # a draw of 16 bits decides on one activation; rates are rounded to 1 / LEVELS
QUERIES = 32  # of a head, in one block; `attention.c` has the same number
VECTOR_WIDTH = 8  # of the C code, in numbers


class Masks:
    """The masks of B images, handed out site by site in the order in which the network asks."""

    def __init__(self, rate: float, seed: int, step: int, places: range, masks_per_image: int) -> None:
        """Draw `masks_per_image` masks for the images at some places of a step's batch. SFC64 is numpy's fastest."""
        dropped = round(rate * LEVELS)
        self.scale = LEVELS / (LEVELS - dropped)
        self.threshold = dropped - LEVELS // 2  # of the draws, which are signed
        words = math.ceil(masks_per_image / 4)
        bits = np.empty((len(places), words), dtype=np.uint64)
        for row, place in enumerate(places):
            bits[row] = np.random.SFC64([seed, step, place]).random_raw(words)
        self.drawn = torch.from_numpy(bits.view(np.int16))  # (B, at least masks_per_image)
        self.position = 0

    def draw(self, count: int) -> Tensor:
        """The next bits of chance, (B, count) int16: an activation stays where they are at least `threshold`."""
        start, self.position = self.position, self.position + count
        assert self.position <= self.drawn.shape[1]
        return self.drawn[:, start : self.position]

    def keep(self, *shape: int) -> Tensor:
        """The next masks, (B, *shape) bool: whether an activation stays."""
        return (self.draw(math.prod(shape)) >= self.threshold).view(-1, *shape)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of x (B, T, D)."""
        return x * self.keep(*x.shape[1:]).float().mul_(self.scale)


def query_blocks(positions: int) -> list[slice]:
    """The blocks of the queries."""
    return [slice(first, min(first + QUERIES, positions)) for first in range(0, positions, QUERIES)]


def attention_masks(positions: int) -> int:
    """How many weights of a head are computed, and some of them dropped."""
    return sum((block.stop - block.start) * block.stop for block in query_blocks(positions))


def attend(qkv: Tensor, masks: Masks | None) -> Tensor:
    """Attention with dropout by `masks`, or without, of (B, T, 3, A, d) -> (B, T, A, d).

    Raises ValueError for another shape, and for masks of another number of images.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention takes (images, positions, 3, heads, features), not {tuple(qkv.shape)}")
    if masks and len(masks.drawn) != len(qkv):
        raise ValueError(f"attention takes masks of {len(qkv)} images, not of {len(masks.drawn)}")
    suits = qkv.is_cpu and qkv.dtype == torch.float32 and qkv.shape[-1] % VECTOR_WIDTH == 0 and qkv.numel()
    library = compiled_library(SOURCE) if suits else None
    if library:
        return cast(Tensor, CompiledAttention.apply(qkv, masks, library))  # type: ignore[no-untyped-call]
    if masks:
        return cast(Tensor, DroppedAttention.apply(qkv, masks))  # type: ignore[no-untyped-call]
    q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class CompiledAttention(torch.autograd.Function):
    """By `attention.c`, in float32. Called from several threads at once."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, masks: Masks | None, library: ctypes.CDLL) -> Tensor:
        """Keeps the sums of the softmax for the backward pass, which computes its weights again."""
        images, positions, _, heads, features = qkv.shape
        qkv = qkv.contiguous()
        drawn = masks.draw(heads * attention_masks(positions)) if masks else torch.empty(1, 0, dtype=torch.int16)
        threshold = masks.threshold if masks else 0
        sizes = torch.tensor([images, positions, heads, features, drawn.stride(0), threshold])
        scratch = qkv.new_empty(call(library, "scratch_size", sizes))
        y, sums = qkv.new_empty(images, positions, heads, features), qkv.new_empty(images, heads, positions)
        call(library, "attend", sizes, qkv, drawn[0], y, sums, scratch)  # those of other images lie behind
        ctx.save_for_backward(sizes, qkv, drawn, y, sums, scratch)
        ctx.library = library
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of queries, keys and values."""
        sizes, qkv, drawn, y, sums, scratch = ctx.saved_tensors
        of_qkv = torch.empty_like(qkv)
        gradient = gradients[0].contiguous()
        call(ctx.library, "attend_backward", sizes, qkv, drawn[0], y, sums, gradient, of_qkv, scratch)
        return of_qkv, None, None


class DroppedAttention(torch.autograd.Function):
    """By torch.

    Heads lie with their features first, (B * A, d, T), for a matrix product whose result has few columns is slow. The
    backward pass is that of Dao et al. 2022 (eq. 4): the sum over keys that the gradient of a softmax needs is one
    inner product of the output and its gradient. For small heads this beats the flash kernel.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, masks: Masks) -> Tensor:
        """Keeps the softmax's weights for the backward pass."""
        images, positions, _, heads, features = qkv.shape
        q, k, v = qkv.permute(2, 0, 3, 4, 1).flatten(1, 2).contiguous()
        q *= features**-0.5
        v *= masks.scale
        y = torch.empty_like(v)
        future = torch.full((QUERIES, QUERIES), -math.inf, dtype=q.dtype).triu_(1)
        keeps, weights = [], []
        for block in query_blocks(positions):
            keep = masks.keep(heads, block.stop - block.start, block.stop).flatten(0, 1)
            scores = torch.bmm(q[:, :, block].transpose(1, 2), k[:, :, : block.stop])
            scores[:, :, block].add_(future[: scores.shape[1], : scores.shape[1]])
            weights.append(torch.softmax(scores, -1))
            keeps.append(keep)
            y[:, :, block] = torch.bmm(v[:, :, : block.stop], (weights[-1] * keep).transpose(1, 2))
        ctx.save_for_backward(q, k, v, y, *keeps, *weights)
        ctx.value_scale = masks.scale
        return y.view(images, heads, features, positions).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of queries, keys and values."""
        q, k, v, y, *rest = ctx.saved_tensors
        keeps, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        images, positions, heads, features = gradients[0].shape
        gradient = gradients[0].permute(0, 2, 3, 1).flatten(0, 1).contiguous()
        inner = (gradient * y).sum(1)[:, :, None]
        of_qkv = q.new_zeros(3, *q.shape)
        of_q, of_k, of_v = of_qkv
        for block, keep, weight in zip(query_blocks(positions), keeps, weights, strict=True):
            of_y, keep = gradient[:, :, block], keep.to(q.dtype)
            of_scores = torch.bmm(of_y.transpose(1, 2), v[:, :, : block.stop])
            of_scores.mul_(keep).sub_(inner[:, block]).mul_(weight)
            of_q[:, :, block] = torch.bmm(k[:, :, : block.stop], of_scores.transpose(1, 2))
            of_k[:, :, : block.stop].add_(torch.bmm(q[:, :, block], of_scores))
            of_v[:, :, : block.stop].add_(torch.bmm(of_y, keep.mul_(weight)))
        of_q *= features**-0.5
        of_v *= ctx.value_scale
        return of_qkv.view(3, images, heads, features, positions).permute(1, 4, 0, 2, 3), None
