"""`vqgpt cache list`, `info` and `verify`. Must not import torch."""

from typing import Any

import numpy as np

from vqgpt.api.find import list_caches
from vqgpt.errors import InputError, VQGPTError
from vqgpt.options.paths import CachePath
from vqgpt.progress import Notice, Report
from vqgpt.tokens import TokenCache, find_faults, read_manifest
from vqgpt.tokens.reader import STRANGER, UNFINISHED, continue_hint, repair_hint
from vqgpt.tokens.statistics import statistics_of_counts


def list_all(folder: CachePath, report: Report) -> dict[str, Any]:
    """What each cache in a folder holds, by name; of one that cannot be read, why."""
    caches = list_caches(folder)
    if not caches:
        report(Notice(text=f"there is no token cache in {folder}/; `vqgpt tokenize` makes one"))
    return {path.name: _summary(path) for path in caches}


def _summary(path: CachePath) -> dict[str, Any]:
    try:
        manifest = read_manifest(path)
    except VQGPTError as error:
        return {"status": error.message}
    except OSError as error:
        return {"status": f"{path}: {error.strerror or error}"}
    description = manifest.description
    return {
        "status": "complete" if manifest.complete else "not finished",
        "origin": description.origin,
        "rows": sum(split.rows for split in description.splits),
        "grid": description.grid,
        "codebook_size": description.codebook_size,
    }


def info(path: CachePath) -> dict[str, Any]:
    """What a cache holds, and per split its rows, used codes, perplexity and unigram entropy in bits per token.

    Reads the manifest alone. Raises InputError if it is damaged or not finished.
    """
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
        "preprocessing": description.preprocessing.get("rule", ""),
        "views": description.views,
        "grid": description.grid,
        "codebook_size": description.codebook_size,
        "tokenizer": description.tokenizer_sha256,
        "precision": description.precision,
        "digest": cache.digest,
    }
    if description.limit is not None:
        result["limit"] = description.limit
    if description.skipped:
        result["skipped"] = description.skipped
    if description.unverified:
        result["unverified"] = description.unverified
    if description.sampling:
        result |= {f"sampling_{name}": value for name, value in description.sampling.items()}
    for split in description.splits:
        statistics = cache.manifest.statistics[split.name]
        entropy = statistics_of_counts(np.array(statistics.histogram)).entropy_bits_per_token
        result |= {
            f"{split.name}_rows": split.rows,
            f"{split.name}_used_codes": statistics.used_codes,
            f"{split.name}_perplexity": statistics.perplexity,
            f"{split.name}_entropy_bits_per_token": entropy,
        }
    return result


def verify(path: CachePath) -> dict[str, Any]:
    """Check every file. Raises InputError that lists all faults, if there are any."""
    faults = find_faults(path)
    if faults:
        description = read_manifest(path).description
        if all(fault.endswith(STRANGER) for fault in faults):
            remedy = "move what does not belong to it elsewhere"
        else:
            remedy = (continue_hint if UNFINISHED in faults else repair_hint)(path, description)
        raise InputError(f"{path}: {'; '.join(faults)}", remedy)
    return {"cache": path, "status": "every file is as it was written"}
