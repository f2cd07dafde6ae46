"""`vqgpt render`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import RenderConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.progress import Report


def run(config: RenderConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Decode a token cache into pictures."""
    from vqgpt.api import render

    return render.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="render", config=RenderConfig, run=run)
