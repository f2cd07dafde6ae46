"""`vqgpt cache export`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.cache_options import ExportConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: ExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a cache in a format that others read: npy, npz, nanoGPT's bin, WebDataset."""
    from vqgpt.api import export_cache

    return export_cache.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="cache export", config=ExportConfig, run=run)
