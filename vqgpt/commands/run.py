"""`vqgpt run`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import RunConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: RunConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Run the whole pipeline of a recipe: every stage that is not up to date, from images to pictures."""
    from vqgpt.api import run
    from vqgpt.commands import all_commands

    return run.run(config, flags, all_commands(), report)


COMMAND = Command(words="run", config=RunConfig, run=run)
