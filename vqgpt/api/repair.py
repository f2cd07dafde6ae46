"""`vqgpt cache verify --repair`: the command that made a cache, read off its manifest, run again for what is damaged.

A cache knows what made it, not where that lies: the VQ-GAN, images or GPT are those of the dataset, or given. Whether
they are the right ones is checked before anything is written.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from vqgpt.api.cache_options import SourceOptions, VerifyConfig
from vqgpt.api.options import SampleConfig, TokenizeConfig
from vqgpt.data.preprocessing import parse_views
from vqgpt.data.table import DATASETS
from vqgpt.errors import InputError, UsageError
from vqgpt.gpt.completion import Prompts
from vqgpt.gpt.labels import number_word
from vqgpt.gpt.options import SamplingOptions
from vqgpt.options.definition import resolve
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report
from vqgpt.tokens import Description, read_manifest
from vqgpt.tokens.reader import continue_hint

ConfigT = TypeVar("ConfigT")


def run(config: VerifyConfig, report: Report) -> None:
    """Make the shards again of which a file is not as it was written; the others stay as they are.

    Raises InputError if the VQ-GAN, images or GPT at hand are not those that made the cache, or if it was imported.
    """
    description = read_manifest(config.cache).description
    if description.origin == "encoded" and description.unverified:
        raise InputError(
            f"{config.cache} was imported, so it cannot be made again from images",
            continue_hint(config.cache, description),
        )
    if description.origin == "encoded" and description.dataset not in DATASETS:
        raise InputError(
            f"{config.cache} is of {description.dataset!r}, a dataset that this vqgpt does not know",
            "repair it with the version that made it",
        )
    try:
        if description.origin == "encoded":
            from vqgpt.api import tokenize

            again = tokenize_config(config.cache, description, config.sources, config.batch_size)
            tokenize.run(again, overwrite=False, dry_run=False, report=report)
        else:
            from vqgpt.api import sample

            sampling = sample_config(config, description)
            recorded = recorded_prompts(description)
            planned = sample.plan(sampling, lambda *_: recorded, report)
            sample.draw(planned, sampling, overwrite=False, report=report)
    except InputError as error:
        raise InputError(error.message, f"{error.hint}; or {continue_hint(config.cache, description)}") from None


def tokenize_config(
    cache: CachePath, description: Description, sources: SourceOptions, batch_size: int | None = None
) -> TokenizeConfig:
    """The `vqgpt tokenize` that makes the cache which `description` describes; None for what does not matter."""
    config = _as_recorded(
        TokenizeConfig,
        cache,
        {
            "dataset": description.dataset,
            "data_root": sources.data_root,
            "size": description.image_size[0],
            "cache": cache,
            "limit": description.limit,
            "val_split": description.val_split,
            "views": description.views,
            "image_channels": description.image_channels,
            "fit": description.preprocessing.get("fit"),
            "background": description.preprocessing.get("background"),
            "on_error": "skip" if description.skipped else "stop",
            "checkpoint_vae": sources.checkpoint_vae,
            "remap": sources.remap,
            "device": sources.device,
            "precision": description.precision,
            "batch_size": batch_size,
        },
    )
    if config.views and parse_views(config.views) != description.views:
        views = f"views = {description.views}"
        raise InputError(f"vqgpt cannot have made {cache} with the settings that it records: {views}", "make it again")
    return config


def sample_config(config: VerifyConfig, description: Description) -> SampleConfig:
    """The `vqgpt sample` that makes the cache which `description` describes.

    Of what is recorded, only how codes are drawn: no path that a manifest names is read or written.
    """
    if "classes" not in description.sampling:
        raise InputError(f"{config.cache} does not record for which classes it was sampled", "sample it again")
    drawn = {"seed", *(item.name for item in fields(SamplingOptions))}
    return _as_recorded(
        SampleConfig,
        config.cache,
        {
            **{name: value for name, value in description.sampling.items() if name in drawn},
            "dataset": description.dataset,
            "checkpoint_gpt": config.checkpoint_gpt,
            "out": config.cache,
            "classes": None
            if description.sampling.get("prompts")
            else [class_word(turn) for turn in description.sampling["classes"]],
            "device": config.sources.device,
            "precision": description.precision,
        },
    )


def _as_recorded(config_class: type[ConfigT], cache: CachePath, recorded: dict[str, Any]) -> ConfigT:
    """The configuration of the command that made `cache`. Raises InputError if no command can have had it."""
    try:
        return resolve(config_class, recorded)
    except (UsageError, OverflowError) as error:
        raise InputError(
            f"vqgpt cannot have made {cache} with the settings that it records: {error}", "make it again"
        ) from None


def recorded_prompts(description: Description) -> Prompts | None:
    """The prompts that a sampled cache completes, with the label of each image in turn."""
    kept = description.sampling.get("prompts")
    return Prompts(known=np.array(kept), labels=description.sampling["classes"]) if kept else None


def class_word(turn: int | Sequence[int]) -> str:
    """What `--class` takes for one turn: a class by its number, or the numbers of the bits that are on."""
    if isinstance(turn, int):
        return number_word(turn)
    return "+".join(number_word(number) for number, bit in enumerate(turn) if bit > 0) or number_word(-1)
