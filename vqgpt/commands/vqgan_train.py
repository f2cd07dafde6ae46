"""`vqgpt vqgan train`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: VQGANTrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Train a VQ-GAN on a dataset."""
    from vqgpt.api import train_vqgan

    return train_vqgan.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="vqgan train", config=VQGANTrainConfig, run=run, several_processes=True)
