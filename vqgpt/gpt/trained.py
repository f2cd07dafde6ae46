"""A trained GPT, and what its file tells of the token cache it was trained on: checked as a cache's own description is.

Must not import the VQ-GAN, image data, torchvision or PIL.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgpt.errors import InputError
from vqgpt.gpt import checkpoint
from vqgpt.gpt.checkpoint import LoadedGPT
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig
from vqgpt.tokens import Description, read_description

HOW_TO_MAKE = "train one with: vqgpt train"


def load_gpt(
    path: Path,
    device: torch.device,
    n_head: int | None = None,
    grid: tuple[int, int] | None = None,
    how_to_make_one: str = HOW_TO_MAKE,
) -> tuple[LoadedGPT, Description | None]:
    """What `gpt.checkpoint.load_gpt` loads, and the description of its training cache; None for GenerativeZoo's.

    Raises what that raises, and InputError for a description that cannot be, or is of other tokens.
    """
    gpt = checkpoint.load_gpt(path, how_to_make_one, device, n_head, grid)
    if gpt.cache_description is None or gpt.codebook is None:
        return gpt, None
    return gpt, trained_on(gpt.cache_description, gpt.codebook, gpt.model.config, path)


def read_gpt(path: Path) -> tuple[GPT, dict[str, Any]]:
    """A GPT of ours, on the CPU, and all that its file holds. Raises as `load_gpt`."""
    model, content = checkpoint.read_gpt(path, "give a GPT that `vqgpt train` made")
    trained_on(content["cache_description"], content["codebook"], model.config, path)
    return model, content


def trained_on(told: Mapping[str, Any], codebook: Tensor, config: GPTConfig, path: Path) -> Description:
    """The description that a GPT's file tells. Raises InputError if it cannot be, or does not go with the network."""
    description = read_description(told, str(path))
    classes = len(description.class_names) if config.num_classes else 0
    pairs: list[tuple[str, Any, Any]] = [
        ("grid", description.grid, config.grid),
        ("codes", description.codebook_size, config.codebook_size),
        ("classes", classes, config.num_classes),
        ("codebook", (description.codebook_size, description.code_dimension), tuple(codebook.shape)),
    ]
    for what, described, actual in pairs:
        if described != actual:
            raise InputError(
                f"{path}: its cache_description is of other tokens ({what}: {described} there, {actual} in the GPT)",
                "do not use it; get the file again",
            )
    return description
