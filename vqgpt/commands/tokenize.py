"""`vqgpt tokenize`."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import TokenizeConfig
from vqgpt.options.definition import Command, Flags
from vqgpt.progress import Report


def run(config: TokenizeConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Stage one: encode a dataset into a token cache."""
    from vqgpt.api import tokenize

    return tokenize.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="tokenize", config=TokenizeConfig, run=run, several_processes=True)
