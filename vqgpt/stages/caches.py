"""`vqgpt cache list`, `info` and `verify`. Must not import torch."""

from pathlib import Path
from typing import Any

from vqgpt.config.commands import CACHE_FOLDER
from vqgpt.errors import InputError
from vqgpt.stages.find import list_caches
from vqgpt.tokens import TokenCache, code_statistics, find_faults, read_manifest
from vqgpt.tokens.reader import repair_hint


def list_all() -> dict[str, Any]:
    """A line for each cache in `cache/`."""
    return {path.name: _summary(path) for path in list_caches(CACHE_FOLDER)}


def _summary(path: Path) -> str:
    try:
        manifest = read_manifest(path)
    except InputError as error:
        return f"cannot be read: {error.message}"
    description = manifest.description
    rows = sum(split.rows for split in description.splits)
    status = "complete" if manifest.complete else "not finished"
    grid = f"{description.grid[0]} x {description.grid[1]}"
    return f"{rows} rows of {grid} codes out of {description.codebook_size}, {description.origin}, {status}"


def info(path: Path) -> dict[str, Any]:
    """What a cache holds, and per split its rows, used codes, perplexity and unigram entropy in bits per token."""
    cache = TokenCache(path)
    description = cache.description
    result: dict[str, Any] = {
        "cache": path,
        "origin": description.origin,
        "dataset": description.dataset,
        "classes": len(description.class_names),
        "labels": description.label_kind,
        "image_size": description.image_size,
        "image_channels": description.image_channels,
        "views": description.views,
        "grid": description.grid,
        "codebook_size": description.codebook_size,
        "tokenizer": description.tokenizer_sha256,
        "precision": description.precision,
        "digest": cache.digest,
    }
    if description.sampling:
        result |= {f"sampling_{name}": value for name, value in description.sampling.items()}
    for name in cache.split_names:
        statistics = code_statistics(cache.read_split(name).codes, description.codebook_size)
        rows = next(split.rows for split in description.splits if split.name == name)
        result |= {
            f"{name}_rows": rows,
            f"{name}_used_codes": statistics.used_codes,
            f"{name}_perplexity": statistics.perplexity,
            f"{name}_entropy_bits_per_token": statistics.entropy_bits_per_token,
        }
    return result


def verify(path: Path) -> dict[str, Any]:
    """Check every file. Raises InputError that lists all faults, if there are any."""
    faults = find_faults(path)
    description = read_manifest(path).description
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}", repair_hint(path, description))
    return {"cache": path, "status": "every file is as it was written"}
