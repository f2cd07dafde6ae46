"""`vqgpt vqgan import`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import ImportConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: ImportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Make a checkpoint of ours from someone else's."""
    from vqgpt.api import import_vqgan

    return import_vqgan.run(config, flags.overwrite, flags.dry_run)


COMMAND = Command(words="vqgan import", config=ImportConfig, run=run)
