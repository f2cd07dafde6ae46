"""A VQ-GAN as a file, ours or someone else's, and its identity. Knows nothing of GPT and token caches."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError
from vqgpt.options.codec import from_json, one_line, to_json
from vqgpt.storage.checkpoint import (
    check_parts,
    is_ours,
    load_weights,
    read_checkpoint_file,
    read_tensors,
    weights_sha256,
)
from vqgpt.storage.stored_tensor import check_is_file
from vqgpt.storage.untrusted import read_npy
from vqgpt.vqgan.architecture import check_fits
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANConfig
from vqgpt.vqgan.third_party import ForeignVQGAN, WhichWeights, open_foreign
from vqgpt.vqgan.third_party_yaml import with_yaml

KIND = "vqgan"
PARTS = {"architecture": dict, "dataset": str}
OUR_FAMILY = "vqgpt"
LARGEST_REMAP = 2**20  # bytes, of some ten thousand ids


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """What a file says it is, before its weights are read. `content` is of ours, `foreign` of someone else's."""

    path: Path
    family: str
    config: VQGANConfig
    content: Mapping[str, Any]
    foreign: ForeignVQGAN | None

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
        return CheckpointFile(path=path, family=OUR_FAMILY, config=config, content=content, foreign=None)
    foreign = open_foreign(path, content, which)
    config = with_yaml(foreign.config, yaml) if yaml else foreign.config
    return CheckpointFile(path=path, family=foreign.family, config=config, content={}, foreign=foreign)


def how_to_make(path: Path, dataset: str) -> str:
    """The command that makes a VQ-GAN for a dataset at `path`."""
    return f"train one with: vqgpt vqgan train --dataset {dataset} --out {path}"


def build_vqgan(file: CheckpointFile, device: torch.device, remap: Path | None = None) -> VQGAN:
    """The VQ-GAN of a file in eval mode, restricted to the codes that the list `remap` names, if there is one.

    Raises InputError if the weights are damaged or do not fit, or if the list does not fit the codebook.
    """
    foreign = file.foreign
    weights = foreign.read(file.path) if foreign else read_tensors(dict(file.content), file.path)["model"]
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
        convert = (
            f", or convert them with --image-channels {config.image_channels}"
            if config.image_channels in (1, 3)
            else ""
        )
        raise InputError(
            f"{path} takes images of {config.image_channels} channels, {images} has {channels}",
            f"give a VQ-GAN that was trained on such images{convert}",
        )


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
    """The tokenizer's identity, which token caches record: over all that codes and images depend on."""
    return weights_sha256(model, model.config.what_codes_depend_on)


def describe_config(config: VQGANConfig) -> dict[str, Any]:
    """The architecture as a user reads it."""
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    return {**fields, "downsampling": config.downsampling, "codebook_size": config.codebook_size}


def describe_file(file: CheckpointFile) -> dict[str, Any]:
    """Family, architecture and size of a VQ-GAN, as a user reads them."""
    tensors = file.foreign.tensors if file.foreign else file.content["model"]
    parameters = sum(torch.Size(stored.shape).numel() for stored in tensors.values())
    others = {"other_tensors_in_the_file": file.foreign.extra} if file.foreign else {}
    return {"family": file.family, **describe_config(file.config), "parameters": parameters, **others}
