"""`vqgpt cache verify`: checks every file of a token cache; with --repair, makes again what is damaged.

Whether the VQ-GAN, the images or the GPT at hand are those that made it is checked before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.api.options import SourceOptions
from vqgpt.data.table import DATASETS
from vqgpt.errors import InputError
from vqgpt.options.definition import CACHE, CHECKPOINT_GPT, IMAGES_PER_PASS, Command, Flags, check_positive, option
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report

REPAIR = "Repair"


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """`vqgpt cache verify`."""

    cache: CachePath = CACHE
    repair: bool = option(False, "Make what is damaged or missing again, and nothing else.", group=REPAIR)
    batch_size: int = IMAGES_PER_PASS
    checkpoint_gpt: Path | None = CHECKPOINT_GPT
    sources: SourceOptions

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")


def run(config: VerifyConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Check every file of a cache; with --repair, make again what is damaged."""
    from vqgpt.tokens import find_faults, read_manifest
    from vqgpt.tokens.reader import STRANGER, UNFINISHED, continue_hint, repair_hint

    if config.repair:
        _repair(config, report)
    faults = find_faults(config.cache)
    if not faults:
        return {"cache": config.cache, "status": "every file is as it was written"}
    description = read_manifest(config.cache).description
    if all(fault.endswith(STRANGER) for fault in faults):
        remedy = "move what does not belong to it elsewhere"
    else:
        remedy = (continue_hint if UNFINISHED in faults else repair_hint)(config.cache, description)
    raise InputError(f"{config.cache}: {'; '.join(faults)}", remedy)


def _repair(config: VerifyConfig, report: Report) -> None:
    """Run the command that made the cache again, for the shards of which a file is not as it was written.

    Raises InputError if the VQ-GAN, images or GPT at hand are not those that made the cache, or if it was imported.
    """
    from vqgpt.api import sample, sources, tokenize
    from vqgpt.tokens import read_manifest
    from vqgpt.tokens.reader import continue_hint

    cache, description = config.cache, read_manifest(config.cache).description
    if description.origin == "encoded" and description.unverified:
        raise InputError(
            f"{cache} was imported, so it cannot be made again from images", continue_hint(cache, description)
        )
    if description.origin == "encoded" and description.dataset not in DATASETS:
        raise InputError(
            f"{cache} is of {description.dataset!r}, a dataset that this vqgpt does not know",
            "repair it with the version that made it",
        )
    try:
        if description.origin == "encoded":
            again = sources.tokenize_config(cache, description, config.sources, config.batch_size)
            tokenize.run(again, overwrite=False, dry_run=False, report=report)
        else:
            sampling = sources.sample_config(cache, description, config.sources, config.checkpoint_gpt)
            prompts = sources.recorded_prompts(description)
            planned = sample.plan(sampling, lambda *_: prompts, report)
            sample.draw(planned, sampling, overwrite=False, report=report)
    except InputError as error:
        raise InputError(error.message, f"{error.hint}; or {continue_hint(cache, description)}") from None


COMMAND = Command(words="cache verify", config=VerifyConfig, run=run, takes_recipe=False)
