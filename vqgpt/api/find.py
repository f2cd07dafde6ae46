"""Which cache or GPT a command means when it was not told, and whether they go together. Must not import torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from vqgpt.errors import MissingDataError, UsageError
from vqgpt.gpt.options import GPTConfig
from vqgpt.options.paths import CACHE_FOLDER, RUNS_FOLDER, CachePath, CacheURL, cache_path, gpt_path
from vqgpt.progress import Notice, Report
from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER

PathT = TypeVar("PathT", bound=CachePath)


def find_cache(cache: CachePath | None, dataset: str | None) -> CachePath:
    """The cache to train on: the one given, the dataset's, or the only one. Raises MissingDataError or UsageError."""
    if isinstance(cache, CacheURL):
        return cache  # opening it tells
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


def tell_if_unknown(tokenizer_sha256: str, report: Report) -> None:
    """A notice, where codes that are taken to be of one VQ-GAN were all imported without it."""
    if tokenizer_sha256 == UNKNOWN_TOKENIZER:
        report(
            Notice(
                text="the tokens of the cache and of the GPT were imported without their VQ-GAN, so vqgpt "
                "cannot tell whether it was the same one"
            )
        )


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
