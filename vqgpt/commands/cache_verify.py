"""`vqgpt cache verify`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.cache_options import VerifyConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: VerifyConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Check every file of a cache; with --repair, make again what is damaged."""
    from vqgpt.api import caches

    if config.repair:
        from vqgpt.api import repair

        repair.run(config, report)
    return caches.verify(config.cache)


COMMAND = Command(words="cache verify", config=VerifyConfig, run=run, takes_recipe=False)
