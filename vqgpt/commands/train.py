"""`vqgpt train`."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vqgpt.api.options import TrainConfig
from vqgpt.errors import VQGPTError
from vqgpt.gpt.options import GPTTrainingOptions
from vqgpt.options.definition import Command, Flags
from vqgpt.options.recipe import advise_recipe
from vqgpt.progress import Report


def run(config: TrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Stage two: train a GPT on a token cache."""
    from vqgpt.api import train
    from vqgpt.api.sources import find_cache

    if flags.recipe is None and config.training.lr == GPTTrainingOptions.lr:
        with suppress(VQGPTError):  # that there is no cache is for the training to say
            advise_recipe(config.dataset or find_cache(config.cache, None).stem, report)
    return train.run(config, flags.overwrite, flags.dry_run, report)


COMMAND = Command(words="train", config=TrainConfig, run=run, several_processes=True)
