"""`vqgpt evaluate gpt`: how well a GPT predicts held-out tokens, and whether its probabilities can be relied on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqgpt.api.evaluation_options import RECORD, SEED_OF_EVALUATION
from vqgpt.data.table import held_out_split
from vqgpt.evaluation.record import (
    check_replaceable,
    command_text,
    keep_evaluation,
    picture_path,
    short,
)
from vqgpt.options.codec import to_json
from vqgpt.options.definition import (
    CHECKPOINT_GPT,
    DATA,
    DATASET_OF_GPT,
    DEVICE,
    N_HEAD,
    PRECISION,
    Command,
    Flags,
    check,
    check_positive,
    check_seed,
    option,
)
from vqgpt.options.paths import CachePath, evaluation_path
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import check_can_be_written, write_atomically

if TYPE_CHECKING:
    from vqgpt.evaluation.calibration import Predictions
    from vqgpt.gpt.checkpoint import LoadedGPT
    from vqgpt.tokens import TokenCache

SHOWN_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class EvaluateGPTConfig:
    """`vqgpt evaluate gpt`."""

    dataset: str | None = DATASET_OF_GPT
    checkpoint_gpt: Path | None = CHECKPOINT_GPT
    cache: CachePath | None = option(
        None, "The token cache whose splits to predict (default: cache/DATASET.zarr of the GPT's dataset).", group=DATA
    )
    n_head: int | None = N_HEAD
    limit: int = option(2048, "At most this many rows of each of the two splits, evenly spaced; 0 for all.", group=DATA)
    seed: int = SEED_OF_EVALUATION
    out: Path | None = RECORD
    device: str = DEVICE
    precision: Literal["auto", "fp32", "bf16"] = PRECISION

    def __post_init__(self) -> None:
        check_positive(self, "n_head")
        check(self.limit >= 0, "limit", self.limit, "0 or more")
        check_seed(self.seed)


def run(config: EvaluateGPTConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Measure how well a GPT predicts held-out tokens, and how well it is calibrated at each position of the grid."""
    from vqgpt.evaluation.calibration import check_splits, evenly_spaced, predict
    from vqgpt.runtime.device import resolve_precision, select_device
    from vqgpt.storage.checkpoint import weights_sha256

    device = select_device(config.device)
    precision = resolve_precision(config.precision, device)
    checkpoint, gpt, cache = _find(config, device, report)
    held_out = held_out_split(cache.split_names, str(cache.path))
    check_splits(cache, "train", held_out)
    rows = {split: evenly_spaced(cache.rows(split), config.limit) for split in ("train", held_out)}
    record = config.out or evaluation_path(cache.description.dataset)
    picture = picture_path(record, "calibration")
    check_replaceable(record, [picture], flags.overwrite)
    plan = {
        "checkpoint": str(checkpoint),
        "cache": str(cache.path),
        "evaluation": str(record),
    }
    if flags.dry_run:
        return {**plan, "rows": {split: len(numbers) for split, numbers in rows.items()}, "picture": str(picture)}
    check_can_be_written(record)
    predicted = {split: predict(cache, split, numbers, gpt.model, precision, report) for split, numbers in rows.items()}
    of = {
        "cache": cache.digest,
        "gpt": weights_sha256(gpt.model, gpt.model.config.identity),
        "splits": list(rows),
        "limit": config.limit,
        "precision": precision,
        "bootstrap_seed": config.seed,
    }
    figures = _figures(cache, predicted, config.seed, report)
    drawing = _drawing(predicted[held_out], config, report)
    entry = {
        "of": of,
        **plan,
        **figures,
        "pictures": {} if drawing is None else {"calibration": str(picture)},
        "line": _line(config, of, figures, checkpoint, cache),
    }
    keep_evaluation(record, "gpt", entry)
    if drawing is not None:  # after the entry that names it: a picture that none names is not replaced
        write_atomically(picture, drawing)
    return entry


def _find(config: EvaluateGPTConfig, device: Any, report: Report) -> tuple[Path, "LoadedGPT", "TokenCache"]:
    """The GPT and the cache, which go together. Raises what finding, opening and comparing them raises."""
    from vqgpt.api.sources import (
        check_dataset,
        check_goes_with,
        check_heads,
        find_cache,
        find_gpt,
        warn_if_unknown,
    )
    from vqgpt.gpt.checkpoint import load_gpt
    from vqgpt.tokens import TokenCache

    dataset, cache = config.dataset, None
    if config.cache is not None:
        cache = TokenCache(config.cache)
        dataset = dataset or cache.description.dataset
    path = find_gpt(config.checkpoint_gpt, dataset)
    gpt = load_gpt(path, device, config.n_head, None if cache is None else cache.description.grid)
    if cache is None:
        trained_on = gpt.description
        cache = TokenCache(find_cache(None, dataset or (trained_on.dataset if trained_on else None)))
        if trained_on is None:
            gpt = load_gpt(path, device, config.n_head, cache.description.grid)
    check_dataset(config.dataset, cache.description.dataset, cache.path)
    check_heads(config.n_head, gpt.model.config, path)
    check_goes_with(gpt.model.config, gpt.description, path, cache, report)
    warn_if_unknown(cache.description.tokenizer_sha256, report)
    if gpt.description not in (None, cache.description):
        report(
            Notice(
                text=f"{path} was trained on another cache than {cache.path}: it may not have seen the rows of split "
                "train, and may have seen held-out ones"
            )
        )
    return path, gpt, cache


def _figures(cache: "TokenCache", predicted: Mapping[str, "Predictions"], seed: int, report: Report) -> dict[str, Any]:
    """All that is measured, in JSON form. `predicted` has the training rows first, then the held-out ones."""
    import math

    from vqgpt.evaluation import calibration
    from vqgpt.evaluation.intervals import Estimate, interval

    description = cache.description
    numbers = math.prod(description.image_size) * description.image_channels
    tokens = math.prod(description.grid)
    (train, of_train), (split, held_out) = predicted.items()
    splits = {
        name: {
            "rows": len(part.rows),
            "bits_per_token": float(part.bits.mean()),
            "interval": interval(Estimate.mean_of(part.bits), seed),
            "bits_per_dimension": float(part.bits.mean()) * tokens / numbers,
        }
        for name, part in predicted.items()
    }
    gap = float(held_out.bits.mean() - of_train.bits.mean())
    gap_interval = interval(Estimate(value=gap, of_a=held_out.bits, of_b=-of_train.bits), seed)
    counts = calibration.count_by_position(cache, train, report)
    by_frequencies = calibration.baselines(cache, split, held_out.rows, counts)
    by_class = calibration.loss_by_class(held_out, description) if description.label_kind == "class" else None
    return {
        "splits": splits,
        "gap": {"bits_per_token": gap, "interval": gap_interval},
        "baselines": by_frequencies,
        **({} if by_class is None else {"loss_by_class": by_class}),
        "calibration": calibration.calibration_figures(held_out),
        "findings": calibration.findings(held_out, gap, gap_interval, by_frequencies),
    }


def _drawing(held_out: "Predictions", config: EvaluateGPTConfig, report: Report) -> bytes | None:
    """A PNG of the maps of calibration and loss; None, and a notice, where PIL is not installed."""
    try:
        from vqgpt.pictures.heat_map import heat_map, side_by_side
        from vqgpt.pictures.sheet import png_bytes
    except ImportError:
        report(Notice(text="no picture: PIL cannot be imported here; the figures by position are in the evaluation"))
        return None
    panels = [
        heat_map(held_out.entropy - held_out.loss, "entropy - loss, bits (red: overconfident)", signed=True),
        heat_map(held_out.loss, "loss, bits per token", signed=False),
    ]
    return png_bytes(side_by_side(panels), to_json(config))


def _line(
    config: EvaluateGPTConfig, of: Mapping[str, Any], figures: Mapping[str, Any], path: Path, cache: "TokenCache"
) -> str:
    """The result in one line, with all that it takes to get it again."""
    train, split = figures["splits"]
    of_split, gap = figures["splits"][split], figures["gap"]
    lowest, highest = of_split["interval"]
    same = replace(config, checkpoint_gpt=path, cache=cache.path, precision=of["precision"])
    return (
        f"{of_split['bits_per_token']:.4f} bits per token (95 %: {lowest:.4f} to {highest:.4f}), "
        f"{gap['bits_per_token']:+.4f} against {train}; {of_split['rows']} rows of {split}, "
        f"{figures['splits'][train]['rows']} of {train}; cache {short(of['cache'])}, "
        f"GPT {short(of['gpt'])}, seed {config.seed}; {command_text(COMMAND.words, same)}"
    )


def shown(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the screen shows: no grids, the classes that cost most, and each finding on a line of its own."""
    if "splits" not in result:  # a dry run
        return result
    classes = result.get("loss_by_class", {})
    costliest = sorted(classes, key=lambda name: -classes[name]["bits_per_token"])[:SHOWN_CLASSES]
    return {
        "evaluation": result["evaluation"],
        "picture": result["pictures"].get("calibration"),
        "gap": result["gap"],
        "expected_calibration_error": result["calibration"]["expected_calibration_error"],
        "splits": result["splits"],
        "baselines": result["baselines"],
        **({"loss_by_class": {name: classes[name] for name in costliest}} if classes else {}),
        "findings": result["findings"],
        "line": [result["line"]],
    }


COMMAND = Command(words="evaluate gpt", config=EvaluateGPTConfig, run=run, shown=shown)
