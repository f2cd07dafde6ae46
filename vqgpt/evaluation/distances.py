"""How far apart two sets of images are, by their features: Frechet distance, its limit, KID and MIND.

    features (N, d) float32, or their moments in float64  ->  a distance, and what each image contributes to it

Statistics are in float64 and on the CPU. The influence of an image is the derivative of a distance in the weight of
that image: what an interval is bootstrapped from (`evaluation.intervals`). Knows no images and no network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vqgpt.data.image_sets import drawn_rows
from vqgpt.errors import InputError
from vqgpt.evaluation.intervals import Estimate
from vqgpt.options.codec import one_line

ROWS_AT_ONCE = 4096
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
DIRECTIONS = 1000
DIRECTIONS_AT_ONCE = 50
INFINITY_SIZES = 15
SMALLEST_FOR_INFINITY = 5000  # images; fewer than that are far from the line in 1/N


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of `count` vectors the mean (d,) and the covariance (d, d) that divides by count - 1, float64."""

    count: int
    mean: Tensor
    scatter: Tensor  # the sum of outer products of what differs from the mean

    __repr__ = one_line

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of the rows of (N, d)."""
        wide = features.double()
        mean = wide.mean(dim=0)
        centred = wide - mean
        return cls(count=len(wide), mean=mean, scatter=centred.T @ centred)

    def merged(self, other: "Moments") -> "Moments":
        """Of both sets together (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        count = self.count + other.count
        offset = other.mean - self.mean
        between = torch.outer(offset, offset) * (self.count * other.count / count)
        mean = self.mean + offset * (other.count / count)
        return Moments(count=count, mean=mean, scatter=self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(d, d), unbiased."""
        return self.scatter / max(1, self.count - 1)

    @cached_property
    def factor(self) -> Tensor:
        """F (d, r) with F F^T the covariance, and r its rank."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
        return vectors[:, kept] * values[kept].sqrt()


def moments_of_batches(batches: Iterator[Tensor]) -> Moments:
    """Of all rows of batches (n, d), of which one at a time is in memory."""
    total = Moments.of(next(batches))
    for batch in batches:
        total = total.merged(Moments.of(batch))
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance of two Gaussians (Dowson and Landau 1982; FID where features are Inception's, Heusel 2017).

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)). The last trace is the sum of the singular values of
    F_a^T F_b: no matrix is inverted and no square root taken of a product, so singular covariances are exact.
    """
    return _distance(a, b, torch.linalg.svdvals(a.factor.T @ b.factor).sum())


def _distance(a: Moments, b: Moments, trace_of_root: Tensor) -> float:
    traces = a.covariance.trace() + b.covariance.trace()
    distance = float((a.mean - b.mean).square().sum() + traces - 2 * trace_of_root)
    return max(0.0, distance)  # rounding can leave less


def frechet_estimate(a: Moments, b: Moments, of_a: Tensor, of_b: Tensor) -> Estimate:
    """The Frechet distance, and what each row of (n, d) and of (m, d) contributes to it.

    With F_a^T F_b = U s V^T, the derivative of -2 tr((A B)^(1/2)) in A is -W W^T, W = F_b V s^(-1/2); in B likewise.
    """
    left, values, right = torch.linalg.svd(a.factor.T @ b.factor, full_matrices=False)
    largest = values[0] if len(values) else 0.0  # there are none where all images of a set are the same
    kept = values > largest * max(a.factor.shape) * torch.finfo(torch.float64).eps
    scale = values[kept].rsqrt()
    offset = a.mean - b.mean
    return Estimate(
        value=_distance(a, b, values.sum()),
        of_a=_influence(of_a, a.mean, offset, b.factor @ right.T[:, kept] * scale).numpy(),
        of_b=_influence(of_b, b.mean, -offset, a.factor @ left[:, kept] * scale).numpy(),
    )


def _influence(features: Tensor, mean: Tensor, offset: Tensor, root: Tensor) -> Tensor:
    parts = []
    for rows in features.split(ROWS_AT_ONCE):
        centred = rows.double() - mean
        parts.append(2 * centred @ offset + centred.square().sum(dim=1) - (centred @ root).square().sum(dim=1))
    return torch.cat(parts)


def frechet_distance_at_infinity(features: Tensor, b: Moments, seed: int) -> float | None:
    """The Frechet distance that infinitely many samples would have (Chong and Forsyth 2020, arXiv:1911.07023).

    A line in 1/N through the distances of 15 numbers of samples; each takes those of the smaller ones and more. None
    for too few.
    """
    total = len(features)
    if total < SMALLEST_FOR_INFINITY:
        return None
    sizes = np.linspace(min(5000, total // 10), total, INFINITY_SIZES).astype(int)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(total))
    distances, moments = [], None
    for start, stop in zip([0, *sizes[:-1]], sizes, strict=True):
        more = Moments.of(features[order[start:stop]])
        moments = more if moments is None else moments.merged(more)
        roots = torch.linalg.eigh(b.factor.T @ moments.covariance @ b.factor).eigenvalues.clamp(min=0).sqrt()
        distances.append(_distance(moments, b, roots.sum()))  # half the time of singular values, and exact enough
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3 of all pairs of (n, d) and (m, d): (n, m) (Binkowski et al. 2018, arXiv:1801.01401, eq. 5)."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def kernel_distance(a: Tensor, b: Tensor, seed: int) -> tuple[float, float | None]:
    """KID: mean and standard deviation over 100 pairs of subsets of up to 1000 of (n, d) and (m, d).

    Of two sets that are no larger than a subset there is one pair alone, and no deviation.
    Binkowski et al. 2018, section 4, and the metrics of those who followed.
    """
    size = min(KID_SUBSET_SIZE, len(a), len(b))
    if len(a) == len(b) == size:
        return squared_discrepancy(a, b), None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(KID_SUBSETS):
        x, y = (rows[torch.from_numpy(rng.choice(len(rows), size, replace=False))] for rows in (a, b))
        found.append(squared_discrepancy(x, y))
    return float(np.mean(found)), float(np.std(found))


def squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of (n, d) and (m, d).

    Gretton et al. 2012, eq. 3.
    """
    within = sum(_mean_of_others(polynomial_kernel(part, part)) for part in (x, y))
    return within - 2 * float(polynomial_kernel(x, y).mean(dtype=torch.float64))


def _mean_of_others(kernel: Tensor) -> float:
    """The mean of a square matrix without its diagonal."""
    count = len(kernel)
    return float((kernel.sum(dtype=torch.float64) - kernel.diagonal().double().sum()) / (count * (count - 1)))


def kernel_influences(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What each row contributes to the squared maximum mean discrepancy, (n,) and (m,) float64."""
    between_a, between_b = _mean_kernels(a, b)
    return 2 * (_mean_kernels_of_others(a) - between_a), 2 * (_mean_kernels_of_others(b) - between_b)


def _mean_kernels_of_others(x: Tensor) -> Tensor:
    own = (x.double().square().sum(dim=1) / x.shape[1] + 1) ** 3
    return (len(x) * _mean_kernels(x, x)[0] - own) / (len(x) - 1)


def _mean_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the kernel of each row of (n, d) with those of (m, d), (n,), and the other way round, (m,)."""
    of_x, of_y = [], torch.zeros(len(y), dtype=torch.float64)
    for rows in x.split(max(1, 2**24 // len(y))):
        kernel = polynomial_kernel(rows, y)
        of_x.append(kernel.mean(dim=1, dtype=torch.float64))
        of_y += kernel.sum(dim=0, dtype=torch.float64)
    return torch.cat(of_x), of_y / len(x)


def monge_distance(a: Tensor, b: Tensor, seed: int) -> Estimate:
    """MIND: the squared Wasserstein distance along 1000 random directions (Berthet et al. 2026, arXiv:2605.06797).

    3 d / (n M) times the sum over M directions and n places of |sort(X u) - sort(Y u)|^2. Of two sets of unequal size,
    the larger one gives as many rows as the smaller has. Influences are Kantorovich potentials.
    """
    count, dimensions = min(len(a), len(b)), a.shape[1]
    x, y = (rows[drawn_rows(len(rows), count)] for rows in (a, b))
    directions = torch.from_numpy(np.random.default_rng(seed).standard_normal((dimensions, DIRECTIONS)))
    directions = (directions / directions.norm(dim=0)).float()
    total, of_x, of_y = 0.0, torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for some in directions.split(DIRECTIONS_AT_ONCE, dim=1):
        (places_x, order_x), (places_y, order_y) = ((rows @ some).T.sort(dim=1) for rows in (x, y))
        apart = (places_x - places_y).double()
        total += float(apart.square().mean(dim=1).sum())
        of_x += _potentials(places_x, apart, order_x)
        of_y += _potentials(places_y, -apart, order_y)
    scale = 3 * dimensions / DIRECTIONS
    return Estimate(value=scale * total, of_a=(scale * of_x).numpy(), of_b=(scale * of_y).numpy())


def _potentials(places: Tensor, apart: Tensor, order: Tensor) -> Tensor:
    """Sums over directions of the integral of 2 (place - its partner), in the original order (n,)."""
    steps = (places[:, 1:] - places[:, :-1]).double() * (apart[:, 1:] + apart[:, :-1])
    potentials = torch.nn.functional.pad(steps.cumsum(dim=1), (1, 0))
    potentials = potentials - potentials.mean(dim=1, keepdim=True)
    return torch.zeros_like(potentials).scatter_(1, order, potentials).sum(dim=0)


def check_comparable_features(a: Tensor, b: Tensor) -> None:
    """Raise InputError if features are not of one kind, or not all finite."""
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"features of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared",
            "compute both with the same --features",
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise InputError("features are not all finite numbers", "delete the kept features, and compute them again")
