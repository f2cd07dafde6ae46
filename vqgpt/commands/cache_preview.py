"""`vqgpt cache preview`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.cache_options import PreviewConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: PreviewConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Check codes by eye and by figures: random rows, decoded next to their images."""
    from vqgpt.api import preview

    return preview.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="cache preview", config=PreviewConfig, run=run)
