"""Decoding in float32 on a CPU by `decoding.c`: what `gpt.decoding` computes, in one call per position.

    tokens (R,) int64, position -> logits (R, K) float32, for the code at that position

A network of these sizes is a few microseconds per operation, of which torch's own share is most, and its threads wait
for Python's lock in between. Here nothing is between the operations, and what is computed of a few rows stays in a
core's cache. A row does not depend on the other rows, nor on their number.
Letters: R rows, T positions, K codes, D width, A heads.
"""

import ctypes
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vqgpt.gpt.decoding import Embedding, attention_turns
from vqgpt.gpt.model import GPT, Block
from vqgpt.kernels import build
from vqgpt.kernels.build import call, compiled_library

COLUMNS = 16  # of a panel of a matrix; the width is a multiple
LANES = 8  # numbers that the C code takes at once; so are the widths of heads and the rows that there is room for


def decoding_library(model: GPT, precision: str) -> ctypes.CDLL | None:
    """The functions of `decoding.c`, or None: off a CPU or float32, for odd widths, and without a C compiler."""
    options, device = model.config.options, next(model.parameters()).device
    suits = options.embed_dim_t % COLUMNS == options.embed_dim_t // options.n_head % LANES == 0
    if device.type != "cpu" or precision != "fp32" or not suits:
        return None
    return compiled_library(Path(build.__file__).with_name("decoding.c"))


class CompiledWeights:
    """The weights of a model in the order in which `decoding.c` reads them, as decoders share them."""

    def __init__(self, model: GPT, library: ctypes.CDLL) -> None:
        self.config, self.library, self.embedding = model.config, library, Embedding(model)
        blocks = [cast(Block, block) for block in cast(nn.ModuleList, model.transformer["h"])]
        self.inside = blocks[0].mlp.c_proj.in_features  # of the MLP
        codes = self.embedding.wte[: model.config.codebook_size]
        parts = [part for block in blocks for part in _block(block)] + [
            _norm(model.transformer["ln_f"]),
            _linear(codes),
        ]
        self.numbers = torch.cat(parts)
        turns = [
            torch.stack([turn[:, :, 0] for turn in attention_turns(block.attn)], 2)
            for block in blocks
            if block.attn.rotary
        ]
        self.turns = torch.stack(turns, dim=1).contiguous() if turns else torch.empty(0)  # (T, layers, 2, 2, D/A)

    def new_decoder(self, rows: int) -> "CompiledDecoder":
        """With a key-value cache for so many rows."""
        return CompiledDecoder(self, rows)


def _block(block: Block) -> list[Tensor]:
    attention, mlp = block.attn, block.mlp
    halves = 2 if mlp.gated else 1
    inside = [_filled(half) for half in mlp.c_fc.weight.detach().chunk(halves)]
    bias = (
        None if mlp.c_fc.bias is None else torch.cat([_filled(half) for half in mlp.c_fc.bias.detach().chunk(halves)])
    )
    return [
        _norm(block.ln_1),
        _linear(attention.c_attn.weight, attention.c_attn.bias),
        _linear(attention.c_proj.weight, attention.c_proj.bias),
        _norm(block.ln_2),
        _linear(torch.cat(inside), bias),
        _linear(_filled(mlp.c_proj.weight.t()).t(), mlp.c_proj.bias),
    ]


def _norm(module: nn.Module) -> Tensor:
    """Weight and bias."""
    weight, bias = cast(Tensor, module.weight).detach(), getattr(module, "bias", None)
    return torch.cat([weight, torch.zeros_like(weight) if bias is None else bias.detach()])


def _linear(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weight (out, in) in panels, then the bias (out,): out is filled up."""
    panels = _filled(weight.detach()).unflatten(0, (-1, COLUMNS)).mT
    added = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return torch.cat([panels.flatten(), _filled(added)])


def _filled(x: Tensor) -> Tensor:
    """Zeros after the rows of (R, ...), up to a multiple of what a panel has."""
    return torch.cat([x, x.new_zeros(-len(x) % COLUMNS, *x.shape[1:])])


class CompiledDecoder:
    """The key-value cache of R rows, and a step over it. Used from one thread at a time, in inference mode."""

    def __init__(self, weights: CompiledWeights, rows: int) -> None:
        self.weights, self.rows = weights, rows
        config, options = weights.config, weights.config.options
        inside = _multiple(weights.inside, COLUMNS)
        codes, positions = _multiple(config.codebook_size, COLUMNS), _multiple(config.block_size, LANES)
        numbers = [rows, options.n_layer, options.n_head, options.embed_dim_t, inside, codes, positions]
        self.sizes = torch.tensor([*numbers, int(options.arch == "llama")])
        self.keys, self.values = torch.zeros(2, options.n_layer, rows, positions * options.embed_dim_t)
        self.stream = torch.zeros(_multiple(rows, LANES), options.embed_dim_t)
        self.logits = torch.empty(len(self.stream), codes)
        self.scratch = torch.zeros(call(weights.library, "scratch_size", self.sizes))

    def step(self, tokens: Tensor, position: int, bits: Tensor | None = None) -> Tensor:
        """As `Decoder.step`; the logits are overwritten by the next one."""
        weights = self.weights
        self.stream[: self.rows] = weights.embedding(tokens, position, bits)
        cache = (self.keys, self.values, self.stream, self.logits, self.scratch)
        call(weights.library, "step", self.sizes, weights.numbers, weights.turns, *cache, position)
        return self.logits[: self.rows, : weights.config.codebook_size]


def _multiple(number: int, of: int) -> int:
    """Rounded up."""
    return math.ceil(number / of) * of
