"""The GPT as a file, ours or GenerativeZoo's. What it knows of its tokens is the training cache's description.

Knows nothing of the VQ-GAN.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgpt.checkpoint import load_checkpoint, load_weights, read_checkpoint_file
from vqgpt.config.gpt import GPTConfig, GPTOptions
from vqgpt.config.options import from_json, to_json
from vqgpt.errors import InputError, UsageError
from vqgpt.gpt.model import GPT
from vqgpt.one_line import one_line
from vqgpt.torch_files import StoredTensor, check_is_file

KIND = "gpt"
LARGEST_WEIGHTS = 2**40  # bytes
HEADS = 8  # of a GPT of GenerativeZoo, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class LoadedGPT:
    """A GPT in eval mode, the description (JSON) of the cache it was trained on, and its codebook (K, D) float32.

    GenerativeZoo's files have neither of the latter two: both are None then. `label_dropout` is the share of training
    images that were shown without their label, `labels_seen` the classes or bits that some training image had; None
    where that is not known.
    """

    model: GPT
    cache_description: dict[str, Any] | None
    codebook: Tensor | None
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
    how_to_make_one: str,
    device: torch.device,
    n_head: int | None = None,
    grid: tuple[int, int] | None = None,
) -> LoadedGPT:
    """Load a GPT; `n_head` (8, if None) and `grid` are of use for a file of GenerativeZoo, which does not tell them.

    Raises MissingDataError if there is none at `path`, InputError if it is not one, UsageError if `n_head` cannot be.
    """
    check_is_file(path, how_to_make_one)
    stored = read_checkpoint_file(path)
    if isinstance(stored, Mapping) and "transformer.wte.weight" in stored and "format" not in stored:
        model = _load_generativezoo(path, stored, n_head or HEADS, grid)
        return LoadedGPT(model=model.to(device).eval(), cache_description=None, codebook=None)
    content = load_checkpoint(path, KIND, how_to_make_one)
    model = GPT(from_json(GPTConfig, content["architecture"], str(path)))
    load_weights(model, content["model"], path)
    training, seen = content["configuration"].get("training", {}), content.get("labels_seen")
    return LoadedGPT(
        model=model.to(device).eval(),
        cache_description=content["cache_description"],
        codebook=content["codebook"],
        label_dropout=training.get("label_dropout"),
        labels_seen=None if seen is None else tuple(seen),
    )


def _load_generativezoo(path: Path, stored: Mapping[str, Any], n_head: int, grid: tuple[int, int] | None) -> GPT:
    """A bare state dict of GenerativeZoo's GPT: all but the number of heads follows from names and shapes."""
    stored = {name.replace("module.", ""): value for name, value in stored.items()}
    stored = {
        name: value for name, value in stored.items() if name != "lm_head.weight" and not name.endswith(".attn.bias")
    }
    strange = [name for name, value in stored.items() if not isinstance(value, StoredTensor)]
    missing = [name for name in ("transformer.wpe.weight", "transformer.ln_f.weight") if name not in stored]
    if strange or missing or any(not value.complete or value.num_bytes > LARGEST_WEIGHTS for value in stored.values()):
        raise InputError(f"{path} is not a GPT ({', '.join(strange + missing) or 'its tensors'})", "give another file")
    shapes = {name: value.shape for name, value in stored.items()}
    blocks = [int(found[1]) for name in shapes if (found := re.match(r"transformer\.h\.(\d{1,4})\.", name))]
    if len(shapes["transformer.wte.weight"]) != 2 or len(shapes["transformer.wpe.weight"]) != 2 or not blocks:
        raise InputError(f"{path} is not a GPT (its shapes)", "give another file")
    vocabulary, width = shapes["transformer.wte.weight"]
    positions = shapes["transformer.wpe.weight"][0]
    side = math.isqrt(positions)
    grid = grid or ((side, side) if side**2 == positions else (1, positions))
    if grid[0] * grid[1] != positions:
        raise InputError(f"{path} has {positions} positions, not {grid[0]} x {grid[1]}", "give another file or cache")
    if width % n_head:
        raise UsageError(f"--n-head {n_head} does not divide the width {width} of {path}", "give its number of heads")
    options = GPTOptions(
        n_layer=max(blocks) + 1, n_head=n_head, embed_dim_t=width, bias="transformer.ln_f.bias" in shapes
    )
    config = GPTConfig(options=options, codebook_size=vocabulary - 1, grid=grid, num_classes=0)
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in GPT(config).state_dict().items()}
    wrong = sorted(name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name))
    if wrong:
        raise InputError(f"{path} is not GenerativeZoo's GPT (wrong: {', '.join(wrong[:3])})", "give another file")
    model = GPT(config)
    load_weights(model, {name: value.read() for name, value in stored.items()}, path)
    return model
