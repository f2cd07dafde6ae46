"""`vqgpt vqgan train`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.options.recipe import advise_recipe
from vqgpt.progress import Report
from vqgpt.vqgan.options import VQGANTrainingOptions


def run(config: VQGANTrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Train a VQ-GAN on a dataset."""
    from vqgpt.api import train_vqgan

    if flags.recipe is None and config.training.lr == VQGANTrainingOptions.lr:
        advise_recipe(config.images.dataset, report)
    return train_vqgan.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="vqgan train", config=VQGANTrainConfig, run=run, several_processes=True)
