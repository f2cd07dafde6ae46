"""Decoding: one token after the other, by the network over its cache, or by C code that computes the same.

    tokens (R,), cells, place -> logits (R, K) float32, for the code at that place

Letters: R rows, T places, K codes, L bits.
"""

import copy
import ctypes
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vqgpt.gpt.architecture import Architecture
from vqgpt.gpt.attention import Cache
from vqgpt.gpt.model import GPT, Block
from vqgpt.gpt.order import cells_before
from vqgpt.kernels import decoding as compiled

# The blocks that `decoding.c` computes, and whether it knows them as llama. It serves no other.
COMPILED: dict[Architecture, bool] = {
    Architecture(norm="layer", mlp="gelu", positions="learned", normalised_heads=False, biases=True): False,
    Architecture(norm="root-mean-square", mlp="swiglu", positions="rotary", normalised_heads=True, biases=False): True,
}


class Decoder(Protocol):
    """The keys and values of some rows, and a step over them. Used from one thread at a time, in inference mode."""

    def step(self, tokens: Tensor, cells: Tensor, place: int, added: Tensor | None = None) -> Tensor:
        """Tokens (R,) that stand before `place` -> logits (R, K) float32 of the code at it, until the next step.

        Places are taken from 0, in order. `cells` and `added` (R, L) are as `GPT.forward` takes them.
        """


def decoders(model: GPT, precision: str) -> tuple[Callable[[int], Decoder], bool]:
    """What makes a decoder of so many rows, and whether a row's logits are the same beside any others.

    The network's own are only as long as the number of rows is the same.
    """
    if library := compiled_decoding(model, precision):
        return partial(CompiledDecoder, compiled_weights(model, library)), True
    return partial(NetworkDecoder, for_decoding(model, precision)), False


def for_decoding(model: GPT, precision: str) -> GPT:
    """The network with its matrices in the precision of the products, so that no step has to round them."""
    if precision == "fp32":
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_round_input)
    model.rounded_head = model.codes_of_head.detach().to(torch.bfloat16)
    return model


def _round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """To the precision of the module's weights."""
    return (inputs[0].to(cast(nn.Linear, module).weight.dtype),)


class NetworkDecoder:
    """By the network. `step` takes a place (1,) on the device too, and then `seen`: see `Cache`."""

    def __init__(self, model: GPT, rows: int) -> None:
        self.model = model
        block = cast(Block, cast(nn.ModuleList, model.transformer["h"])[0])
        self.cache = Cache(model.config, rows, block.attn.c_attn.weight.dtype, model.cells.device)

    def step(
        self, tokens: Tensor, cells: Tensor, place: int | Tensor, added: Tensor | None = None, seen: int = 0
    ) -> Tensor:
        """See `Decoder.step`."""
        self.cache.go_to(place, seen)
        logits: Tensor = self.model(tokens[:, None], cells, self.cache, added)
        return logits[:, 0]


def compiled_decoding(model: GPT, precision: str) -> ctypes.CDLL | None:
    """The C code that computes the same, or None: for blocks and widths that it does not serve, for rotations that
    differ from image to image, off a CPU or float32, and without a C compiler.
    """
    options = model.config.options
    if options.architecture not in COMPILED or model.cells.device.type != "cpu" or precision != "fp32":
        return None
    if model.rotary and options.any_order:
        return None
    return compiled.decoding_library(options.embed_dim_t, options.n_head)


@torch.no_grad()
def compiled_weights(model: GPT, library: ctypes.CDLL) -> tuple[GPT, compiled.NetworkWeights]:
    """The weights of a network as compiled decoders share them, and the network, which embeds the tokens."""
    config, options = model.config, model.config.options
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
    rotations = [_rotations(model, block) for block in blocks] if model.rotary else []
    head = cast(Tensor, model.transformer["wte"].weight)[: config.codebook_size]
    weights = compiled.network_weights(
        library,
        shape,
        [_layer(block) for block in blocks],
        _affine(model.transformer["ln_f"]),
        head,
        torch.stack(rotations, 1) if rotations else torch.empty(0),
    )
    return model, weights


class CompiledDecoder:
    """By C code."""

    def __init__(self, weights: tuple[GPT, compiled.NetworkWeights], rows: int) -> None:
        self.model, of_steps = weights
        self.steps = compiled.CachedSteps(of_steps, rows)

    def step(self, tokens: Tensor, cells: Tensor, place: int, added: Tensor | None = None) -> Tensor:
        """See `Decoder.step`."""
        embedded = self.model.embed(tokens, cells, place)
        if added is not None:
            embedded = self.model.add_to_start(embedded, added)
        return self.steps.step(embedded, place)


def _layer(block: Block) -> compiled.LayerWeights:
    attention, mlp = block.attn, block.mlp
    modules = (block.ln_1, attention.c_attn, attention.c_proj, block.ln_2, mlp.c_fc, mlp.c_proj)
    return compiled.LayerWeights(*(_affine(module) for module in modules))


def _affine(module: nn.Module) -> compiled.Affine:
    """Weight and bias."""
    bias = getattr(module, "bias", None)
    return cast(Tensor, module.weight).detach(), None if bias is None else bias.detach()


def _rotations(model: GPT, block: Block) -> Tensor:
    """Of the queries and keys of a layer, in the network's own order, with the weights of their normalisations.

    (T, 2, 2, D/A): of both, what a head is multiplied by, and what the head turned by half of its width is.
    """
    assert model.rotary is not None
    assert block.attn.q_norm is not None
    assert block.attn.k_norm is not None
    rotation = model.rotary(cells_before(model.cells), model.cells)
    tables = []
    for norm, cos, sin in (
        (block.attn.q_norm, rotation.query_cos, rotation.query_sin),
        (block.attn.k_norm, rotation.key_cos, rotation.key_sin),
    ):
        (first, second), cos, sin = norm.weight.chunk(2), cos[:, 0], sin[:, 0]
        kept, turned = torch.cat([cos * first, cos * second], 1), torch.cat([-sin * second, sin * first], 1)
        tables.append(torch.stack([kept, turned], 1))
    return torch.stack(tables, 1)
