"""`vqgpt cache info`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqgpt.options.command import Command, Flags
from vqgpt.options.paths import CachePath
from vqgpt.options.shared import CACHE
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """`vqgpt cache info`."""

    cache: CachePath = CACHE


def run(config: CacheConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show what a cache holds and how it uses its codebook."""
    from vqgpt.api import caches

    return caches.info(config.cache)


COMMAND = Command(words="cache info", config=CacheConfig, run=run, takes_recipe=False)
