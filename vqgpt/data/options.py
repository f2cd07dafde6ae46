"""Which images a command reads, as options. Must not import torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.data.preprocessing import IMAGES, PreprocessingOptions
from vqgpt.data.table import DATASETS
from vqgpt.options.definition import DATA, DATA_ROOT, RUN, check, option
from vqgpt.options.paths import default_data_root

MOST_WORKERS = 16  # unless told otherwise


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images a command reads."""

    dataset: str = option("mnist", f"Dataset: {', '.join(DATASETS)}.", group=DATA)
    data_root: Path | None = DATA_ROOT
    val_split: float | None = option(
        None,
        "Hold out this share of the training images, of each class, as split val "
        "(default: the dataset's own val or test; 0.1 of a folder that has neither).",
        group=DATA,
    )
    on_error: Literal["stop", "skip"] = option(
        "stop", "What to do about a broken image. skip leaves it out and lists it; over 1 % is an error.", group=IMAGES
    )
    num_workers: int | None = option(
        None,
        f"Threads that decode images ahead of the network; 0 for none (default: the cores, {MOST_WORKERS} at most).",
        group=RUN,
    )
    preprocessing: PreprocessingOptions

    def __post_init__(self) -> None:
        check(self.val_split is None or 0 < self.val_split < 1, "val_split", self.val_split, "between 0 and 1")
        check(self.num_workers is None or self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")

    @property
    def root(self) -> Path:
        """The folder of this dataset's files."""
        return self.data_root or default_data_root()

    @property
    def workers(self) -> int:
        """Threads that decode images."""
        return min(os.cpu_count() or 1, MOST_WORKERS) if self.num_workers is None else self.num_workers
