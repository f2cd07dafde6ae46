"""`vqgpt cache list`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqgpt.options.command import Command, Flags
from vqgpt.options.definition import option
from vqgpt.options.paths import CACHE_FOLDER, CachePath
from vqgpt.options.shared import DATA
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """`vqgpt cache list`."""

    folder: CachePath = option(CACHE_FOLDER, "The folder of token caches, or s3://BUCKET/FOLDER.", group=DATA)


def run(config: ListConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """List the token caches in cache/, or in another folder."""
    from vqgpt.api import caches

    return caches.list_all(config.folder, report)


COMMAND = Command(words="cache list", config=ListConfig, run=run, takes_recipe=False)
