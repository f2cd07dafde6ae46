"""How codes use their codebook: figures over any array of codes. Must not import torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
