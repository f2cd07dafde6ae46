"""`vqgpt cache rm`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqgpt.options.command import Command, Flags
from vqgpt.options.definition import option
from vqgpt.options.paths import CachePath
from vqgpt.options.shared import CACHE, DATA
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class RemoveConfig:
    """`vqgpt cache rm`."""

    cache: CachePath = CACHE
    yes: bool = option(False, "Delete it; without this, the command only says what it would delete.", group=DATA)


def run(config: RemoveConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Delete a cache, finished or not, if --yes is given."""
    from vqgpt.api import remove_cache

    return remove_cache.run(config.cache, config.yes, report)


COMMAND = Command(words="cache rm", config=RemoveConfig, run=run, takes_recipe=False)
