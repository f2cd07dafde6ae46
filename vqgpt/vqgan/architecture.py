"""The architecture of a VQ-GAN, read off the names and shapes of its weights.

    {name: shape}, names as taming-transformers has them  ->  VQGANConfig

Nothing has to be told: levels, blocks and attention are counted by their names, widths come from the shapes.
Knows nothing of files. Must not import GPT and token caches.
"""

import re

from vqgpt.errors import InputError, UsageError
from vqgpt.storage import checkpoint
from vqgpt.storage.checkpoint import Shapes, shape_text
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import Lookup, VQGANConfig

LINEAR_ATTENTION = re.compile(r"(en|de)coder\..*\.to_qkv\.weight")
MIDDLE_ATTENTION = re.compile(r"(en|de)coder\.mid\.attn_1\.")


def infer_config(shapes: Shapes, lookup: Lookup, source: str) -> VQGANConfig:
    """The architecture that has weights of just these names and shapes.

    Raises InputError, naming `source`, if the layout is not known, or if some weight does not fit the others.
    """
    num_levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    if not num_levels:
        raise InputError(
            f"{source}: its layout is none of taming-transformers, LlamaGen or GenerativeZoo",
            "give a VQ-GAN of one of these, or train one with: vqgpt vqgan train",
        )
    _check_computable(shapes, num_levels, source)
    num_res_blocks = _count(shapes, r"encoder\.down\.0\.block\.(\d+)\.")
    channels, image_channels = _dimensions(shapes, "encoder.conv_in.weight", source)[:2]
    widths = [
        _dimensions(shapes, f"encoder.down.{level}.block.0.conv1.weight", source)[0] for level in range(num_levels)
    ]
    z_channels, embed_dim = _dimensions(shapes, "post_quant_conv.weight", source)[:2]
    try:
        config = VQGANConfig(
            image_channels=image_channels,
            channels=channels,
            ch_mult=tuple(max(1, width // channels) for width in widths),
            num_res_blocks=num_res_blocks,
            attn_levels=tuple(
                level for level in range(num_levels) if f"encoder.down.{level}.attn.0.q.weight" in shapes
            ),
            z_channels=z_channels,
            double_z=_dimensions(shapes, "encoder.conv_out.weight", source)[0] == 2 * z_channels,
            n_embed=_dimensions(shapes, "quantize.embedding.weight", source)[0],
            embed_dim=embed_dim,
            lookup=lookup,
            used_codes=_dimensions(shapes, "quantize.used", source)[0] if "quantize.used" in shapes else None,
            mid_attention=any(MIDDLE_ATTENTION.match(name) for name in shapes),
        )
    except UsageError as error:
        raise InputError(f"{source}: {error.message}", error.hint) from None
    check_fits(shapes, config, source)
    return config


def _check_computable(shapes: Shapes, num_levels: int, source: str) -> None:
    """Raise InputError for two layouts of latent-diffusion that are known, and that our network does not compute."""
    if any(LINEAR_ATTENTION.match(name) for name in shapes):
        raise InputError(
            f"{source}: its attention is linear (attn_type: linear), which vqgpt does not compute",
            "give a VQ-GAN with attn_type vanilla or none",
        )
    if num_levels > 1 and not any(".downsample." in name or ".upsample." in name for name in shapes):
        raise InputError(
            f"{source}: it resizes without convolutions (resamp_with_conv: false), which vqgpt does not compute",
            "give a VQ-GAN with resamp_with_conv: true",
        )


def check_fits(shapes: Shapes, config: VQGANConfig, source: str) -> None:
    """Raise InputError if the weights are not just those of this architecture; names the first that differ."""
    remedy = "get the file again, or give a VQ-GAN of taming-transformers, LlamaGen or GenerativeZoo"
    blocks = len(config.ch_mult) * config.num_res_blocks
    checkpoint.check_fits(shapes, lambda: VQGAN(config), blocks, source, remedy)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers, from 0 on, stand in the place of the group of `pattern`."""
    numbers = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return len(numbers) if numbers == set(range(len(numbers))) else 0


def _dimensions(shapes: Shapes, name: str, source: str) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"{source}: {name} is missing", "get the file again, or give a checkpoint of a VQ-GAN")
    rank = 1 if name == "quantize.used" else 2 if name.startswith("quantize.") else 4
    if len(shapes[name]) != rank or not all(shapes[name]):
        raise InputError(
            f"{source}: {name} is {shape_text(shapes[name])}, not of {rank} dimensions", "get the file again"
        )
    return shapes[name]
