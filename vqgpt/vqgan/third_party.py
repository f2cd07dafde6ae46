"""Other people's VQ-GAN checkpoints: file -> weights under our names, and the architecture, read off names and shapes.

Reads taming-transformers and latent-diffusion (Lightning files, bare or wrapped state dicts, safetensors), LlamaGen and
GenerativeZoo. Levels, blocks and attention are counted by their names, widths come from the shapes: nothing has to be
given. Tensors are loaded only when asked for.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import one_line
from vqgpt.storage import checkpoint
from vqgpt.storage.checkpoint import Shapes, read_tensor, shape_text
from vqgpt.storage.stored_tensor import StoredTensor, check_stored
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import Lookup, VQGANConfig

LINEAR_ATTENTION = re.compile(r"(en|de)coder\..*\.to_qkv\.weight")
MIDDLE_ATTENTION = re.compile(r"(en|de)coder\.mid\.attn_1\.")
FIRST_WEIGHT = "encoder.conv_in.weight"  # every VQ-GAN has it; what stands before it is the prefix of all
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
WRAPPERS = {"module", "_orig_mod"}  # what DataParallel and torch.compile put into names
TRAINING_BUFFERS = re.compile(r"quantize\.(codebook_used|.*cluster_size|.*embed_avg)$")
GENERATIVEZOO_ATTENTION = (16,)  # its --attn_resolutions; its files do not say at which size they were trained
WhichWeights = Literal["model", "ema"]
StateDict = dict[str, StoredTensor]


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
    dimensions = partial(_dimensions, shapes, source)
    channels, image_channels = dimensions("encoder.conv_in.weight")[:2]
    widths = [dimensions(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(num_levels)]
    z_channels, embed_dim = dimensions("post_quant_conv.weight")[:2]
    try:
        config = VQGANConfig(
            image_channels=image_channels,
            channels=channels,
            ch_mult=tuple(max(1, width // channels) for width in widths),
            num_res_blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            attn_levels=tuple(n for n in range(num_levels) if f"encoder.down.{n}.attn.0.q.weight" in shapes),
            z_channels=z_channels,
            double_z=dimensions("encoder.conv_out.weight")[0] == 2 * z_channels,
            n_embed=dimensions("quantize.embedding.weight")[0],
            embed_dim=embed_dim,
            lookup=lookup,
            used_codes=dimensions("quantize.used")[0] if "quantize.used" in shapes else None,
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


def _dimensions(shapes: Shapes, source: str, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"{source}: {name} is missing", "get the file again, or give a checkpoint of a VQ-GAN")
    rank = 1 if name == "quantize.used" else 2 if name.startswith("quantize.") else 4
    if len(shapes[name]) != rank or not all(shapes[name]):
        raise InputError(
            f"{source}: {name} is {shape_text(shapes[name])}, not of {rank} dimensions", "get the file again"
        )
    return shapes[name]


@dataclass(frozen=True, kw_only=True)
class ThirdPartyVQGAN:
    """A VQ-GAN in a file: `tensors` have the names of our network. `extra` counts the tensors that are left out."""

    family: str
    tensors: StateDict
    config: VQGANConfig
    extra: int

    __repr__ = one_line

    def read(self, source: Path) -> dict[str, Tensor]:
        """All weights. Raises InputError if one is damaged."""
        return {name: read_tensor(stored, name, source) for name, stored in self.tensors.items()}


def open_third_party(path: Path, content: Any, which: WhichWeights | None) -> ThirdPartyVQGAN:
    """The VQ-GAN in what `read_checkpoint_file` gave. `which` weights, where there are two: the model's, if None.

    Raises InputError if there is no VQ-GAN, or one whose layout is not known, or not the weights asked for.
    """
    found = [(name, weights) for name, weights in _state_dicts(content) if _prefixes(weights)]
    if not found:
        raise InputError(f"{path} has no VQ-GAN in it: {_guess(content)}", "give the checkpoint of a VQ-GAN")
    place, tensors = _choose(found, which, path)
    prefix = _choose_prefix(_prefixes(tensors), path)
    if which == "ema" and not _is_ema(place):
        tensors = _moving_average(tensors, prefix, path)
    named = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    parts = {name: named[name] for name in named if name.startswith(PARTS) and not TRAINING_BUFFERS.match(name)}
    if not any(name.startswith("quantize.") for name in parts):
        raise InputError(
            f"{path} has an autoencoder without a codebook, which is no VQ-GAN ({_guess(content)})",
            "give the checkpoint of a VQ-GAN",
        )
    check_stored(parts.items(), path)
    bare = not place and not prefix and any(key.startswith("loss.") for key in tensors)
    family, lookup, parts = _in_our_names(parts, "GenerativeZoo" if bare else "taming-transformers")
    config = infer_config({name: tensor.shape for name, tensor in parts.items()}, lookup, str(path))
    if family == "GenerativeZoo":
        config = replace(config, attn_resolutions=GENERATIVEZOO_ATTENTION)
    return ThirdPartyVQGAN(family=family, tensors=parts, config=config, extra=len(tensors) - len(parts))


def _state_dicts(content: Any, place: str = "", depth: int = 3) -> Iterator[tuple[str, StateDict]]:
    """All dicts of tensors in a file, with their places, `.module.` and `_orig_mod` taken out of the names."""
    if not isinstance(content, Mapping) or not depth:
        return
    tensors = {
        ".".join(part for part in str(key).split(".") if part not in WRAPPERS): value
        for key, value in content.items()
        if isinstance(value, StoredTensor)
    }
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(key, str):
            yield from _state_dicts(value, f"{place}.{key}" if place else key, depth - 1)


def _prefixes(tensors: StateDict) -> list[str]:
    return [key.removesuffix(FIRST_WEIGHT) for key in tensors if key.endswith(FIRST_WEIGHT)]


def _is_ema(place: str) -> bool:
    return "ema" in place.split(".")[-1].split("_")


def _choose(found: list[tuple[str, StateDict]], which: WhichWeights | None, path: Path) -> tuple[str, StateDict]:
    averaged = [item for item in found if _is_ema(item[0])]
    plain = [item for item in found if not _is_ema(item[0])]
    if which == "model" and not plain:
        raise InputError(f"{path} has only a moving average of the weights", "give --weights ema")
    wanted = (averaged or plain) if which == "ema" else (plain or averaged)
    _check_one([place for place, _ in wanted], path)
    return wanted[0]


def _choose_prefix(prefixes: list[str], path: Path) -> str:
    first_stages = [prefix for prefix in prefixes if prefix.endswith("first_stage_model.")]
    candidates = first_stages or [prefix for prefix in prefixes if not prefix] or prefixes
    _check_one(candidates, path)
    return candidates[0]


def _check_one(places: list[str], path: Path) -> None:
    if len(places) > 1:
        several = ", ".join(places)
        raise InputError(f"{path} has several VQ-GANs in it ({several})", "save the one you want as a file of its own")


def _moving_average(tensors: StateDict, prefix: str, path: Path) -> StateDict:
    """The averaged weights that latent-diffusion keeps beside the others, as `model_ema.` and the name without dots."""
    averaged = {
        key: tensors.get(f"{prefix}model_ema.{key.removeprefix(prefix).replace('.', '')}", tensor)
        for key, tensor in tensors.items()
    }
    if all(averaged[key] is tensor for key, tensor in tensors.items()):
        raise InputError(f"{path} has no moving average of the weights", "leave --weights out")
    return averaged


def _in_our_names(parts: StateDict, family: str) -> tuple[str, Lookup, StateDict]:
    """The weights under the names of our network, which are those of taming-transformers."""
    if any(name.startswith("encoder.conv_blocks.") for name in parts):
        return "LlamaGen", "cosine", _from_llamagen(parts)
    if "quantize.embed.weight" in parts:
        parts = {name.replace("quantize.embed.", "quantize.embedding."): parts[name] for name in parts}
        return f"{family} (GumbelVQ)", "logits", parts
    return family, "nearest", parts


def _from_llamagen(parts: StateDict) -> StateDict:
    found = [re.match(r"decoder\.conv_blocks\.(\d+)\.", name) for name in parts]
    last = max((int(match[1]) for match in found if match), default=0)
    middle = {"0": "block_1", "1": "attn_1", "2": "block_2"}

    def ours(name: str) -> str:
        name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
        name = re.sub(r"^decoder\.conv_blocks\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", name)
        name = re.sub(r"^((?:en|de)coder)\.mid\.([012])\.", lambda match: f"{match[1]}.mid.{middle[match[2]]}.", name)
        return re.sub(r"^(encoder\.down|decoder\.up)\.(\d+)\.res\.", r"\1.\2.block.", name)

    return {ours(name): tensor for name, tensor in parts.items()}


def _guess(content: Any) -> str:
    """What a file without a VQ-GAN seems to be."""
    names = [name for _, tensors in _state_dicts(content) for name in tensors]
    signs = {
        "model.diffusion_model.": "it looks like a diffusion model",
        "transformer.": "it looks like a GPT",
        "tok_emb": "it looks like a GPT",
        "fc.": "it looks like a classifier",
        "classifier.": "it looks like a classifier",
    }
    looks = [text for sign, text in signs.items() if any(name.startswith(sign) for name in names)]
    return looks[0] if looks else f"it holds {len(names)} tensors" + (f", such as {names[0]}" if names else "")
