"""The GPT as a file. Knows nothing of the VQ-GAN; what it knows of its tokens is the training cache's description."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgpt.checkpoint import load_checkpoint, load_weights
from vqgpt.config.gpt import GPTConfig
from vqgpt.config.options import from_json, to_json
from vqgpt.gpt.model import GPT

KIND = "gpt"


@dataclass(frozen=True, kw_only=True)
class LoadedGPT:
    """A GPT in eval mode, the description (JSON) of the cache it was trained on, and its codebook (K, D) float32."""

    model: GPT
    cache_description: dict[str, Any]
    codebook: Tensor


def gpt_content(
    model: GPT,
    cache_description: dict[str, Any],
    cache_digest: str,
    codebook: Tensor,
    configuration: dict[str, Any],
    figures: dict[str, float],
) -> dict[str, Any]:
    """What a GPT checkpoint holds. `configuration` is the resolved configuration of the command that made it."""
    return {
        "architecture": to_json(model.config),
        "model": model.state_dict(),
        "cache_description": cache_description,
        "cache_digest": cache_digest,
        "codebook": codebook,
        "configuration": configuration,
        "figures": figures,
    }


def load_gpt(path: Path, how_to_make_one: str, device: torch.device) -> LoadedGPT:
    """Load a GPT. Raises MissingDataError if there is none at `path`, InputError if it is not one."""
    content = load_checkpoint(path, KIND, how_to_make_one)
    model = GPT(from_json(GPTConfig, content["architecture"], str(path)))
    load_weights(model, content["model"], path)
    return LoadedGPT(
        model=model.to(device).eval(), cache_description=content["cache_description"], codebook=content["codebook"]
    )
