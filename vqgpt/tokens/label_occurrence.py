"""Which classes or attributes the images of a split have: what a GPT can learn of. Must not import torch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SHOWN_NAMES = 5


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
