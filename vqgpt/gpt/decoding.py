"""Decoding one token after the other with a static key-value cache: what `GPT.forward` computes, at a fraction of it.

    tokens (R,) int64, position -> logits (R, K) float32, for the code at that position

The weights are laid out once as the products want them, keys and values lie where attention reads them, and no buffer
of the cache is allocated twice. Products have a fixed number of rows, so that neither the other rows nor their number
can be felt in a row's rounding; everything else works row by row. Attention to the cache is one batched product for all
heads: the query of each head stands in its own columns of a row that is as wide as the cache, zeros elsewhere.
Nothing waits for the device, and `step_in_graph` has the position on it: for CUDA graphs (`gpt.generate`).
Letters: R rows, T positions, K codes, D width, A heads.
Knows nothing of images, the VQ-GAN and token caches.
"""

import ctypes
import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.model import GPT, Attention, Block
from vqgpt.kernels import decoding as compiled

EPSILON = 1e-5  # of both normalisations, as in the model


class Embedding:
    """What the network reads at a position."""

    def __init__(self, model: GPT) -> None:
        parts, self.first_bit = model.transformer, model.config.bos + 1
        self.wte = cast(nn.Embedding, parts["wte"]).weight.detach()
        self.wpe = cast(nn.Embedding, parts["wpe"]).weight.detach() if "wpe" in parts else None

    def __call__(self, tokens: Tensor, position: int | Tensor, bits: Tensor | None) -> Tensor:
        """Tokens (R,) that stand before `position`, a number or (1,), bits (R, L) that are added -> (R, D)."""
        stream = F.embedding(tokens, self.wte)
        if self.wpe is not None:
            stream += self.wpe[position]
        if bits is not None:
            for bit, weight in zip(
                bits.t(), self.wte[self.first_bit :], strict=True
            ):  # a product would round by its rows
                stream += bit[:, None] * weight
        return stream


class Norm(NamedTuple):
    """A normalisation over the width: of the root mean square, or of mean and variance."""

    weight: Tensor
    bias: Tensor | None
    of_root_mean_square: bool

    def __call__(self, x: Tensor) -> Tensor:
        """(R, D) -> the same shape."""
        if self.of_root_mean_square:
            return F.rms_norm(x, self.weight.shape, self.weight, EPSILON)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPSILON)


class Linear(NamedTuple):
    """A linear layer: weight (in, out), bias (out,). Products have `rows` rows each: their rounding depends on it."""

    weight: Tensor
    bias: Tensor | None
    rows: int

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out), where R is a multiple of `rows`."""
        x = x.to(self.weight.dtype)
        if len(x) == self.rows:
            y = x @ self.weight
        else:
            y = x.new_empty(len(x), self.weight.shape[1])
            for first in range(0, len(x), self.rows):
                torch.mm(x[first : first + self.rows], self.weight, out=y[first : first + self.rows])
        return y if self.bias is None else y.add_(self.bias)


class Turns(NamedTuple):
    """Rotary positions, with the weights of the normalisation of queries and keys in them: (T, 2, 1, D/A) each."""

    cos: Tensor
    sin: Tensor

    def __call__(self, qk: Tensor, position: int | Tensor) -> Tensor:
        """Queries and keys (R, 2, A, D/A) -> the same, normalised and turned."""
        normal = F.rms_norm(qk.float(), qk.shape[-1:], None, EPSILON)
        swapped = normal.roll(qk.shape[-1] // 2, -1)
        return torch.addcmul(normal * self.cos[position], swapped, self.sin[position])


class Layer(NamedTuple):
    """What a block of the model has, ready for use."""

    ln_1: Norm
    turns: Turns | None
    to_qkv: Linear
    from_heads: Linear
    ln_2: Norm
    to_inside: Linear
    from_inside: Linear


class DecoderWeights:
    """The weights of a model as decoders share them, in float32 or bfloat16, for products of so many rows."""

    def __init__(self, model: GPT, precision: str, rows: int) -> None:
        self.config = model.config
        self.rows = rows
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        parts = model.transformer
        self.embedding = Embedding(model)
        self.layers = [self._layer(cast(Block, block)) for block in cast(nn.ModuleList, parts["h"])]
        self.ln_f = _norm(parts["ln_f"])
        self.head = self._linear(self.embedding.wte[: model.config.codebook_size], None)
        head_width = self.config.options.embed_dim_t // self.config.options.n_head
        heads = torch.arange(self.config.options.n_head, device=self.embedding.wte.device)
        of_column = torch.arange(self.config.options.embed_dim_t, device=self.embedding.wte.device) // head_width
        self.head_columns = (of_column == heads[:, None]).to(self.dtype) / math.sqrt(head_width)  # (A, D)

    def new_decoder(self, rows: int) -> "Decoder":
        """With a key-value cache for so many rows."""
        return Decoder(self, rows)

    def _layer(self, block: Block) -> Layer:
        attention, mlp = block.attn, block.mlp
        # GELU(h) = u * (1 + erf(u)) / sqrt(2), where u = h / sqrt(2): both factors go into the matrices around it
        before, after = (1.0, 1.0) if mlp.gated else (math.sqrt(0.5), math.sqrt(0.5))
        return Layer(
            ln_1=_norm(block.ln_1),
            turns=attention_turns(attention) if attention.rotary else None,
            to_qkv=self._linear(attention.c_attn.weight, attention.c_attn.bias),
            from_heads=self._linear(attention.c_proj.weight, attention.c_proj.bias),
            ln_2=_norm(block.ln_2),
            to_inside=self._linear(mlp.c_fc.weight, mlp.c_fc.bias, before, before),
            from_inside=self._linear(mlp.c_proj.weight, mlp.c_proj.bias, after),
        )

    def _linear(self, weight: Tensor, bias: Tensor | None, factor: float = 1.0, bias_factor: float = 1.0) -> Linear:
        scaled = (weight.detach() * factor).to(self.dtype).t().contiguous()
        return Linear(scaled, None if bias is None else (bias.detach() * bias_factor).to(self.dtype), self.rows)


def _norm(module: nn.Module) -> Norm:
    weight, bias = cast(Tensor, module.weight).detach(), getattr(module, "bias", None)
    return Norm(weight, None if bias is None else bias.detach(), isinstance(module, nn.RMSNorm))


def attention_turns(attention: Attention) -> Turns:
    """The tables of a layer of llama."""
    cos, sin = [], []
    for name, norm in (("query", attention.q_norm), ("key", attention.k_norm)):
        weight = cast(Tensor, norm.weight).detach()
        first, second = weight.chunk(2)
        turn_cos, turn_sin = (cast(Tensor, getattr(attention.rotary, f"{name}_{part}")) for part in ("cos", "sin"))
        cos.append(torch.cat([turn_cos * first, turn_cos * second], dim=1))
        sin.append(torch.cat([-turn_sin * second, turn_sin * first], dim=1))
    return Turns(*(torch.stack(table, dim=1)[:, :, None] for table in (cos, sin)))


class Place(NamedTuple):
    """Where a step stands: a number or (1,); how many cached positions it reads, and which (seen,) it must not see."""

    position: int | Tensor
    seen: int
    later: Tensor | None


class Decoder:
    """The key-value cache of R rows, and a step over it. Used from one thread at a time, in inference mode.

    R is a multiple of the rows of a product.
    """

    def __init__(self, weights: DecoderWeights, rows: int) -> None:
        self.weights = weights
        options, positions = weights.config.options, weights.config.block_size
        kind: dict[str, Any] = {"dtype": weights.dtype, "device": weights.embedding.wte.device}
        cache = torch.zeros(2, options.n_layer, rows, positions, options.embed_dim_t, **kind)
        self.layers = [cache[:, layer] for layer in range(options.n_layer)]
        self.slots = [[of_layer[:, :, t] for t in range(positions)] for of_layer in self.layers]
        self.keys = [[of_layer[:, : t + 1].mT for t in range(positions)] for of_layer in cache[0]]
        self.values = [[of_layer[:, : t + 1] for t in range(positions)] for of_layer in cache[1]]
        self.queries = torch.empty(rows, options.n_head, options.embed_dim_t, **kind)

    def step(self, tokens: Tensor, position: int, bits: Tensor | None = None) -> Tensor:
        """Tokens (R,) that stand before `position` -> logits (R, K) float32 of the code at it.

        Positions are taken from 0, in order. `bits` (R, L) are added to the start token, as `GPT.forward` has them.
        """
        return self._logits(tokens, Place(position, position + 1, None), bits)

    def step_in_graph(self, tokens: Tensor, position: Tensor, seen: int) -> Tensor:
        """The same for a position (1,) int64 on the device, any below `seen`: as many cached ones are read, masked."""
        later = torch.arange(seen, device=position.device) > position
        return self._logits(tokens, Place(position, seen, later), None)

    def _logits(self, tokens: Tensor, place: Place, bits: Tensor | None) -> Tensor:
        weights = self.weights
        stream = weights.embedding(tokens, place.position, bits)
        for number, layer in enumerate(weights.layers):
            stream += layer.from_heads(self._attend(layer, number, layer.ln_1(stream), place))
            inside = layer.to_inside(layer.ln_2(stream))
            if weights.config.options.arch == "llama":
                gate, inside = inside.chunk(2, dim=-1)
                inside = F.silu(gate) * inside
            else:
                inside = torch.addcmul(inside, inside, inside.erf())
            stream += layer.from_inside(inside)
        return weights.head(weights.ln_f(stream)).float()

    def _attend(self, layer: Layer, number: int, x: Tensor, place: Place) -> Tensor:
        """Normalised stream (R, D) -> what the heads saw (R, D)."""
        width, heads = x.shape[1], self.queries.shape[1]
        qkv = layer.to_qkv(x)
        if layer.turns:
            qk = qkv[:, : 2 * width].unflatten(1, (2, heads, -1))
            qk.copy_(layer.turns(qk, place.position))
        self._remember(number, place.position, qkv[:, width:].unflatten(1, (2, width)).transpose(0, 1))
        torch.mul(qkv[:, None, :width], self.weights.head_columns, out=self.queries)
        scores = torch.bmm(self.queries, self.keys[number][place.seen - 1])
        if place.later is not None:
            scores.masked_fill_(place.later, -torch.inf)
        # (R, A, D): each head, all columns
        seen = torch.bmm(scores.softmax(dim=-1), self.values[number][place.seen - 1])
        return seen.unflatten(2, (heads, -1)).diagonal(dim1=1, dim2=2).mT.flatten(1)

    def _remember(self, number: int, position: int | Tensor, new: Tensor) -> None:
        """Keys and values (2, R, D) go into the cache."""
        if isinstance(position, int):
            self.slots[number][position].copy_(new)
        else:
            self.layers[number].index_copy_(2, position, new[:, :, None])


def compiled_decoding(model: GPT, precision: str) -> ctypes.CDLL | None:
    """The C code that computes the same, or None: off a CPU or float32, for odd widths, and without a C compiler."""
    options, device = model.config.options, next(model.parameters()).device
    if device.type != "cpu" or precision != "fp32":
        return None
    return compiled.decoding_library(options.embed_dim_t, options.n_head)


class CompiledWeights:
    """The weights of a model as decoders by `kernels.decoding` share them."""

    def __init__(self, model: GPT, library: ctypes.CDLL) -> None:
        config, options, self.embedding = model.config, model.config.options, Embedding(model)
        blocks = [cast(Block, block) for block in cast(nn.ModuleList, model.transformer["h"])]
        shape = compiled.Shape(
            layers=options.n_layer,
            heads=options.n_head,
            width=options.embed_dim_t,
            inside=blocks[0].mlp.c_proj.in_features,
            codes=config.codebook_size,
            positions=config.block_size,
            llama=options.arch == "llama",
        )
        tables = [[table[:, :, 0] for table in attention_turns(b.attn)] for b in blocks if b.attn.rotary]
        turns = torch.stack([torch.stack(of_layer, 2) for of_layer in tables], 1) if tables else torch.empty(0)
        last, codes = _affine(model.transformer["ln_f"]), self.embedding.wte[: config.codebook_size]
        layers = [_compiled_layer(block) for block in blocks]
        self.weights = compiled.network_weights(library, shape, layers, last, codes, turns)

    def new_decoder(self, rows: int) -> "CompiledDecoder":
        """With a key-value cache for so many rows."""
        return CompiledDecoder(self, rows)


def _compiled_layer(block: Block) -> compiled.LayerWeights:
    attention, mlp = block.attn, block.mlp
    modules = (block.ln_1, attention.c_attn, attention.c_proj, block.ln_2, mlp.c_fc, mlp.c_proj)
    return compiled.LayerWeights(*(_affine(module) for module in modules))


def _affine(module: nn.Module) -> compiled.Affine:
    """Weight and bias."""
    bias = getattr(module, "bias", None)
    return cast(Tensor, module.weight).detach(), None if bias is None else bias.detach()


class CompiledDecoder:
    """As `Decoder`, by C code; the logits are overwritten by the next step."""

    def __init__(self, weights: CompiledWeights, rows: int) -> None:
        self.embedding, self.steps = weights.embedding, compiled.CachedSteps(weights.weights, rows)

    def step(self, tokens: Tensor, position: int, bits: Tensor | None = None) -> Tensor:
        """As `Decoder.step`."""
        return self.steps.step(self.embedding(tokens, position, bits), position)
