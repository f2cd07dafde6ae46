"""`vqgpt vqgan info`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.options.command import Command, Flags
from vqgpt.options.definition import argument
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class VQGANInfoConfig:
    """`vqgpt vqgan info`."""

    file: Path = argument("A VQ-GAN checkpoint, ours or someone else's.")


def run(config: VQGANInfoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show what a VQ-GAN checkpoint is, without loading its weights."""
    from vqgpt.api import import_vqgan

    return import_vqgan.info(config.file)


COMMAND = Command(words="vqgan info", config=VQGANInfoConfig, run=run, takes_recipe=False)
