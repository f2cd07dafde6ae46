"""A VQ-GAN as a file, ours or someone else's, and its identity; and the YAML beside someone else's.

The weights say what the network is. A YAML of taming-transformers or latent-diffusion adds the image size, which they
do not have, and must agree in the rest.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.codec import from_json, one_line, to_json
from vqgpt.storage.checkpoint import (
    check_parts,
    is_ours,
    load_weights,
    read_checkpoint_file,
    read_tensors,
    tensors_sha256,
    weights_sha256,
)
from vqgpt.storage.files import read_regular
from vqgpt.storage.stored_tensor import check_is_file
from vqgpt.tokens.third_party import read_npy
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANConfig, attention_levels
from vqgpt.vqgan.third_party import ThirdPartyVQGAN, WhichWeights, check_fits, open_third_party

KIND = "vqgan"
PARTS = {"architecture": dict, "dataset": str}
DECODER = ("decoder.", "post_quant_conv.")
OUR_FAMILY = "vqgpt"
LARGEST_REMAP = 2**20  # bytes, of some ten thousand ids
LARGEST_YAML = 2**20  # bytes


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """What a file says it is, before its weights are read. `content` is of ours, `third_party` of someone else's."""

    path: Path
    family: str
    config: VQGANConfig
    content: Mapping[str, Any]
    third_party: ThirdPartyVQGAN | None

    __repr__ = one_line


def vqgan_content(
    model: VQGAN, weights: Mapping[str, Tensor], dataset: str, configuration: dict[str, Any], figures: dict[str, float]
) -> dict[str, Any]:
    """What a VQ-GAN checkpoint holds. `configuration` is the resolved configuration of the command that made it."""
    return {
        "architecture": to_json(model.config),
        "model": {name: tensor.contiguous() for name, tensor in weights.items()},
        "dataset": dataset,
        "configuration": configuration,
        "figures": figures,
    }


def open_vqgan(path: Path, dataset: str, which: WhichWeights | None = None, yaml: Path | None = None) -> CheckpointFile:
    """Look into a checkpoint: whose it is, and its architecture, held against the YAML if there is one.

    Raises MissingDataError if there is none at `path`, InputError if it is not a VQ-GAN.
    """
    check_is_file(path, how_to_make(path, dataset))
    content = read_checkpoint_file(path)
    if is_ours(content):
        content = check_parts(content, KIND, PARTS, path, how_to_make(path, dataset))
        if yaml or which:
            raise InputError(
                f"{path} is a checkpoint of vqgpt", "leave --config and --weights out: it already says what they say"
            )
        config = from_json(VQGANConfig, content["architecture"], str(path))
        check_fits({name: stored.shape for name, stored in content["model"].items()}, config, str(path))
        return CheckpointFile(path=path, family=OUR_FAMILY, config=config, content=content, third_party=None)
    third_party = open_third_party(path, content, which)
    config = with_yaml(third_party.config, yaml) if yaml else third_party.config
    return CheckpointFile(path=path, family=third_party.family, config=config, content={}, third_party=third_party)


def how_to_make(path: Path, dataset: str) -> str:
    """The command that makes a VQ-GAN for a dataset at `path`."""
    return f"train one with: vqgpt vqgan train --dataset {dataset} --out {path}"


def build_vqgan(file: CheckpointFile, device: torch.device, remap: Path | None = None) -> VQGAN:
    """The VQ-GAN of a file in eval mode, restricted to the codes that the list `remap` names, if there is one.

    Raises InputError if the weights are damaged or do not fit, or if the list does not fit the codebook.
    """
    if file.third_party:
        weights = file.third_party.read(file.path)
    else:
        weights = read_tensors(dict(file.content), file.path)["model"]
    model = VQGAN(file.config)
    load_weights(model, weights, file.path)
    used = model.quantize.used
    if used is not None and not 0 <= int(used.min()) <= int(used.max()) < file.config.n_embed:
        raise InputError(f"{file.path}: quantize.used has ids beyond the codebook", "get the file again")
    if remap is not None:
        weights = model.state_dict() | {"quantize.used": read_remap(remap, file.config.n_embed)}
        model = VQGAN(replace(file.config, used_codes=len(weights["quantize.used"])))
        model.load_state_dict(weights)
    return model.to(device).eval()


def load_vqgan(path: Path, dataset: str, device: torch.device, remap: Path | None = None) -> VQGAN:
    """A VQ-GAN in eval mode, ours or someone else's. Raises what `open_vqgan` and `build_vqgan` raise."""
    return build_vqgan(open_vqgan(path, dataset), device, remap)


def check_channels(config: VQGANConfig, channels: int, images: str, path: Path) -> None:
    """Raise InputError if the VQ-GAN at `path` takes other images than `images`, which have `channels`."""
    if config.image_channels != channels:
        remedy = "give a VQ-GAN that was trained on such images"
        if config.image_channels in (1, 3):
            remedy += f", or convert them with --image-channels {config.image_channels}"
        taken = f"{path} takes images of {config.image_channels} channels"
        raise InputError(f"{taken}, {images} has {channels}", remedy)


def read_remap(path: Path, n_embed: int) -> Tensor:
    """The used codes in a .npy file, (R,) int64. Raises InputError if they are no list of different codebook ids."""
    hint = "give a .npy file with a list of different codebook ids"
    if not path.exists():
        raise MissingDataError(f"there is no file {path}", hint)
    ids = read_npy(path, LARGEST_REMAP, hint)
    if ids.ndim != 1 or len(ids) < 2:
        raise InputError(f"{path} is not a list of two or more whole numbers", hint)
    if len(np.unique(ids)) < len(ids) or ids.min() < 0 or ids.max() >= n_embed:
        raise InputError(f"{path} has ids twice, or not between 0 and {n_embed - 1}", hint)
    return torch.from_numpy(ids.astype(np.int64))


def tokenizer_sha256(model: VQGAN) -> str:
    """The identity that token caches record: over encoder and codebook, all that the codes of an image depend on."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(DECODER)}
    return tensors_sha256({"codes": model.config.what_codes_depend_on}, weights)


def decoder_sha256(model: VQGAN) -> str:
    """The identity of the decoder: over all that, with the codebook, the images of codes depend on."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(DECODER)}
    return tensors_sha256({"images": model.config.what_codes_depend_on}, weights)


def vqgan_sha256(model: VQGAN) -> str:
    """The identity of the whole network. Token caches recorded it before 29 November 2026."""
    return weights_sha256(model, model.config.what_codes_depend_on)


def tokenizer_identities(model: VQGAN) -> tuple[str, str]:
    """By which token caches may know this encoder and codebook: as they record it now, and as they did before."""
    return tokenizer_sha256(model), vqgan_sha256(model)


def describe_file(file: CheckpointFile) -> dict[str, Any]:
    """Family, architecture and size of a VQ-GAN, as a user reads them."""
    tensors = file.third_party.tensors if file.third_party else file.content["model"]
    return {
        "family": file.family,
        **{name: value for name, value in asdict(file.config).items() if value is not None},
        "downsampling": file.config.downsampling,
        "codebook_size": file.config.codebook_size,
        "parameters": sum(math.prod(stored.shape) for stored in tensors.values()),
        **({"other_tensors_in_the_file": file.third_party.extra} if file.third_party else {}),
    }


class _WithoutMerges(yaml.SafeLoader):
    """Makes dicts, lists, strings and numbers. A merge (`<<`) is a copy, of copies: a few lines would fill memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it has merge keys (<<)")


def with_yaml(config: VQGANConfig, path: Path) -> VQGANConfig:
    """The architecture with what the YAML adds to it.

    Raises MissingDataError if it is not there, InputError if it is none of a VQ-GAN, or contradicts the weights.
    """
    target, params = _vqgan_section(path)
    network = params["ddconfig"]
    for name in ("tanh_out", "give_pre_end"):
        if network.get(name):  # its weights are the same
            raise InputError(
                f"{path}: the decoder ends in another way ({name}), which vqgpt does not compute",
                f"give a VQ-GAN without {name}",
            )
    size, resolutions = network.get("resolution"), network.get("attn_resolutions")
    attention = _attention(network)
    if attention == "none" and isinstance(resolutions, list):  # then none of them has any
        resolutions = []
    in_weights: dict[str, Any] = {
        "in_channels": config.image_channels,
        "out_ch": config.image_channels,
        "ch": config.channels,
        "ch_mult": list(config.ch_mult),
        "num_res_blocks": config.num_res_blocks,
        "z_channels": config.z_channels,
        "double_z": config.double_z,
        "embed_dim": config.embed_dim,
        "n_embed": config.n_embed,
        "attn_type": "vanilla" if config.mid_attention else "none",
    }
    in_yaml = {**network, **{name: params[name] for name in ("embed_dim", "n_embed") if name in params}}
    in_yaml["attn_type"] = attention or in_weights["attn_type"]
    contradictions = [
        f"{name}: {_listed(in_yaml[name])} in the YAML, {value} in the weights"
        for name, value in in_weights.items()
        if name in in_yaml and _listed(in_yaml[name]) != value
    ]
    if "Gumbel" in target and config.lookup != "logits":
        contradictions.append(f"target: {target} in the YAML, a codebook without logits in the weights")
    if target and "VQ" not in target.rpartition(".")[2]:
        contradictions.append(f"target: {target} in the YAML, a VQ-GAN in the weights")
    if target.endswith("VQModel") and config.lookup != "nearest":
        contradictions.append(f"target: {target} in the YAML, a codebook with lookup by {config.lookup} in the weights")
    numbers = [size, *resolutions] if isinstance(resolutions, list) and size is not None else []
    if any(type(number) is not int or number < 0 for number in numbers) or size == 0:
        contradictions.append(f"resolution and attn_resolutions: {size} and {resolutions} in the YAML, which cannot be")
    elif numbers:
        levels = attention_levels(size, tuple(resolutions), len(config.ch_mult))
        if levels != config.attn_levels:
            contradictions.append(
                f"attn_resolutions: {resolutions} at resolution {size} (level {_numbers(levels)}) in the YAML, "
                f"level {_numbers(config.attn_levels)} in the weights"
            )
    remedy = "give the YAML of this checkpoint, or leave --config out"
    if contradictions:
        raise InputError(f"{path} contradicts the weights ({'; '.join(contradictions)})", remedy)
    made_for: dict[str, Any] = {"size": size, "attn_resolutions": tuple(resolutions)} if numbers else {}
    try:
        return replace(config, dropout=float(network.get("dropout") or 0.0), **made_for)
    except (UsageError, InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}", remedy) from None


def _attention(network: dict[str, Any]) -> str | None:
    """What a ddconfig says of attention: vanilla (with any implementation of it), linear or none; None for nothing."""
    if network.get("use_linear_attn"):
        return "linear"
    kind = network.get("attn_type")
    return None if kind is None else "vanilla" if str(kind).startswith("vanilla") else str(kind)


def _vqgan_section(path: Path) -> tuple[str, dict[str, Any]]:
    """The target and the parameters of the VQ-GAN: the first stage, where the YAML describes a transformer too."""
    try:
        text = read_regular(path, LARGEST_YAML)
    except FileNotFoundError:
        raise MissingDataError(f"there is no {path}", "check the path, or leave --config out") from None
    try:
        content = yaml.load(text.decode(), _WithoutMerges)
    except Exception as error:  # what YAML calls a number or a date can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not YAML ({reason})", "give the YAML, or leave it out") from None
    sections = list(_sections(content, "", set()))
    if not sections:
        raise InputError(
            f"{path} describes no VQ-GAN: it has no ddconfig", "give the YAML of the VQ-GAN, or leave it out"
        )
    _, target, params = min(sections, key=lambda found: "first_stage" not in found[0])
    return target, params


def _sections(node: Any, place: str, seen: set[int], depth: int = 16) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All parts that describe an autoencoder, with their places; what YAML refers to many times is looked at once."""
    if not isinstance(node, dict) or not depth or id(node) in seen:
        return
    seen.add(id(node))
    params = node.get("params", node)
    if isinstance(params, dict) and isinstance(params.get("ddconfig"), dict):
        yield place, str(node.get("target", "")), params
    for key, value in node.items():
        yield from _sections(value, f"{place}.{key}", seen, depth - 1)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _numbers(levels: tuple[int, ...]) -> str:
    return ", ".join(map(str, levels)) or "none"
