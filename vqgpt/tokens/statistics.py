"""How codes use their codebook, and which labels occur: figures over arrays, and over the splits of a cache.

Imports numpy only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.tokens.manifest import SplitStatistics

CODES_AT_ONCE = 2**20  # numpy counts in 64 bits
PERPLEXITY_DIGITS = 3  # fewer than machines could disagree on
SHOWN_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """`perplexity` is exp of the entropy of the code frequencies: how many evenly used codes would have it."""

    used_codes: int
    perplexity: float
    entropy_bits_per_token: float


def code_statistics(codes: NDArray[Any], codebook_size: int) -> CodeStatistics:
    """Used codes, perplexity and unigram entropy of an array of codes of any shape."""
    return statistics_of_counts(np.bincount(codes.reshape(-1), minlength=codebook_size))


def statistics_of_counts(counts: NDArray[np.integer[Any]]) -> CodeStatistics:
    """The same, from how often each code occurs, (K,)."""
    shares = counts[counts > 0] / max(1, counts.sum())
    entropy_nats = float(-(shares * np.log(shares)).sum())
    return CodeStatistics(
        used_codes=int((counts > 0).sum()),
        perplexity=float(np.exp(entropy_nats)),
        entropy_bits_per_token=entropy_nats / float(np.log(2)),
    )


def count_codes(codes: NDArray[np.unsignedinteger], codebook_size: int) -> NDArray[np.int64]:
    """How often each code occurs in an array of any shape, (K,)."""
    flat = codes.reshape(-1)
    parts = (flat[start : start + CODES_AT_ONCE] for start in range(0, len(flat), CODES_AT_ONCE))
    counts = np.zeros(codebook_size, np.int64)
    for part in parts:
        counts += np.bincount(part, minlength=codebook_size)
    return counts


def split_statistics(histogram: NDArray[np.int64]) -> SplitStatistics:
    """The statistics of how often each code occurs, (K,)."""
    figures = statistics_of_counts(histogram)
    return SplitStatistics(
        used_codes=figures.used_codes,
        perplexity=round(figures.perplexity, PERPLEXITY_DIGITS),
        histogram=tuple(histogram.tolist()),
    )


def occurring(labels: NDArray[np.integer] | NDArray[np.bool_]) -> frozenset[int]:
    """The classes among labels (N,), -1 for none, or the bits that are on in some row of (N, L)."""
    numbers = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))
    return frozenset(numbers[numbers >= 0].tolist())


def names_without(numbers: Iterable[int], names: tuple[str, ...]) -> str:
    """The names of all other numbers, the first few of them; "" if there are none."""
    present = set(numbers)
    others = [repr(name) for number, name in enumerate(names) if number not in present]
    more = f", and {len(others) - SHOWN_NAMES:,} more" if len(others) > SHOWN_NAMES else ""
    return ", ".join(others[:SHOWN_NAMES]) + more
