"""How other systems name the weights of a VQ-GAN: their names -> ours, and the architecture, read off names and shapes.

    in_our_names: weights by their names -> family, lookup, weights by the names of our network
    infer_config: names and shapes -> VQGANConfig

Levels, blocks and attention are counted by their names, widths come from the shapes: nothing has to be given.
"""

import re
from dataclasses import replace
from functools import partial

from vqgpt.errors import InputError, UsageError
from vqgpt.options.definition import THIRD_PARTIES
from vqgpt.storage import checkpoint
from vqgpt.storage.checkpoint import Shapes, shape_text
from vqgpt.storage.stored_tensor import StoredTensor
from vqgpt.vqgan.architecture import Lookup, Network, VQGANConfig
from vqgpt.vqgan.model import VQGAN

LINEAR_ATTENTION = re.compile(r"(en|de)coder\..*\.to_qkv\.weight")
MIDDLE_ATTENTION = re.compile(r"(en|de)coder\.mid\.attn_1\.")
QUERIES = ("q.weight", "to_qkv.weight")  # of both kinds of attention
RESAMPLING = re.compile(r"\.(downsample|upsample|upsample_conv)\.")
DIFFUSERS = "diffusers"
DIFFUSERS_NAMES = (  # of diffusers' parts, and ours; older versions name attention otherwise
    (r"^encoder\.down_blocks\.", "encoder.down."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.", ".q."),
    (r"\.(to_k|key)\.", ".k."),
    (r"\.(to_v|value)\.", ".v."),
    (r"\.(to_out\.0|proj_attn)\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
NUMBER = r"\d{1,4}"  # of a level or a block
IBQ_LEVELS_AND_BLOCKS = (1, 1, 2, 2, 4), 4
MASKGIT_WEIGHT = "encoder.mid.0.conv1.weight"  # elsewhere the blocks in the middle have names


def in_our_names(parts: dict[str, StoredTensor], family: str) -> tuple[str, Lookup, dict[str, StoredTensor]]:
    """The weights under the names of our network, which are those of taming-transformers."""
    if any(name.startswith("encoder.conv_blocks.") for name in parts):
        return "LlamaGen", "cosine", _from_llamagen(parts)
    if "quantize.embed.weight" in parts:
        parts = {name.replace("quantize.embed.", "quantize.embedding."): parts[name] for name in parts}
        return f"{family} (GumbelVQ)", "logits", parts
    if MASKGIT_WEIGHT in parts:
        return "MaskGIT", "nearest", parts
    if any(name.startswith("encoder.down_blocks.") for name in parts):
        return DIFFUSERS, "nearest", _from_diffusers(parts)
    return family, "nearest", parts


def _last(parts: dict[str, StoredTensor], pattern: str) -> int:
    """The largest number in the place of the group of `pattern`; 0 without any."""
    return max((int(match[1]) for name in parts if (match := re.match(pattern, name))), default=0)


def _from_llamagen(parts: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    last = _last(parts, rf"decoder\.conv_blocks\.({NUMBER})\.")
    middle = {"0": "block_1", "1": "attn_1", "2": "block_2"}

    def ours(name: str) -> str:
        name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
        name = re.sub(rf"^decoder\.conv_blocks\.({NUMBER})\b", lambda match: f"decoder.up.{last - int(match[1])}", name)
        name = re.sub(r"^((?:en|de)coder)\.mid\.([012])\.", lambda match: f"{match[1]}.mid.{middle[match[2]]}.", name)
        return re.sub(r"^(encoder\.down|decoder\.up)\.(\d+)\.res\.", r"\1.\2.block.", name)

    return {ours(name): tensor for name, tensor in parts.items()}


def _from_diffusers(parts: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Its decoder's blocks are in the order of execution; its attention has linear layers in place of convolutions."""
    last = _last(parts, rf"decoder\.up_blocks\.({NUMBER})\.")

    def ours(name: str) -> str:
        name = re.sub(rf"^decoder\.up_blocks\.({NUMBER})\b", lambda match: f"decoder.up.{last - int(match[1])}", name)
        for theirs, here in DIFFUSERS_NAMES:
            name = re.sub(theirs, here, name)
        return name

    def as_convolution(name: str, stored: StoredTensor) -> StoredTensor:
        if not name.endswith(".weight") or ".attn" not in name or len(stored.shape) != 2:
            return stored
        return replace(stored, shape=(*stored.shape, 1, 1), stride=(*stored.stride, 1, 1))

    renamed = {ours(name): tensor for name, tensor in parts.items()}
    return {name: as_convolution(name, tensor) for name, tensor in renamed.items()}


def infer_config(shapes: Shapes, lookup: Lookup, source: str) -> VQGANConfig:
    """The architecture that has weights of just these names and shapes.

    Raises InputError, naming `source`, if the layout is not known, or if some weight does not fit the others.
    """
    num_levels = _count(shapes, rf"encoder\.down\.({NUMBER})\.")
    if not num_levels:
        raise InputError(
            f"{source}: its layout is none that vqgpt knows",
            f"give a VQ-GAN of {THIRD_PARTIES}, or train one with: vqgpt vqgan train",
        )
    dimensions = partial(_dimensions, shapes, source)
    channels, image_channels = dimensions("encoder.conv_in.weight")[:2]
    widths = [dimensions(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(num_levels)]
    if any(width % channels for width in widths):
        raise InputError(
            f"{source}: its levels are {', '.join(map(str, widths))} wide, and vqgpt computes multiples of the first "
            f"convolution's width, {channels}",
            f"give a VQ-GAN of {THIRD_PARTIES}",
        )
    network: Network = "maskgit" if MASKGIT_WEIGHT in shapes else "taming"
    n_embed, embed_dim = dimensions("quantize.embedding.weight")
    z_channels = dimensions("post_quant_conv.weight" if network == "taming" else "encoder.conv_out.weight")[0]
    try:
        config = VQGANConfig(
            image_channels=image_channels,
            channels=channels,
            ch_mult=tuple(width // channels for width in widths),
            num_res_blocks=_count(shapes, rf"encoder\.down\.0\.block\.({NUMBER})\."),
            attn_levels=tuple(
                n for n in range(num_levels) if any(f"encoder.down.{n}.attn.0.{q}" in shapes for q in QUERIES)
            ),
            z_channels=z_channels,
            double_z=dimensions("encoder.conv_out.weight")[0] == 2 * z_channels,
            n_embed=n_embed,
            embed_dim=embed_dim,
            lookup=lookup,
            used_codes=dimensions("quantize.used")[0] if "quantize.used" in shapes else None,
            mid_attention=any(MIDDLE_ATTENTION.match(name) for name in shapes),
            network=network,
            attn_type="linear" if any(LINEAR_ATTENTION.match(name) for name in shapes) else "vanilla",
            resamp_with_conv=num_levels == 1 or any(RESAMPLING.search(name) for name in shapes),
        )
    except UsageError as error:
        raise InputError(f"{source}: {error.message}", error.hint) from None
    check_fits(shapes, config, source)
    return config


def is_like_ibq(config: VQGANConfig) -> bool:
    """True for the levels and blocks that all published IBQ tokenizers have, and none of taming-transformers.

    Their weights have the names of a VQModel's, and do not tell that codes are found by dot product.
    """
    return (
        config.lookup == "nearest"
        and config.network == "taming"
        and (config.ch_mult, config.num_res_blocks) == IBQ_LEVELS_AND_BLOCKS
    )


def check_fits(shapes: Shapes, config: VQGANConfig, source: str) -> None:
    """Raise InputError if the weights are not just those of this architecture; names the first that differ."""
    remedy = f"get the file again, or give a VQ-GAN of {THIRD_PARTIES}"
    blocks = len(config.ch_mult) * config.num_res_blocks
    checkpoint.check_fits(shapes, lambda: VQGAN(config), blocks, source, remedy)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers, from 0 on, stand in the place of the group of `pattern`."""
    numbers = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return len(numbers) if numbers == set(range(len(numbers))) else 0


def _dimensions(shapes: Shapes, source: str, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"{source}: {name} is missing", "get the file again, or give a checkpoint of a VQ-GAN")
    rank = 1 if name == "quantize.used" else 2 if name.startswith("quantize.") else 4
    if len(shapes[name]) != rank or not all(shapes[name]):
        raise InputError(
            f"{source}: {name} is {shape_text(shapes[name])}, not of {rank} dimensions", "get the file again"
        )
    return shapes[name]
