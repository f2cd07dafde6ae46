"""`vqgpt vqgan train`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.options.recipe import advise_recipe
from vqgpt.progress import Report
from vqgpt.vqgan.options import VQGANOptions


def run(config: VQGANTrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Train a VQ-GAN on a dataset."""
    from vqgpt.api import train_vqgan

    chosen = {"lr", *(item.name for item in fields(VQGANOptions))} & config.given  # by a recipe too, under `vqgpt run`
    if not chosen and config.checkpoint_vae is None:
        advise_recipe(config.images.dataset, report)
    return train_vqgan.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="vqgan train", config=VQGANTrainConfig, run=run, several_processes=True)
