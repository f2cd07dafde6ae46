"""`vqgpt doctor`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """A command without options of its own."""


def run(config: NoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show versions, devices, and what is missing."""
    from vqgpt.api import doctor

    return doctor.run()


COMMAND = Command(words="doctor", config=NoConfig, run=run, takes_recipe=False)
