"""`vqgpt score`: how likely a GPT finds every row of a token cache, in bits per token, and which rows are odd.

Rows pass shard by shard; only a few numbers per row stay in memory. Of several views the first is scored, as in
validation. With a second cache, the nearest of its rows too: that is how memorised images are found.
"""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.api.find import check_heads, find_gpt, tell_if_unknown
from vqgpt.api.output_options import ScoreConfig
from vqgpt.errors import InputError, composed
from vqgpt.gpt.checkpoint import LoadedGPT, load_gpt
from vqgpt.gpt.labels import labels_of_rows, no_label
from vqgpt.gpt.options import GPTConfig
from vqgpt.gpt.scoring import nats_of_images, nearest
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.device import resolve_precision, select_device
from vqgpt.storage.files import write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer
from vqgpt.tokens import Description, SplitTokens, TokenCache

ROWS_PER_SEARCH = 1024
SHOWN_NAMES = 5
Columns = dict[str, NDArray[Any]]  # one number, name or list of bits per row


def run(config: ScoreConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Score as configured; the result has figures by split, and the rows that are least and most likely.

    Raises UsageError if the file exists, InputError if the cache, the GPT and the other cache do not go together.
    """
    device = select_device(config.device)
    cache = TokenCache(config.cache)
    splits = cache.split_names if config.split is None else (config.split,)
    rows = sum(cache.rows(split) for split in splits)
    check_place(config.result, config, overwrite)
    path = find_gpt(config.checkpoint_gpt, cache.description.dataset)
    gpt = load_gpt(path, device, config.n_head, cache.description.grid)
    check_heads(config.n_head, gpt.model.config, path)
    check_goes_with(gpt.model.config, gpt.description, path, cache, report)
    tell_if_unknown(cache.description.tokenizer_sha256, report)
    training = None if config.against is None else TokenCache(config.against)
    if training is not None:
        check_same_codes(training, cache)
    plan = {"out": config.result, "checkpoint": path, "rows": rows}
    if dry_run:
        return plan
    with sole_writer(config.result, config, overwrite):
        scores = score(cache, splits, gpt, training, resolve_precision(config.precision, device), report)
        write_atomically(config.result, _npz(scores) if config.result.suffix == ".npz" else _csv(scores))
    return {**plan, **summary(scores, splits, cache.description, config.show_rows)}


def score(
    cache: TokenCache,
    splits: tuple[str, ...],
    gpt: LoadedGPT,
    training: TokenCache | None,
    precision: str,
    report: Report,
) -> Columns:
    """The columns of all rows of some splits. Raises InputError if there are no rows."""
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
            for part in nats_of_images(gpt.model, grids, labels, precision):
                nats.append(part.numpy())
                done += len(part)
                report(Progress(task="score", done=done, total=rows, unit="rows"))
            parts.append(_columns(split, first, tokens, np.concatenate(nats), gpt.model.config.block_size))
            if training is not None and others is not None:
                parts[-1] |= _nearest_columns(tokens, others, len(training.description.views))
    if not parts:
        raise InputError(f"{cache.path}: there are no rows to score", "give another cache, or another --split")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_goes_with(
    config: GPTConfig, trained_on: Description | None, path: Path, cache: TokenCache, report: Report
) -> None:
    """Raise InputError, with both sides, if the GPT was trained on tokens of another kind than the cache has."""
    description = cache.description
    pairs: list[tuple[str, Any, Any]] = [
        ("codes", config.codebook_size, description.codebook_size),
        ("a grid of", config.grid, description.grid),
    ]
    if trained_on is None:
        report(Notice(text=f"{path} does not record which VQ-GAN it was trained with; the scores assume the cache's"))
    else:
        pairs.append(("the VQ-GAN", trained_on.tokenizer_sha256[:12], description.tokenizer_sha256[:12]))
        if description.label_kind == config.options.condition != "none":
            ours, theirs = trained_on.class_names, description.class_names
            pairs.append(("the classes", [*map(composed, ours)], [*map(composed, theirs)]))
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise InputError(
                f"{path} was trained with {what} {_text(ours)}, and {cache.path} has {_text(theirs)}",
                "give a GPT that was trained on such tokens, with --checkpoint-gpt, or another cache",
            )
    if config.num_classes and description.label_kind != config.options.condition:
        report(Notice(text="the cache has no labels of the kind that the GPT knows: it is scored unconditionally"))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join([*value[:SHOWN_NAMES], "..."] if len(value) > SHOWN_NAMES else value)
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def labels_of(tokens: SplitTokens, description: Description, config: GPTConfig) -> torch.Tensor:
    """The labels of rows as `GPT.start` takes them: what the GPT was told about them in training, or in sampling."""
    if description.label_kind == config.options.condition != "none":
        return torch.from_numpy(labels_of_rows(tokens, description))
    return torch.tensor([no_label(config)] * len(tokens.codes))


def check_same_codes(training: TokenCache, cache: TokenCache) -> None:
    """Raise InputError, with both sides, if the codes of another cache mean other things."""
    ours, theirs = cache.description, training.description
    for what in ("tokenizer_sha256", "grid"):
        mine, other = _text(getattr(ours, what)), _text(getattr(theirs, what))
        if mine != other:
            raise InputError(
                f"{what}: {cache.path} has {mine}, {training.path} has {other}",
                "give --against a cache of the same VQ-GAN and image size",
            )


def training_codes(training: TokenCache, device: torch.device) -> torch.Tensor:
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


def _nearest_columns(tokens: SplitTokens, others: torch.Tensor, num_views: int) -> Columns:
    codes = torch.from_numpy(tokens.codes[:, 0].reshape(len(tokens.codes), -1).astype(np.float32)).to(others.device)
    found = [nearest(part, others) for part in codes.split(ROWS_PER_SEARCH)]
    distance, view = (torch.cat(numbers).cpu().numpy() for numbers in zip(*found, strict=True))
    return {"nearest_distance": distance, "nearest_row": view // num_views}


def _npz(scores: Columns) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **scores)
    return buffer.getvalue()


def _csv(scores: Columns) -> bytes:
    """A line per row, under the names of the columns; bits as a word of 0 and 1."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(scores)
    columns = [["".join(map(str, bits)) for bits in value] if value.ndim > 1 else value for value in scores.values()]
    writer.writerows(zip(*columns, strict=True))
    return buffer.getvalue().encode()


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
