"""How sure a figure is: its interval, from what each image contributes to it.

    a figure, influences (n,) and (m,) of the images of two sets  ->  [lowest, highest]

The influence of an image is the derivative of the figure in the weight of that image (the infinitesimal jackknife,
Efron 1982); of a mean, it is the image's own number.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqgpt.options.codec import one_line

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure of two sets of images, with the influence of each image: (n,) and (m,) float64, up to a constant.

    Either is empty where the figure does not depend on that set.
    """

    value: float
    of_a: NDArray[np.float64]
    of_b: NDArray[np.float64]

    __repr__ = one_line

    @classmethod
    def mean_of(cls, numbers: NDArray[np.float64]) -> "Estimate":
        """The mean of a number per image of one set, (n,)."""
        return cls(value=float(numbers.mean()), of_a=numbers, of_b=np.empty(0))


def interval(estimate: Estimate, seed: int) -> list[float]:
    """The 95 % interval of a figure: [lowest, highest].

    A percentile bootstrap over 1000 resamples of the images of both sets (Efron and Tibshirani 1993, chapter 13), of
    the first-order expansion in their weights. That is exact for means, and without the upward bias that images drawn
    twice give to a distance.
    """
    rng = np.random.default_rng(seed)
    shifts = sum(_shifts_of_mean(numbers, rng) for numbers in (estimate.of_a, estimate.of_b) if len(numbers))
    tails = np.percentile(shifts, [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2])
    return [estimate.value + float(shift) for shift in tails]


def _shifts_of_mean(numbers: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """How the means of resamples of (n,) numbers differ from their mean, (1000,)."""
    centred, count = numbers - numbers.mean(), len(numbers)
    return np.array([centred[rng.integers(count, size=count)].mean() for _ in range(RESAMPLES)])
