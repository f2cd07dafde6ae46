"""`vqgpt score`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.output_options import ScoreConfig
from vqgpt.options.command import Command, Flags
from vqgpt.progress import Report


def run(config: ScoreConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Tell how likely a GPT finds every row of a token cache."""
    from vqgpt.api import score

    return score.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="score", config=ScoreConfig, run=run)
