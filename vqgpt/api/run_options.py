"""The options of `vqgpt run`. Must not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.options.definition import option
from vqgpt.options.shared import DATA, DATA_ROOT, DEVICE, RUN


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """`vqgpt run`. What is given here wins over the recipe, in every stage."""

    dataset: str | None = option(
        None,
        "The dataset whose pipeline to run (default: the recipe's). Without --recipe, its own recipe is taken, or one "
        "is chosen for it.",
        group=DATA,
    )
    data_root: Path | None = DATA_ROOT
    device: str = DEVICE
    until: Literal["vqgan-train", "vqgan-reconstruct", "tokenize", "train", "sample"] = option(
        "sample", "The last stage to run.", group=RUN
    )
