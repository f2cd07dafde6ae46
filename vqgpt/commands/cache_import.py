"""`vqgpt cache import`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.cache_options import CacheImportConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: CacheImportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Make a cache of codes that LlamaGen or RAR extracted."""
    from vqgpt.api import import_cache

    return import_cache.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="cache import", config=CacheImportConfig, run=run)
