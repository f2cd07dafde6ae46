"""The YAML beside a checkpoint of taming-transformers or latent-diffusion, held against the weights.

The weights say what the network is. The YAML adds the image size, which they do not tell, and must agree in the rest.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.storage.files import read_regular
from vqgpt.vqgan.options import VQGANConfig, attention_levels

LARGEST_YAML = 2**20  # bytes


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
    _check_end(network, path)
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
    if target and not re.search("VQ", target.rpartition(".")[2]):
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
    if contradictions:
        raise InputError(
            f"{path} contradicts the weights ({'; '.join(contradictions)})",
            "give the YAML of this checkpoint, or leave --config out",
        )
    try:
        dropout = float(network.get("dropout") or 0.0)
        if numbers:
            return replace(config, size=size, attn_resolutions=tuple(resolutions), dropout=dropout)
        return replace(config, dropout=dropout)
    except (UsageError, InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}", "give the YAML of this checkpoint, or leave --config out") from None


def _check_end(network: dict[str, Any], path: Path) -> None:
    """Raise InputError for a decoder that does not end in a convolution: its weights are the same."""
    for name in ("tanh_out", "give_pre_end"):
        if network.get(name):
            raise InputError(
                f"{path}: the decoder ends in another way ({name}), which vqgpt does not compute",
                f"give a VQ-GAN without {name}",
            )


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
    sections = sorted(_sections(content, ""), key=lambda found: "first_stage" not in found[0])
    if not sections:
        raise InputError(
            f"{path} describes no VQ-GAN: it has no ddconfig", "give the YAML of the VQ-GAN, or leave it out"
        )
    _, target, params = sections[0]
    return target, params


def _sections(
    node: Any, place: str, depth: int = 8, seen: set[int] | None = None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All parts that describe an autoencoder, with their places; what YAML refers to many times is looked at once."""
    seen = set() if seen is None else seen
    if not isinstance(node, dict) or not depth or id(node) in seen:
        return
    seen.add(id(node))
    params = node.get("params", node)
    if isinstance(params, dict) and isinstance(params.get("ddconfig"), dict):
        yield place, str(node.get("target", "")), params
    for key, value in node.items():
        if value is not params:
            yield from _sections(value, f"{place}.{key}", depth - 1, seen)
        elif isinstance(params, dict):
            for inner, section in params.items():
                yield from _sections(section, f"{place}.{inner}", depth - 1, seen)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _numbers(levels: tuple[int, ...]) -> str:
    return ", ".join(map(str, levels)) or "none"
