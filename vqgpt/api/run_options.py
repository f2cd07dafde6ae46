"""The options of `vqgpt run`. Must not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.data.options import DATASET_HELP
from vqgpt.options.definition import option
from vqgpt.options.shared import DATA, DATA_ROOT_HELP, DEVICE_HELP, RUN


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """`vqgpt run`. What is given here wins over the recipe, in every stage."""

    dataset: str | None = option(
        None, f"{DATASET_HELP} Without --recipe, its own recipe is taken, or one is chosen for it.", group=DATA
    )
    data_root: Path | None = option(
        None,
        f"{DATA_ROOT_HELP}; with --dataset folder, the folder, zip or tar file of your own.",
        group=DATA,
    )
    device: str = option("auto", DEVICE_HELP, group=RUN)
    until: Literal["vqgan-train", "vqgan-reconstruct", "tokenize", "train", "sample"] = option(
        "sample", "The last stage to run.", group=RUN
    )
