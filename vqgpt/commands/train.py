"""`vqgpt train`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import TrainConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: TrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Stage two: train a GPT on a token cache."""
    from vqgpt.api import train

    return train.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="train", config=TrainConfig, run=run, several_processes=True)
