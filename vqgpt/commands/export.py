"""`vqgpt export`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.output_options import ModelExportConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: ModelExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a network in a format that others read: Hugging Face transformers, safetensors."""
    from vqgpt.api import export_model

    return export_model.run(config, flags.overwrite, flags.dry_run)


COMMAND = Command(words="export", config=ModelExportConfig, run=run)
