"""`vqgpt score`: how likely a GPT finds every row of a token cache, in bits per token, and which rows are odd."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqgpt.gpt.order import Order
from vqgpt.options.definition import (
    CACHE,
    CHECKPOINT_GPT,
    DATA,
    DEVICE,
    N_HEAD,
    ONLY_SPLIT,
    PRECISION,
    Command,
    Flags,
    check,
    check_positive,
    option,
    out_option,
)
from vqgpt.options.paths import CachePath, beside
from vqgpt.progress import Report
from vqgpt.storage.files import write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer

if TYPE_CHECKING:
    from vqgpt.evaluation.likelihood import Columns


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`vqgpt score`."""

    cache: CachePath = CACHE
    checkpoint_gpt: Path | None = CHECKPOINT_GPT
    n_head: int | None = N_HEAD
    split: str | None = ONLY_SPLIT
    against: CachePath | None = option(
        None,
        "A token cache: find for each row the nearest one of its split train, in tokens that differ. 0 is a copy.",
        group=DATA,
    )
    order: Order | None = option(
        None,
        "Score in this order, by a GPT that was trained with --order random (default: raster; others have their own).",
        group=DATA,
    )
    num_orders: int = option(
        1,
        "With --order random, average the probability of a row over so many random orders, the same for all rows.",
        group=DATA,
    )
    out: Path | None = out_option("The .csv or .npz file to write, a line per row", "the cache's name with -scores.csv")
    show_rows: int = option(5, "How many of the least and of the most likely rows to show.", group=DATA)
    device: str = DEVICE
    precision: Literal["auto", "fp32", "bf16"] = PRECISION

    def __post_init__(self) -> None:
        check_positive(self, "n_head")
        check(self.show_rows >= 0, "show_rows", self.show_rows, "0 or more")
        named = self.out is None or self.out.suffix in (".csv", ".npz")
        check(named, "out", self.out, "a file name that ends in .csv or .npz")

    @property
    def result(self) -> Path:
        """The file to write."""
        return self.out or beside(self.cache, f"{self.cache.stem}-scores.csv")


def run(config: ScoreConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Tell how likely a GPT finds every row of a token cache."""
    from vqgpt.api.sources import (
        check_goes_with,
        check_heads,
        check_order,
        check_same_codes,
        find_gpt,
        warn_if_unknown,
    )
    from vqgpt.evaluation.likelihood import score, summary
    from vqgpt.gpt.checkpoint import load_gpt
    from vqgpt.gpt.scoring import orders_to_score
    from vqgpt.runtime.device import resolve_precision, select_device
    from vqgpt.tokens import TokenCache

    device = select_device(config.device)
    cache = TokenCache(config.cache)
    splits = cache.split_names if config.split is None else (config.split,)
    rows = sum(cache.rows(split) for split in splits)
    check_place(config.result, config, flags.overwrite)
    path = find_gpt(config.checkpoint_gpt, cache.description.dataset)
    gpt = load_gpt(path, device, config.n_head, cache.description.grid)
    check_heads(config.n_head, gpt.model.config, path)
    check_goes_with(gpt.model.config, gpt.description, path, cache, report)
    warn_if_unknown(cache.description.tokenizer_sha256, report)
    check_order(config.order, gpt.model.config.options, path, "--order")
    architecture = gpt.model.config
    orders = orders_to_score(config.order or architecture.options.own_order, config.num_orders, architecture)
    training = None if config.against is None else TokenCache(config.against)
    if training is not None:
        check_same_codes(training, cache)
    plan = {"out": config.result, "checkpoint": path, "rows": rows}
    if flags.dry_run:
        return plan
    with sole_writer(config.result, config, flags.overwrite):
        precision = resolve_precision(config.precision, device)
        scores = score(cache, splits, gpt, training, precision, orders, report)
        write_atomically(config.result, _npz(scores) if config.result.suffix == ".npz" else _csv(scores))
    return {**plan, **summary(scores, splits, cache.description, config.show_rows)}


def _npz(scores: "Columns") -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **scores)
    return buffer.getvalue()


def _csv(scores: "Columns") -> bytes:
    """A line per row, under the names of the columns; bits as a word of 0 and 1."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(scores)
    columns = [["".join(map(str, bits)) for bits in value] if value.ndim > 1 else value for value in scores.values()]
    writer.writerows(zip(*columns, strict=True))
    return buffer.getvalue().encode()


COMMAND = Command(words="score", config=ScoreConfig, run=run)
