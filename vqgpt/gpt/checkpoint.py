"""The GPT as a file, ours or GenerativeZoo's.

path -> the network, and what our file records of its training cache: the description, checked as a cache's own is
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgpt.errors import InputError, UsageError
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.options.codec import from_json, one_line, to_json
from vqgpt.storage.checkpoint import (
    check_fits,
    check_parts,
    is_ours,
    load_weights,
    read_checkpoint_file,
    read_tensor,
    read_tensors,
    shape_text,
)
from vqgpt.storage.stored_tensor import StoredTensor, check_is_file, check_stored
from vqgpt.tokens import Description, read_description

KIND = "gpt"
PARTS = {
    "architecture": dict,
    "cache_description": dict,
    "cache_digest": str,
    "codebook": StoredTensor,
    "configuration": dict,
}
WEIGHTS_OF_A_LAYER = 6  # two norms, and four matrices
HEADS = 8  # of a GPT of GenerativeZoo, unless another number is given
HOW_TO_MAKE = "train one with: vqgpt train"


@dataclass(frozen=True, kw_only=True)
class LoadedGPT:
    """A GPT in eval mode, the description of the token cache it was trained on, and its codebook (K, D) float32.

    GenerativeZoo's files have neither of the latter two: both are None then. `label_dropout` is the share of training
    images that were shown without their label, `labels_seen` the classes or bits that some training image had; None
    where that is not known.
    """

    model: GPT
    description: Description | None = None
    codebook: Tensor | None = None
    label_dropout: float | None = None
    labels_seen: tuple[int, ...] | None = None

    __repr__ = one_line


def gpt_content(
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    cache_description: dict[str, Any],
    cache_digest: str,
    codebook: Tensor,
    configuration: dict[str, Any],
    figures: dict[str, float],
    labels_seen: Collection[int],
) -> dict[str, Any]:
    """What a GPT checkpoint holds. `configuration` is the resolved configuration of the command that made it.

    `labels_seen` are the numbers of the classes or bits that some training image had.
    """
    return {
        "architecture": to_json(config),
        "model": dict(weights),
        "cache_description": cache_description,
        "cache_digest": cache_digest,
        "codebook": codebook,
        "configuration": configuration,
        "figures": figures,
        "labels_seen": sorted(labels_seen),
    }


def load_gpt(
    path: Path,
    device: torch.device,
    n_head: int | None = None,
    grid: tuple[int, int] | None = None,
    how_to_make_one: str = HOW_TO_MAKE,
) -> LoadedGPT:
    """Load a GPT; `n_head` (8, if None) and `grid` are of use for a file of GenerativeZoo, which does not record them.

    Raises MissingDataError if there is none at `path`, InputError if it is not one, or has the description of other
    tokens, UsageError if `n_head` cannot be.
    """
    check_is_file(path, how_to_make_one)
    stored = read_checkpoint_file(path)
    if isinstance(stored, Mapping) and "transformer.wte.weight" in stored and not is_ours(stored):
        return LoadedGPT(model=_load_generativezoo(path, stored, n_head or HEADS, grid).to(device).eval())
    model, description, content = _load_ours(path, stored, how_to_make_one)
    seen = content.get("labels_seen")
    return LoadedGPT(
        model=model.to(device).eval(),
        description=description,
        codebook=content["codebook"],
        label_dropout=content["configuration"].get("training", {}).get("label_dropout"),
        labels_seen=None if seen is None else tuple(seen),
    )


def read_gpt(path: Path) -> tuple[GPT, dict[str, Any]]:
    """A GPT of ours, on the CPU, and all that its file holds. Raises MissingDataError or InputError as `load_gpt`."""
    remedy = "give a GPT that `vqgpt train` made"
    check_is_file(path, remedy)
    model, _, content = _load_ours(path, read_checkpoint_file(path), remedy)
    return model, content


def _load_ours(path: Path, stored: Any, how_to_make_one: str) -> tuple[GPT, Description, dict[str, Any]]:
    content = check_parts(stored, KIND, PARTS, path, how_to_make_one)
    config = from_json(GPTConfig, content["architecture"], str(path))
    if fault := _fault(content, config):
        raise InputError(f"{path}: {fault}", how_to_make_one)
    _check_fits(content["model"], config, path, how_to_make_one)
    content = read_tensors(content, path)
    if not content["codebook"].isfinite().all():
        raise InputError(f"{path}: the codebook is not all finite", how_to_make_one)
    model = GPT(config)
    load_weights(model, content["model"], path)
    return model, _description(content, config, path), content


def _description(content: Mapping[str, Any], config: GPTConfig, path: Path) -> Description:
    """Of the training cache. Raises InputError if it cannot be, or does not go with the network."""
    description = read_description(content["cache_description"], str(path))
    classes = len(description.class_names) if config.num_classes else 0
    codebook = (description.codebook_size, description.code_dimension)
    pairs: dict[str, tuple[Any, Any]] = {
        "grid": (description.grid, config.grid),
        "codes": (description.codebook_size, config.codebook_size),
        "classes": (classes, config.num_classes),
        "views": (len(description.views) if config.num_views else 0, config.num_views),
        "codebook": (codebook, tuple(content["codebook"].shape)),
    }
    for what, (described, actual) in pairs.items():
        if described != actual:
            raise InputError(
                f"{path}: its cache_description is of other tokens ({what}: {described} there, {actual} in the GPT)",
                "do not use it; get the file again",
            )
    return description


def _fault(content: Mapping[str, Any], config: GPTConfig) -> str:
    """What of a checkpoint, beside the weights, cannot be, or ""."""
    codebook: StoredTensor = content["codebook"]
    if len(codebook.shape) != 2 or codebook.shape[0] != config.codebook_size or codebook.dtype != torch.float32:
        return f"its codebook is {shape_text(codebook.shape)} {codebook.dtype}, not {config.codebook_size} codes"
    training = content["configuration"].get("training", {})
    share = training.get("label_dropout", 0.0) if isinstance(training, dict) else None
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        return "its configuration has no share of images without label (training.label_dropout)"
    seen = content.get("labels_seen")
    if seen is not None and not (isinstance(seen, list) and all(type(label) is int for label in seen)):
        return "labels_seen is no list of numbers"
    if seen and not 0 <= min(seen) <= max(seen) < config.num_classes:
        return f"labels_seen has others than those of {config.num_classes} classes"
    return ""


def _check_fits(stored: Mapping[str, StoredTensor], config: GPTConfig, path: Path, remedy: str) -> None:
    shapes = {name: value.shape for name, value in stored.items()}
    check_fits(shapes, lambda: GPT(config), WEIGHTS_OF_A_LAYER * config.options.n_layer, str(path), remedy)


def _load_generativezoo(path: Path, stored: Mapping[Any, Any], n_head: int, grid: tuple[int, int] | None) -> GPT:
    """A bare state dict of GenerativeZoo's GPT: all but the number of heads follows from names and shapes."""
    stored = {
        name: value
        for key, value in stored.items()
        if (name := str(key).replace("module.", "")) != "lm_head.weight" and not name.endswith(".attn.bias")
    }
    strange = [name for name, value in stored.items() if not isinstance(value, StoredTensor)]
    missing = [name for name in ("transformer.wpe.weight", "transformer.ln_f.weight") if name not in stored]
    if strange or missing:
        raise InputError(f"{path} is not a GPT ({', '.join((strange + missing)[:3])})", "give another file")
    check_stored(stored.items(), path)
    shapes = {name: value.shape for name, value in stored.items()}
    blocks = [int(found[1]) for name in shapes if (found := re.match(r"transformer\.h\.(\d{1,4})\.", name))]
    tables = (shapes["transformer.wte.weight"], shapes["transformer.wpe.weight"])
    if any(len(shape) != 2 or 0 in shape for shape in tables) or not blocks:
        raise InputError(f"{path} is not a GPT (its shapes)", "give another file")
    (vocabulary, width), (positions, _) = tables
    side = math.isqrt(positions)
    grid = grid or ((side, side) if side**2 == positions else (1, positions))
    if grid[0] * grid[1] != positions:
        raise InputError(f"{path} has {positions} positions, not {grid[0]} x {grid[1]}", "give another file or cache")
    if width % n_head:
        raise UsageError(f"--n-head {n_head} does not divide the width {width} of {path}", "give its number of heads")
    bias = "transformer.ln_f.bias" in shapes
    options = GPTOptions(n_layer=max(blocks) + 1, n_head=n_head, embed_dim_t=width, bias=bias)
    try:
        config = GPTConfig(options=options, codebook_size=vocabulary - 1, grid=grid, num_classes=0)
    except UsageError as error:
        raise InputError(f"{path} is not a GPT: {error.message}", "give another file") from None
    _check_fits(stored, config, path, "give a GPT of GenerativeZoo, or another file")
    model = GPT(config)
    load_weights(model, {name: read_tensor(value, name, path) for name, value in stored.items()}, path)
    return model
