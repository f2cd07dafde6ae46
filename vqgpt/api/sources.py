"""Which cache or GPT a command means where the user does not say, which ones go together, and what made a cache.

A cache knows what made it, not where that lies: the VQ-GAN, images or GPT are those of the dataset, or given
(`SourceOptions`). Must not import torch.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from vqgpt.api.options import SampleConfig, SourceOptions, TokenizeConfig
from vqgpt.data.options import parse_views
from vqgpt.errors import InputError, MissingDataError, UsageError, composed
from vqgpt.gpt.labels import Prompts, number_word
from vqgpt.gpt.options import GPTConfig, GPTOptions, SamplingOptions
from vqgpt.gpt.order import Order
from vqgpt.options.definition import check, resolve
from vqgpt.options.paths import CACHE_FOLDER, RUNS_FOLDER, CachePath, CacheURL, cache_path, gpt_path
from vqgpt.progress import Notice, Report
from vqgpt.tokens import Description, TokenCache
from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER

ConfigT = TypeVar("ConfigT")
PathT = TypeVar("PathT", bound=CachePath)
SHOWN_NAMES = 5


def find_cache(cache: CachePath | None, dataset: str | None) -> CachePath:
    """The cache to train on: the one given, the dataset's, or the only one. Raises MissingDataError or UsageError."""
    if isinstance(cache, CacheURL):
        return cache  # opening it shows whether it is there
    if cache is not None:
        return _existing(cache, f"make one with: vqgpt tokenize --cache {cache}")
    if dataset is not None:
        return _existing(cache_path(dataset), f"make it with: vqgpt tokenize --dataset {dataset}")
    caches = list_caches(CACHE_FOLDER)
    return _only(caches, "token cache", CACHE_FOLDER, "make one with: vqgpt tokenize --dataset NAME", "--cache")


def find_gpt(checkpoint: Path | None, dataset: str | None) -> Path:
    """The GPT to sample from: the one given, the dataset's, or the only one. Raises MissingDataError or UsageError."""
    if checkpoint is not None:
        return _existing(checkpoint, "train one with: vqgpt train")
    if dataset is not None:
        return _existing(gpt_path(dataset), f"train one with: vqgpt train --dataset {dataset}")
    checkpoints = sorted(RUNS_FOLDER.glob("*/gpt.pt"))
    return _only(checkpoints, "trained GPT", RUNS_FOLDER, "train one with: vqgpt train", "--checkpoint-gpt")


def check_dataset(asked: str | None, actual: str, path: CachePath) -> None:
    """Raise UsageError if `path` is of another dataset than --dataset asks for."""
    if asked not in (None, actual):
        raise UsageError(f"{path} is of dataset {actual}, not {asked}", "leave --dataset out, or give another path")


def check_heads(asked: int | None, gpt: GPTConfig, path: Path) -> None:
    """Raise UsageError if a GPT has other attention heads than --n-head says."""
    if asked not in (None, gpt.options.n_head):
        raise UsageError(f"{path} has {gpt.options.n_head} attention heads, not {asked}", "leave --n-head out")


def warn_if_unknown(tokenizer_sha256: str, report: Report) -> None:
    """A notice, where codes that are taken to be of one VQ-GAN were all imported without it."""
    if tokenizer_sha256 == UNKNOWN_TOKENIZER:
        report(
            Notice(
                text="the tokens of the cache and of the GPT were imported without their VQ-GAN, so vqgpt "
                "cannot tell whether it was the same one"
            )
        )


def check_goes_with(
    config: GPTConfig, trained_on: Description | None, path: Path, cache: TokenCache, report: Report
) -> None:
    """Raise InputError, with both sides, if the GPT was trained on tokens of another kind than the cache has."""
    description = cache.description
    pairs: list[tuple[str, Any, Any]] = [
        ("codes", config.codebook_size, description.codebook_size),
        ("a grid of", config.grid, description.grid),
    ]
    if trained_on is None:
        report(Notice(text=f"{path} does not record which VQ-GAN it was trained with; the scores assume the cache's"))
    else:
        pairs.append(("the VQ-GAN", trained_on.tokenizer_sha256[:12], description.tokenizer_sha256[:12]))
        if description.label_kind == config.options.condition != "none":
            ours, theirs = trained_on.class_names, description.class_names
            pairs.append(("the classes", [*map(composed, ours)], [*map(composed, theirs)]))
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise InputError(
                f"{path} was trained with {what} {_text(ours)}, and {cache.path} has {_text(theirs)}",
                "give a GPT that was trained on such tokens, with --checkpoint-gpt, or another cache",
            )
    if config.num_views and description.views[0] != "identity":
        report(
            Notice(
                text=f"rows are scored in their first view, {description.views[0]}, which the GPT is told is identity"
            )
        )
    if config.num_classes and description.label_kind != config.options.condition:
        report(Notice(text="the cache has no labels of the kind that the GPT knows: it is scored unconditionally"))


def check_same_codes(training: TokenCache, cache: TokenCache) -> None:
    """Raise InputError, with both sides, if the codes of another cache mean other things."""
    ours, theirs = cache.description, training.description
    for what in ("tokenizer_sha256", "grid"):
        mine, other = _text(getattr(ours, what)), _text(getattr(theirs, what))
        if mine != other:
            raise InputError(
                f"{what}: {cache.path} has {mine}, {training.path} has {other}",
                "give a cache of the same VQ-GAN and image size",
            )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join([*value[:SHOWN_NAMES], "..."] if len(value) > SHOWN_NAMES else value)
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def list_caches(folder: CachePath) -> list[CachePath]:
    """The token caches directly in a folder, finished or not."""
    if isinstance(folder, CacheURL):
        from vqgpt.tokens.object_store import ObjectStore

        names = ObjectStore(folder).folders()
        return [CacheURL(f"{folder}/{name}") for name in names if name.endswith(".zarr")]
    return sorted(path.parent for path in folder.glob("*.zarr/zarr.json"))


def _existing(path: Path, how_to_make_one: str) -> Path:
    if not path.exists():
        raise MissingDataError(f"there is no {path}", how_to_make_one)
    return path


def _only(found: Sequence[PathT], what: str, folder: Path, how_to_make_one: str, flag: str) -> PathT:
    if not found:
        raise MissingDataError(f"there is no {what} in {folder}/", how_to_make_one)
    if len(found) > 1:
        raise UsageError(f"there are several: {', '.join(map(str, found))}", f"choose one with {flag} or --dataset")
    return found[0]


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


def sample_config(
    cache: CachePath, description: Description, sources: SourceOptions, checkpoint_gpt: Path | None
) -> SampleConfig:
    """The `vqgpt sample` that makes the cache which `description` describes.

    Of what is recorded, only how codes are drawn: no path that a manifest names is read or written.
    """
    recorded = description.sampling
    if "classes" not in recorded:
        raise InputError(f"{cache} does not record for which classes it was sampled", "sample it again")
    drawn = {"seed", *(item.name for item in fields(SamplingOptions))}
    return _as_recorded(
        SampleConfig,
        cache,
        {
            **{name: value for name, value in recorded.items() if name in drawn},
            "dataset": description.dataset,
            "checkpoint_gpt": checkpoint_gpt,
            "out": cache,
            "classes": None if recorded.get("prompts") else [class_word(label) for label in recorded["classes"]],
            "device": sources.device,
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


def check_order(order: Order | None, options: GPTOptions, checkpoint: Path, flag: str) -> None:
    """Raise UsageError for an order that is none, or if a GPT of one order is to read or draw grids in another."""
    check(
        order in (None, *get_args(Order)),
        flag.lstrip("-").replace("-", "_"),
        order,
        f"one of {', '.join(get_args(Order))}",
    )
    if order not in (None, options.order) and not options.any_order:
        raise UsageError(
            f"{checkpoint} was trained on one order ({options.order}) and knows no other",
            f"leave {flag} out, or train a GPT with --order random",
        )


def recorded_prompts(description: Description) -> Prompts | None:
    """The prompts that a sampled cache completes, and the labels that its images cycle through."""
    known = description.sampling.get("prompts")
    return Prompts(known=np.array(known), labels=description.sampling["classes"]) if known else None


def class_word(label: int | Sequence[int]) -> str:
    """What `--class` takes for a label: a class by its number, or the numbers of the bits that are on."""
    if isinstance(label, int):
        return number_word(label)
    return "+".join(number_word(number) for number, bit in enumerate(label) if bit > 0) or number_word(-1)
