"""Decoding one token after the other with a static key-value cache: what `GPT.forward` computes, at a fraction of it.

    tokens (R,) int64, position -> logits (R, K) float32, for the code at that position

The weights are laid out once as the products want them, keys and values lie where attention reads them, and no buffer
of the cache is allocated twice. Products have a fixed number of rows, so that neither the other rows nor their number
can be felt in a row's rounding; everything else works row by row. Attention to the cache is one batched product for all
heads: the query of each head stands in its own columns of a row that is as wide as the cache, zeros elsewhere.
Nothing waits for the device, and `step_in_graph` has the position on it: for CUDA graphs (`gpt.generate`).
Letters: R rows, T positions, K codes, D width, A heads.
"""

import ctypes
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.architecture import EPSILON, Architecture, activate, normalise
from vqgpt.gpt.model import GPT, Attention, Block, Norm
from vqgpt.gpt.options import GPTConfig
from vqgpt.kernels import decoding as compiled

# The blocks that `decoding.c` computes, and whether it knows them as llama. It serves no other.
COMPILED: dict[Architecture, bool] = {
    Architecture(norm="layer", mlp="gelu", positions="learned", normalised_heads=False, biases=True): False,
    Architecture(norm="root-mean-square", mlp="swiglu", positions="rotary", normalised_heads=True, biases=False): True,
}


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
            # one by one: a product would round by its rows
            for bit, weight in zip(bits.t(), self.wte[self.first_bit :], strict=True):
                stream += bit[:, None] * weight
        return stream


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


class HeadTables(NamedTuple):
    """Normalisation and rotation of queries and keys: (T, 2, 1, D/A) each, with the weights of the normalisation.

    `sin` is None where positions are not rotary.
    """

    cos: Tensor
    sin: Tensor | None
    normalised: bool

    def __call__(self, qk: Tensor, position: int | Tensor) -> Tensor:
        """Queries and keys (R, 2, A, D/A) -> the same shape, float32."""
        x = qk.float()
        if self.normalised:
            x = F.rms_norm(x, x.shape[-1:], None, EPSILON)
        y = x * self.cos[position]
        return y if self.sin is None else torch.addcmul(y, x.roll(x.shape[-1] // 2, -1), self.sin[position])


class Layer(NamedTuple):
    """What a block of the model has, ready for use."""

    ln_1: Callable[[Tensor], Tensor]
    head_tables: HeadTables | None
    to_qkv: Linear
    from_heads: Linear
    ln_2: Callable[[Tensor], Tensor]
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
        return Layer(
            ln_1=_norm(block.ln_1),
            head_tables=_head_tables(attention, self.config),
            to_qkv=self._linear(*_affine(attention.c_attn)),
            from_heads=self._linear(*_affine(attention.c_proj)),
            ln_2=_norm(block.ln_2),
            to_inside=self._linear(*_affine(mlp.c_fc)),
            from_inside=self._linear(*_affine(mlp.c_proj)),
        )

    def _linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        laid_out = weight.to(self.dtype).t().contiguous()
        return Linear(laid_out, None if bias is None else bias.to(self.dtype), self.rows)


def _affine(module: nn.Module) -> compiled.Affine:
    """Weight and bias."""
    bias = getattr(module, "bias", None)
    return cast(Tensor, module.weight).detach(), None if bias is None else bias.detach()


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """(R, D) -> the same shape."""
    weight, bias = _affine(module)
    return partial(normalise, kind=cast(Norm, module).kind, weight=weight, bias=bias)


def _head_tables(attention: Attention, config: GPTConfig) -> HeadTables | None:
    """The tables of a layer, or None where queries and keys stay as they are."""
    normalised, positions = config.options.architecture.normalised_heads, config.options.architecture.positions
    head = config.options.embed_dim_t // config.options.n_head
    norms = [attention.q_norm, attention.k_norm]
    weights = [_affine(norm)[0] if norm else torch.ones(head, device=attention.c_attn.weight.device) for norm in norms]
    match positions:
        case "learned":
            of_all = torch.stack(weights)[:, None].expand(config.block_size, -1, -1, -1)
            return HeadTables(of_all, None, normalised) if normalised else None
        case "rotary":
            tables = []
            for name, weight in zip(("query", "key"), weights, strict=True):
                first, second = weight.chunk(2)
                cos, sin = (cast(Tensor, getattr(attention.rotary, f"{name}_{part}")) for part in ("cos", "sin"))
                tables.append((torch.cat([cos * first, cos * second], 1), torch.cat([-sin * second, sin * first], 1)))
            of_cos, of_sin = (torch.stack(table, dim=1)[:, :, None] for table in zip(*tables, strict=True))
            return HeadTables(of_cos, of_sin, normalised)
        case _:
            assert_never(positions)


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
            stream += layer.from_inside(activate(inside, weights.config.options.architecture.mlp))
        return weights.head(weights.ln_f(stream)).float()

    def _attend(self, layer: Layer, number: int, x: Tensor, place: Place) -> Tensor:
        """Normalised stream (R, D) -> what the heads saw (R, D)."""
        width, heads = x.shape[1], self.queries.shape[1]
        qkv = layer.to_qkv(x)
        if layer.head_tables:
            qk = qkv[:, : 2 * width].unflatten(1, (2, heads, -1))
            qk.copy_(layer.head_tables(qk, place.position))
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
    """The C code that computes the same, or None: for blocks and widths that it does not serve, off a CPU or float32,
    and without a C compiler.
    """
    options, device = model.config.options, next(model.parameters()).device
    if options.architecture not in COMPILED or device.type != "cpu" or precision != "fp32":
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
            llama=COMPILED[options.architecture],
        )
        tables = [of_layer for block in blocks if (of_layer := _head_tables(block.attn, config))]
        rotations = [torch.stack([t.cos[:, :, 0], t.sin[:, :, 0]], 2) for t in tables if t.sin is not None]
        rotation_tables = torch.stack(rotations, 1) if rotations else torch.empty(0)
        last, codes = _affine(model.transformer["ln_f"]), self.embedding.wte[: config.codebook_size]
        layers = [_compiled_layer(block) for block in blocks]
        self.weights = compiled.network_weights(library, shape, layers, last, codes, rotation_tables)

    def new_decoder(self, rows: int) -> "CompiledDecoder":
        """With a key-value cache for so many rows."""
        return CompiledDecoder(self, rows)


def _compiled_layer(block: Block) -> compiled.LayerWeights:
    attention, mlp = block.attn, block.mlp
    modules = (block.ln_1, attention.c_attn, attention.c_proj, block.ln_2, mlp.c_fc, mlp.c_proj)
    return compiled.LayerWeights(*(_affine(module) for module in modules))


class CompiledDecoder:
    """As `Decoder`, by C code; the logits are overwritten by the next step."""

    def __init__(self, weights: CompiledWeights, rows: int) -> None:
        self.embedding, self.steps = weights.embedding, compiled.CachedSteps(weights.weights, rows)

    def step(self, tokens: Tensor, position: int, bits: Tensor | None = None) -> Tensor:
        """As `Decoder.step`."""
        return self.steps.step(self.embedding(tokens, position, bits), position)
