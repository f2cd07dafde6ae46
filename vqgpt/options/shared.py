"""Options that several rooms have in common, and the words of their help. Must not import torch."""

from dataclasses import dataclass
from typing import Literal

from vqgpt.options.definition import check, option

DATA = "Data and files"
RUN = "Run"

DEVICE_HELP = "auto, cpu, cuda, cuda:N or mps."
DATA_ROOT_HELP = (
    "Folder of the downloaded images (default: vqgpt/data in the user's cache folder, or data where there can be none)"
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a training or sampling runs."""

    device: str = option("auto", DEVICE_HELP, group=RUN)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto takes bf16 on a CUDA device that has it, else fp32.", group=RUN
    )
    seed: int = option(0, "Seed of all random numbers.", group=RUN)

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Where a training's metrics go, beside metrics.jsonl."""

    wandb: bool | None = option(
        None,
        "Log to Weights & Biases too (default: where the package, extra 'wandb', is installed and has a login or "
        "WANDB_MODE=offline).",
        group=RUN,
    )
    tensorboard: bool = option(
        False, "Log for TensorBoard too, beside the result (package of the extra 'tensorboard').", group=RUN
    )
