"""`vqgpt cache list`, `info` and `verify`. Must not import torch."""

from pathlib import Path
from typing import Any

from vqgpt.code_statistics import code_statistics
from vqgpt.config.commands import CACHE_FOLDER
from vqgpt.errors import InputError
from vqgpt.progress import Notice, Report
from vqgpt.stages.find import list_caches
from vqgpt.tokens import TokenCache, find_faults, read_manifest
from vqgpt.tokens.reader import repair_hint
from vqgpt.tokens.verify import STRANGER


def list_all(report: Report) -> dict[str, Any]:
    """What each cache in `cache/` holds, by name."""
    caches = list_caches(CACHE_FOLDER)
    if not caches:
        report(Notice(text=f"there is no token cache in {CACHE_FOLDER}/; `vqgpt tokenize` makes one"))
    return {path.name: _summary(path) for path in caches}


def _summary(path: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(path)
    except InputError as error:
        return {"status": error.message}
    description = manifest.description
    return {
        "status": "complete" if manifest.complete else "not finished",
        "origin": description.origin,
        "rows": sum(split.rows for split in description.splits),
        "grid": description.grid,
        "codebook_size": description.codebook_size,
    }


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
        only_strangers = all(fault.endswith(STRANGER) for fault in faults)
        remedy = "delete what does not belong to it" if only_strangers else repair_hint(path, description)
        raise InputError(f"{path}: {'; '.join(faults)}", remedy)
    return {"cache": path, "status": "every file is as it was written"}
