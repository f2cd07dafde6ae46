"""Checking every file of a token cache, past the first fault, and the figures that describe its codes.

Imports numpy and zarr only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError
from vqgpt.tokens.manifest import Manifest
from vqgpt.tokens.reader import TokenCache, read_checked, read_manifest
from vqgpt.tokens.writer import ROOT, shard_files


@dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """How a split uses the codebook. `perplexity` is exp of the entropy of the code frequencies."""

    used_codes: int
    perplexity: float
    entropy_bits_per_token: float


def code_statistics(codes: NDArray[Any], codebook_size: int) -> CodeStatistics:
    """Used codes, perplexity and unigram entropy of any array of codes."""
    counts = np.bincount(codes.reshape(-1), minlength=codebook_size)
    shares = counts[counts > 0] / max(1, counts.sum())
    entropy_nats = float(-(shares * np.log(shares)).sum())
    return CodeStatistics(
        used_codes=int((counts > 0).sum()),
        perplexity=float(np.exp(entropy_nats)),
        entropy_bits_per_token=entropy_nats / float(np.log(2)),
    )


def find_faults(path: Path) -> list[str]:
    """Everything that is wrong with the cache at `path`, a line each; empty if it is whole.

    Raises InputError if it is not a cache at all, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    faults = [] if manifest.complete else ["the cache is not finished"]
    expected = _expected_files(manifest)
    for key, file in expected.items():
        fault, _ = read_checked(path / key, file)
        if fault:
            faults.append(f"{key} {fault}")
    present = {str(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()}
    faults += [f"{key} does not belong to this cache" for key in sorted(present - set(expected) - {ROOT})]
    if not faults:
        faults = _content_faults(TokenCache(path))
    return faults


def _expected_files(manifest: Manifest) -> dict[str, Any]:
    files = dict(manifest.files)
    for split, shards in manifest.shards.items():
        for index, shard in shards.items():
            files |= shard_files(manifest.description, split, index, shard)
    return files


def _content_faults(cache: TokenCache) -> list[str]:
    faults = []
    for name in cache.split_names:
        try:
            cache.read_split(name)
        except InputError as error:
            faults.append(error.message)
    return faults
