"""`vqgpt sample`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import SampleConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.progress import Report


def run(config: SampleConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Generate tokens with a GPT, and a picture of them."""
    from vqgpt.api import sample

    return sample.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="sample", config=SampleConfig, run=run)
