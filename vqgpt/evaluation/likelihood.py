"""How likely a GPT finds every row of a token cache, in bits per token, and which training row is nearest to each.

    token caches, GPT -> Columns: one number, name or list of bits per row

Rows pass shard by shard; of several views the first is scored, as in validation. The nearest rows of a second cache are
how memorised images are found. Must not import the VQ-GAN and image data.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.errors import InputError
from vqgpt.evaluation.neighbours import nearest_codes
from vqgpt.gpt.checkpoint import LoadedGPT
from vqgpt.gpt.labels import labels_of_rows, no_label
from vqgpt.gpt.options import GPTConfig
from vqgpt.gpt.scoring import nats_of_images
from vqgpt.progress import Progress, Report
from vqgpt.tokens import Description, SplitTokens, TokenCache

Columns = dict[str, NDArray[Any]]


def score(
    cache: TokenCache,
    splits: tuple[str, ...],
    gpt: LoadedGPT,
    training: TokenCache | None,
    precision: str,
    orders: Tensor | None,
    report: Report,
) -> Columns:
    """The columns of all rows of some splits, in orders as `nats_of_images` takes them.

    Raises InputError if there are no rows.
    """
    rows = sum(cache.rows(split) for split in splits)
    device = next(gpt.model.parameters()).device
    others = None if training is None else training_codes(training, device)
    parts: list[Columns] = []
    done = 0
    for split in splits:
        for shard in sorted(cache.manifest.shards[split]):
            tokens, first = cache.read_split(split, [shard]), shard * cache.description.shard_rows
            labels = labels_of(tokens, cache.description, gpt.model.config)
            grids, nats = torch.from_numpy(tokens.codes[:, 0].astype(np.int32)), []
            for part in nats_of_images(gpt.model, grids, labels, precision, orders):
                nats.append(part.numpy())
                done += len(part)
                report(Progress(task="score", done=done, total=rows, unit="rows"))
            parts.append(_columns(split, first, tokens, np.concatenate(nats), gpt.model.config.block_size))
            if training is not None and others is not None:
                parts[-1] |= _nearest_columns(tokens, others, len(training.description.views))
    if not parts:
        raise InputError(f"{cache.path}: there are no rows to score", "give another cache, or another --split")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def labels_of(tokens: SplitTokens, description: Description, config: GPTConfig) -> Tensor:
    """The labels of rows as `GPT.start` takes them: those of training, or of sampling."""
    if description.label_kind == config.options.condition != "none":
        return torch.from_numpy(labels_of_rows(tokens, description))
    return torch.tensor([no_label(config)] * len(tokens.codes))


def training_codes(training: TokenCache, device: torch.device) -> Tensor:
    """Split train, or the first, with all V views, (M * V, T) float32."""
    names = training.split_names
    codes = training.read_split("train" if "train" in names else names[0]).codes
    return torch.from_numpy(codes.reshape(-1, math.prod(codes.shape[2:])).astype(np.float32)).to(device)


def _columns(split: str, first: int, tokens: SplitTokens, nats: NDArray[np.float64], tokens_per_image: int) -> Columns:
    return {
        "split": np.full(len(nats), split),
        "row": np.arange(first, first + len(nats)),
        "source_index": tokens.source_index,
        "label": tokens.labels,
        "nats": nats,
        "bits_per_token": nats / (math.log(2) * tokens_per_image),
    }


def _nearest_columns(tokens: SplitTokens, others: Tensor, num_views: int) -> Columns:
    codes = torch.from_numpy(tokens.codes[:, 0].reshape(len(tokens.codes), -1).astype(np.float32)).to(others.device)
    distance, view = (numbers.cpu().numpy() for numbers in nearest_codes(codes, others))
    return {"nearest_distance": distance, "nearest_row": view // num_views}


def summary(scores: Columns, splits: tuple[str, ...], description: Description, shown: int) -> dict[str, Any]:
    """Figures of each split, and the `shown` rows with the most and with the fewest bits per token."""
    figures = {
        split: _figures({name: column[scores["split"] == split] for name, column in scores.items()}) for split in splits
    }
    order = np.argsort(-scores["bits_per_token"], kind="stable")
    extremes = {"oddest_rows": order[:shown], "likeliest_rows": order[::-1][:shown]}
    return {
        "splits": figures,
        **{name: dict(_shown_rows(scores, rows, description)) for name, rows in extremes.items() if shown},
    }


def _figures(scores: Columns) -> dict[str, Any]:
    bits = scores["bits_per_token"]
    if not len(bits):
        return {"rows": 0}
    figures = {
        "rows": len(bits),
        "bits_per_token": float(bits.mean()),
        "standard_deviation": float(bits.std()),
        "lowest": float(bits.min()),
        "highest": float(bits.max()),
    }
    if "nearest_distance" in scores:
        distance = scores["nearest_distance"]
        figures |= {"mean_nearest_distance": float(distance.mean()), "rows_in_training": int((distance == 0).sum())}
    return figures


def _shown_rows(
    scores: Columns, rows: NDArray[np.intp], description: Description
) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in rows.tolist():
        shown = {
            "bits_per_token": float(scores["bits_per_token"][row]),
            "label": _label_text(scores["label"][row], description),
            "source_index": int(scores["source_index"][row]),
        }
        if "nearest_distance" in scores:
            shown |= {name: int(scores[name][row]) for name in ("nearest_distance", "nearest_row")}
        yield f"{scores['split'][row]}/{scores['row'][row]}", shown


def _label_text(label: NDArray[Any], description: Description) -> str:
    if description.label_kind == "bits":
        return "+".join(name for name, bit in zip(description.class_names, label, strict=True) if bit)
    return description.class_names[label] if description.label_kind == "class" and label >= 0 else ""
