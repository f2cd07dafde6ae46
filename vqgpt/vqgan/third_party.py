"""Other people's VQ-GAN checkpoints: what a file holds -> the VQ-GAN in it, its weights under our names.

Finds the state dict in Lightning files, bare or wrapped state dicts and safetensors, under any prefix, and chooses
between the model's weights and their moving average. What the names mean is in `layouts.py`. Tensors are loaded only
when asked for.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vqgpt.errors import InputError
from vqgpt.options.codec import one_line
from vqgpt.storage.checkpoint import read_tensor
from vqgpt.storage.stored_tensor import StoredTensor, check_stored
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.diffusers_folder import check_agrees, read_description
from vqgpt.vqgan.layouts import DIFFUSERS, in_our_names, infer_config

FIRST_WEIGHT = "encoder.conv_in.weight"  # every VQ-GAN has it; what stands before it is the prefix of all
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
WRAPPERS = {"module", "_orig_mod"}  # what DataParallel and torch.compile put into names
TRAINING_BUFFERS = re.compile(r"quantize\.(codebook_used|.*cluster_size|.*embed_avg)$")
GENERATIVEZOO_ATTENTION = (16,)  # its --attn_resolutions; its files do not say at which size they were trained
WhichWeights = Literal["model", "ema"]
StateDict = dict[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class ThirdPartyVQGAN:
    """A VQ-GAN in a file: `tensors` have the names of our network. `extra` counts the tensors that are left out.

    With `has_average`, a moving average of the weights lies beside them, under latent-diffusion's names.
    """

    family: str
    tensors: StateDict
    config: VQGANConfig
    extra: int
    has_average: bool

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
    family, lookup, renamed = in_our_names(parts, "GenerativeZoo" if bare else "taming-transformers")
    if len(renamed) < len(parts):
        raise InputError(f"{path}: some of its weights are there twice, under two names", "get the file again")
    description = read_description(path) if family == DIFFUSERS else None
    config = infer_config({name: tensor.shape for name, tensor in renamed.items()}, lookup, str(path))
    if description is not None:
        check_agrees(description, config, path)
    if family == "GenerativeZoo":
        config = replace(config, attn_resolutions=GENERATIVEZOO_ATTENTION)
    return ThirdPartyVQGAN(
        family=family,
        tensors=renamed,
        config=config,
        extra=len(tensors) - len(renamed),
        has_average=_name_of_average(FIRST_WEIGHT, prefix) in tensors,
    )


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


def _name_of_average(name: str, prefix: str) -> str:
    """Where latent-diffusion and IBQ keep the moving average of a weight: `model_ema.` and its name without dots."""
    return f"{prefix}model_ema.{name.replace('.', '')}"


def _moving_average(tensors: StateDict, prefix: str, path: Path) -> StateDict:
    """The averaged weights that are kept beside the others, under the names of these."""
    averaged = {
        key: tensors.get(_name_of_average(key.removeprefix(prefix), prefix), tensor) for key, tensor in tensors.items()
    }
    if all(averaged[key] is tensor for key, tensor in tensors.items()):
        raise InputError(f"{path} has no moving average of the weights", "leave --weights out")
    return averaged


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
