"""`vqgpt vqgan reconstruct`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import ReconstructConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.progress import Report


def run(config: ReconstructConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show held-out images above their reconstructions."""
    from vqgpt.api import reconstruct

    return reconstruct.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="vqgan reconstruct", config=ReconstructConfig, run=run)
