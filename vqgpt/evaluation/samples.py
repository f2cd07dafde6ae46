"""How near samples are to real images: the figures of two sets of features, over all and by class.

    Features of the samples, Features of the reference  ->  figures by name, each with its interval

Distances are taken over all images where moments are enough, else over those whose values are in memory; neighbours are
searched among at most 10,000 of each set.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.data.image_sets import drawn_rows
from vqgpt.evaluation.distances import (
    Moments,
    check_comparable_features,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_estimate,
    kernel_distance,
    kernel_influences,
    monge_distance,
    squared_discrepancy,
)
from vqgpt.evaluation.features import Features
from vqgpt.evaluation.intervals import Estimate, interval
from vqgpt.evaluation.neighbours import manifolds

ENOUGH_FOR_FRECHET = 2048  # images: with fewer, the covariance of Inception's features is singular
MOST_NEIGHBOURS = 10_000
FEWEST_OF_A_CLASS = 10
MOST_OF_A_CLASS = 5000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure: its value, its 95 % interval, and the deviation over subsets where there are some."""

    value: float | None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, estimate: Estimate, seed: int, deviation: float | None = None) -> "Figure":
        """An estimate with its interval."""
        low, high = interval(estimate, seed)
        return cls(value=estimate.value, deviation=deviation, low=low, high=high)

    @classmethod
    def of_share(cls, numbers: NDArray[np.float64], seed: int) -> "Figure":
        """The mean of a number of 0 or more per image, (n,)."""
        found = cls.of(Estimate.mean_of(numbers), seed)
        assert found.low is not None
        return replace(found, low=max(0.0, found.low))


def sample_figures(samples: Features, reference: Features, distance_name: str, seed: int) -> dict[str, Figure]:
    """All figures by name; those to be trusted at this number of images come first.

    `distance_name` is what the Frechet distance is called. Raises InputError for features that cannot be compared.
    """
    a, b = samples.values, reference.values
    check_comparable_features(a, b)
    near_a, near_b = (values[drawn_rows(len(values), MOST_NEIGHBOURS)] for values in (a, b))
    distance = frechet_estimate(samples.moments, reference.moments, a, b)
    kid, deviation = kernel_distance(a, b, seed)
    of_a, of_b = kernel_influences(near_a, near_b)
    frechet = {
        distance_name: Figure.of(distance, seed),
        f"{distance_name}-infinity": Figure(value=frechet_distance_at_infinity(a, reference.moments, seed)),
    }
    small = {
        "MIND": Figure.of(monge_distance(a, b, seed), seed),
        "KID": Figure.of(Estimate(value=kid, of_a=of_a.numpy(), of_b=of_b.numpy()), seed, deviation),
    }
    found = manifolds(near_a, near_b)
    numbers = {
        "precision": found.precise,
        "recall": found.recalled,
        "density": found.density,
        "coverage": found.covered,
    }
    shares = {name: Figure.of_share(values, seed) for name, values in numbers.items()}
    few = min(samples.count, reference.count) < ENOUGH_FOR_FRECHET
    return {**(small | frechet if few else frechet | small), **shares}


def figures_by_class(
    samples: Features,
    reference: Features,
    labels: NDArray[np.int64],
    reference_labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    distance_name: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """For each class how many images there are of it, MIND, KID, and the Frechet distance where both have enough.

    `labels` (N,) are of all images of a set, not only of those in memory. KID is over all images of the class, up to
    5,000 of each set. None stands where one set has fewer than 10.
    """
    found = {}
    for number, name in enumerate(class_names):
        counts = [int((each == number).sum()) for each in (labels, reference_labels)]
        row: dict[str, Any] = {"samples": counts[0], "reference": counts[1], "MIND": None, "KID": None}
        row[distance_name] = None
        of_class = [
            features.values[torch.from_numpy(each[features.rows] == number)]
            for features, each in ((samples, labels), (reference, reference_labels))
        ]
        if min(map(len, of_class)) >= FEWEST_OF_A_CLASS:
            a, b = of_class
            row["MIND"] = monge_distance(a, b, seed).value
            some = [values[drawn_rows(len(values), MOST_OF_A_CLASS)] for values in of_class]
            row["KID"] = squared_discrepancy(some[0], some[1])
            if min(len(a), len(b)) >= ENOUGH_FOR_FRECHET:
                row[distance_name] = frechet_distance(Moments.of(a), Moments.of(b))
        found[name] = row
    return found


def distinct_images(features: Features) -> int:
    """How many different images there are."""
    return len(np.unique(features.digests, axis=0))


def images_in_both(features: Features, others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which images are equal in all pixels to one of those with the digests (M, 16)."""
    known = {digest.tobytes() for digest in others}
    return np.array([digest.tobytes() in known for digest in features.digests])


def relative_sharpness(samples: Features, reference: Features) -> float:
    """How much neighbouring pixels of samples differ, as a share of how much those of the reference do."""
    return float(samples.sharpness.mean() / max(1e-9, reference.sharpness.mean()))
