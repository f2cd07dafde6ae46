"""`vqgpt vqgan train`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.options.recipe import recipe_advice
from vqgpt.progress import Notice, Report
from vqgpt.vqgan.options import VQGANTrainingOptions


def run(config: VQGANTrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Train a VQ-GAN on a dataset."""
    from vqgpt.api import train_vqgan

    if flags.recipe is None and config.training.lr == VQGANTrainingOptions.lr:
        advice = recipe_advice(config.images.dataset)
        if advice:
            report(Notice(text=advice))
    return train_vqgan.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="vqgan train", config=VQGANTrainConfig, run=run, several_processes=True)
