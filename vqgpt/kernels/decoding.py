"""Decoding in float32 on a CPU by `decoding.c`: a network's step over a key-value cache, in one call per position.

    embedded tokens (R, D), position -> logits (R, K) float32, for the code at that position

A network of these sizes is a few microseconds per operation, of which torch's own share is most, and its threads wait
for Python's lock in between. Here nothing is between the operations, and what is computed of a few rows stays in a
core's cache. A row does not depend on the other rows, nor on their number. Its equal in plain torch is `gpt.model`.
Letters: R rows, T positions, K codes, D width, A heads.
"""

import ctypes
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vqgpt.kernels.build import call, compiled_library

SOURCE = Path(__file__).with_name("decoding.c")
COLUMNS = 16  # of a panel of a matrix; the width is a multiple
VECTOR_WIDTH = 8  # of the C code, in numbers; widths of heads, and the rows that there is room for, are multiples

Affine = tuple[Tensor, Tensor | None]  # weight (out, in) of a linear layer, or (D,) of a normalisation, and bias


class Shape(NamedTuple):
    """The network that is decoded. `llama`: root-mean-square normalisations, rotary positions and a gated MLP."""

    layers: int
    heads: int
    width: int
    inside: int  # width of the MLP
    codes: int
    positions: int
    llama: bool


class LayerWeights(NamedTuple):
    """A block of the network. A gated MLP has the rows of its gate before the others in `to_inside`."""

    norm_1: Affine
    to_qkv: Affine
    from_heads: Affine
    norm_2: Affine
    to_inside: Affine
    from_inside: Affine


class NetworkWeights(NamedTuple):
    """What `decoding.c` reads, as decoders share it."""

    library: ctypes.CDLL
    shape: Shape
    numbers: Tensor  # all weights in the order of their use
    rotations: Tensor  # (T, layers, 2, 2, D/A), for llama


def decoding_library(width: int, heads: int) -> ctypes.CDLL | None:
    """The functions of `decoding.c`, or None: for widths that it does not serve, and without a C compiler."""
    if width % COLUMNS or width % heads or width // heads % VECTOR_WIDTH:
        return None
    return compiled_library(SOURCE)


def network_weights(
    library: ctypes.CDLL, shape: Shape, layers: list[LayerWeights], last: Affine, head: Tensor, rotations: Tensor
) -> NetworkWeights:
    """Lay out the weights of the blocks, of the last normalisation and of the head (K, D).

    Raises ValueError if they are not of this shape.
    """
    parts = [part for layer in layers for part in _layer(layer, shape.llama)] + [_norm(*last), _linear(head)]
    weights = NetworkWeights(library, shape, torch.cat(parts), rotations.contiguous())
    width, inside, codes = shape.width, _multiple(shape.inside, COLUMNS), _multiple(shape.codes, COLUMNS)
    halves = 2 if shape.llama else 1
    of_layer = 4 * width + (width + 1) * (3 * width + halves * inside) + (width + 1) * width + (inside + 1) * width
    of_rotations = shape.positions * shape.layers * 4 * (width // shape.heads) if shape.llama else 0
    wanted = (shape.layers * of_layer + 2 * width + (width + 1) * codes, of_rotations)
    if (len(weights.numbers), weights.rotations.numel()) != wanted:
        raise ValueError(f"the weights are not those of {shape}")
    return weights


def _layer(layer: LayerWeights, gated: bool) -> list[Tensor]:
    weight, bias = layer.to_inside
    halves = 2 if gated else 1
    inside = torch.cat([_filled(half) for half in weight.chunk(halves)])
    inside_bias = None if bias is None else torch.cat([_filled(half) for half in bias.chunk(halves)])
    weight, bias = layer.from_inside
    return [
        _norm(*layer.norm_1),
        _linear(*layer.to_qkv),
        _linear(*layer.from_heads),
        _norm(*layer.norm_2),
        _linear(inside, inside_bias),
        _linear(_filled(weight.t()).t(), bias),
    ]


def _norm(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight and bias."""
    return torch.cat([weight, torch.zeros_like(weight) if bias is None else bias])


def _linear(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weight (out, in) in panels, then the bias (out,): out is filled up."""
    panels = _filled(weight).unflatten(0, (-1, COLUMNS)).mT
    added = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.cat([panels.flatten(), _filled(added)])


def _filled(x: Tensor) -> Tensor:
    """Zeros after the rows of (R, ...), up to a multiple of what a panel has."""
    return torch.cat([x, x.new_zeros(-len(x) % COLUMNS, *x.shape[1:])])


class CachedSteps:
    """The key-value cache of R rows, and a step over it. Used from one thread at a time."""

    def __init__(self, weights: NetworkWeights, rows: int) -> None:
        self.weights, self.rows = weights, rows
        shape = weights.shape
        inside, codes = _multiple(shape.inside, COLUMNS), _multiple(shape.codes, COLUMNS)
        positions = _multiple(shape.positions, VECTOR_WIDTH)
        sizes = [rows, shape.layers, shape.heads, shape.width, inside, codes, positions, int(shape.llama)]
        self.sizes = torch.tensor(sizes)
        self.keys, self.values = torch.zeros(2, shape.layers, rows, positions * shape.width)
        self.stream = torch.zeros(_multiple(rows, VECTOR_WIDTH), shape.width)
        self.logits = torch.empty(len(self.stream), codes)
        self.scratch = torch.zeros(call(weights.library, "scratch_size", self.sizes))

    def step(self, embedded: Tensor, position: int) -> Tensor:
        """Tokens (R, D) that stand before `position` -> logits (R, K), which are overwritten by the next step.

        Positions are taken from 0, in order. Raises ValueError for one that there is no room for, or another shape.
        """
        shape = self.weights.shape
        if embedded.shape != (self.rows, shape.width) or not 0 <= position < shape.positions:
            raise ValueError(f"step does not take {tuple(embedded.shape)} at position {position} of {shape.positions}")
        self.stream[: self.rows] = embedded
        cache = (self.keys, self.values, self.stream, self.logits, self.scratch)
        call(self.weights.library, "step", self.sizes, self.weights.numbers, self.weights.rotations, *cache, position)
        return self.logits[: self.rows, : shape.codes]


def _multiple(number: int, of: int) -> int:
    """Rounded up."""
    return math.ceil(number / of) * of
