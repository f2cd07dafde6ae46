"""The YAML beside a VQ-GAN of taming-transformers, latent-diffusion or SEED-Voken, held against the weights.

It adds what the weights do not tell, such as the image size and the lookup, and must agree in the rest. Knows no
tensors.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.storage.files import read_regular
from vqgpt.vqgan.architecture import Lookup, VQGANConfig, attention_levels

LARGEST_YAML = 2**20  # bytes


class _WithoutMerges(yaml.SafeLoader):
    """Makes dicts, lists, strings and numbers. A merge (`<<`) is a copy, of copies: a few lines would fill memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it has merge keys (<<)")


def with_yaml(config: VQGANConfig, path: Path) -> tuple[VQGANConfig, Lookup | None]:
    """The architecture with what the YAML adds to it, and the lookup that the YAML tells, if it does.

    Raises MissingDataError if it is not there, InputError if it is none of a VQ-GAN, or contradicts the weights.
    """
    target, params = _vqgan_section(path)
    network = params["ddconfig"]
    told = _lookup_of_target(target)
    _check_computable(network, params, told, path)
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
        "attn_type": config.attn_type if config.mid_attention else "none",
        **({"resamp_with_conv": config.resamp_with_conv} if config.downsampling > 1 else {}),
    }
    in_yaml = {**network, **{name: params[name] for name in ("embed_dim", "n_embed") if name in params}}
    in_yaml["attn_type"] = attention or in_weights["attn_type"]
    contradictions = [
        f"{name}: {_listed(in_yaml[name])} in the YAML, {value} in the weights"
        for name, value in in_weights.items()
        if name in in_yaml and _listed(in_yaml[name]) != value
    ]
    if target and told is None:
        contradictions.append(f"target: {target} in the YAML, a VQ-GAN in the weights")
    by_distance = config.lookup == "nearest" and told == "dot"  # which have the same weights
    if told not in (None, config.lookup) and not by_distance:
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
        made_for |= {"dropout": float(network.get("dropout") or 0.0), "tanh_out": bool(network.get("tanh_out"))}
        return replace(config, lookup=told or config.lookup, **made_for), told
    except (UsageError, InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}", remedy) from None


def _check_computable(network: dict[str, Any], params: dict[str, Any], told: Lookup | None, path: Path) -> None:
    """Raise InputError for what a YAML can ask of the same weights, and our network does not compute."""
    if network.get("give_pre_end"):
        raise InputError(
            f"{path}: the decoder ends before its last layer (give_pre_end), in features, which are no images",
            "give a VQ-GAN without give_pre_end",
        )
    if params.get("l2_normalize") and told == "nearest":  # IBQ has the field, and does not use it
        raise InputError(
            f"{path}: codes are compared by direction and decoded at their length (l2_normalize), which vqgpt does not "
            "compute",
            "give a VQ-GAN without l2_normalize",
        )


def _lookup_of_target(target: str) -> Lookup | None:
    """How a codebook of this class finds codes: None if it is no class of a VQ-GAN, or none at all."""
    name = target.rpartition(".")[2]
    if name == "IBQ":
        return "dot"
    if "Gumbel" in name:
        return "logits"
    return "nearest" if "VQ" in name else None


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
    params = node.get("params", node.get("init_args", node))  # of Lightning's command line: class_path, init_args
    if isinstance(params, dict) and isinstance(params.get("ddconfig"), dict):
        yield place, str(node.get("target", node.get("class_path", ""))), params
    for key, value in node.items():
        yield from _sections(value, f"{place}.{key}", seen, depth - 1)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _numbers(levels: tuple[int, ...]) -> str:
    return ", ".join(map(str, levels)) or "none"
