"""How the splits of a cache use its codebook. Imports numpy and zarr only."""

import numpy as np
from numpy.typing import NDArray

from vqgpt.code_statistics import statistics_of_counts
from vqgpt.tokens.manifest import SplitStatistics

CODES_AT_ONCE = 2**20  # numpy counts in 64 bits
PERPLEXITY_DIGITS = 3  # fewer than machines could disagree on


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
