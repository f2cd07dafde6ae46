"""The VQ-GAN as a file, and its identity. Knows nothing of GPT and token caches."""

from pathlib import Path
from typing import Any

import torch

from vqgpt.checkpoint import load_checkpoint, load_weights, weights_sha256
from vqgpt.config.datasets import Dataset
from vqgpt.config.options import from_json, to_json
from vqgpt.config.vqgan import VQGANConfig
from vqgpt.errors import InputError
from vqgpt.vqgan.model import VQGAN

KIND = "vqgan"


def vqgan_content(
    model: VQGAN, dataset: str, configuration: dict[str, Any], figures: dict[str, float]
) -> dict[str, Any]:
    """What a VQ-GAN checkpoint holds. `configuration` is the resolved configuration of the command that made it."""
    return {
        "architecture": to_json(model.config),
        "model": {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        "dataset": dataset,
        "configuration": configuration,
        "figures": figures,
    }


def load_vqgan(path: Path, dataset: str, device: torch.device) -> VQGAN:
    """A VQ-GAN in eval mode. Raises MissingDataError if there is none at `path`, InputError if it is not one."""
    content = load_checkpoint(path, KIND, f"train one with: vqgpt vqgan train --dataset {dataset} --out {path}")
    model = VQGAN(from_json(VQGANConfig, content["architecture"], str(path)))
    load_weights(model, content["model"], path)
    return model.to(device).eval()


def load_vqgan_for(dataset: Dataset, path: Path, device: torch.device) -> VQGAN:
    """The VQ-GAN at `path`, for images of `dataset`. Raises InputError too if it takes another number of channels."""
    model = load_vqgan(path, dataset.name, device)
    if model.config.image_channels != dataset.channels:
        raise InputError(
            f"{path} takes images of {model.config.image_channels} channels, {dataset.name} has {dataset.channels}",
            "give a VQ-GAN that was trained on such images, with --checkpoint-vae",
        )
    return model


def tokenizer_sha256(model: VQGAN) -> str:
    """The tokenizer's identity, which token caches record."""
    return weights_sha256(model, to_json(model.config))
