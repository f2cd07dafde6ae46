"""`vqgpt cache info`: what a token cache holds, from its manifest alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqgpt.options.definition import CACHE, Command, Flags
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """`vqgpt cache info`."""

    cache: CachePath = CACHE


def run(config: CacheConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show what a cache holds and how it uses its codebook."""
    import numpy as np

    from vqgpt.tokens import TokenCache
    from vqgpt.tokens.arrays import codebook_rank, statistics_of_counts

    cache = TokenCache(config.cache)
    description = cache.description
    result: dict[str, Any] = {
        "cache": config.cache,
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
    rare = {name: getattr(description, name) for name in ("limit", "skipped", "unverified")}
    result |= {name: value for name, value in rare.items() if value}
    result |= {f"sampling_{name}": value for name, value in description.sampling.items()}
    for split in description.splits:
        statistics = cache.manifest.statistics[split.name]
        histogram = np.array(statistics.histogram)
        entropy = statistics_of_counts(histogram).entropy_bits_per_token
        result |= {
            f"{split.name}_rows": split.rows,
            f"{split.name}_used_codes": statistics.used_codes,
            f"{split.name}_perplexity": statistics.perplexity,
            f"{split.name}_codebook_rank": codebook_rank(cache.codebook(), histogram),
            f"{split.name}_entropy_bits_per_token": entropy,
        }
    return result


COMMAND = Command(words="cache info", config=CacheConfig, run=run, takes_recipe=False)
