"""Who is near to whom: precision and recall, density and coverage, and whether samples are copies of training images.

    features (n, d) float32, or codes (n, T)  ->  shares of images, and a number per image

Distances between features are Euclidean, computed block by block: memory does not grow with the product of the numbers
of images. Knows no images and no network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.options.codec import one_line

NEIGHBOURS = 5  # k of Naeem et al. and of the evaluations that follow them
NUMBERS_AT_ONCE = 2**24  # distances in memory
NUMBERS_PER_SEARCH = 2**25
ROWS_PER_SEARCH = 1024
COMPONENTS = 64
CELLS = 3
FEWEST_IN_A_CELL = 20  # samples; a cell with no more says nothing


@dataclass(frozen=True, kw_only=True)
class Manifolds:
    """For each sample, and for each reference image, what precision, recall, density and coverage are the means of.

    `precise` (n,): the sample lies within the k-th neighbour of some reference image; `density` (n,): within how many,
    over k. `recalled` (m,): the reference image lies within the k-th neighbour of some sample; `covered` (m,): a sample
    lies within its own.
    """

    precise: NDArray[np.float64]
    density: NDArray[np.float64]
    recalled: NDArray[np.float64]
    covered: NDArray[np.float64]

    __repr__ = one_line


def manifolds(samples: Tensor, reference: Tensor) -> Manifolds:
    """Of (n, d) and (m, d), with k = 5 or, of few images, one fewer than there are.

    Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991, eq. 1). Density and coverage: Naeem et al. 2020
    (arXiv:2002.09797, eq. 4 and 5). An image on the edge of a ball lies outside it.
    """
    samples, reference = centred(samples, reference)
    k = min(NEIGHBOURS, len(samples) - 1, len(reference) - 1)
    radii_of_samples, radii = (kth_neighbour(features, k) for features in (samples, reference))
    precise, density = [], []
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    nearest = torch.full((len(reference),), torch.inf)
    start = 0
    for distances in squared_distances(samples, reference):
        within = distances < radii
        precise.append(within.any(dim=1))
        density.append(within.sum(dim=1) / k)
        rows = slice(start, start + len(distances))
        recalled |= (distances < radii_of_samples[rows, None]).any(dim=0)
        nearest = torch.minimum(nearest, distances.min(dim=0).values)
        start += len(distances)
    return Manifolds(
        precise=torch.cat(precise).double().numpy(),
        density=torch.cat(density).double().numpy(),
        recalled=recalled.double().numpy(),
        covered=(nearest < radii).double().numpy(),
    )


def centred(*sets: Tensor) -> list[Tensor]:
    """Sets of features (n, d), less the mean of the last one: their distances then lose fewer digits."""
    mean = sets[-1].mean(dim=0)
    return [features - mean for features in sets]


def squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """From the rows of (n, d) to those of (m, d), in blocks (some, m), in order."""
    of_y = y.square().sum(dim=1)
    for rows in x.split(max(1, NUMBERS_AT_ONCE // len(y))):
        yield (rows.square().sum(dim=1, keepdim=True) + of_y).addmm_(rows, y.T, alpha=-2).clamp_(min=0)


def kth_neighbour(features: Tensor, k: int) -> Tensor:
    """The squared distance of each of (n, d) to its k-th nearest other, (n,)."""
    found, start = [], 0
    for distances in squared_distances(features, features):
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        found.append(distances.topk(k, dim=1, largest=False).values[:, -1])
        start += len(distances)
    return torch.cat(found)


def nearest_of(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance of each of (n, d) to the nearest of (m, d), 0 for equal vectors, and its row: (n,) each."""
    rows = torch.cat([distances.argmin(dim=1) for distances in squared_distances(features, others)])
    at_once = max(1, NUMBERS_AT_ONCE // features.shape[1])
    parts = zip(features.split(at_once), rows.split(at_once), strict=True)
    return torch.cat([(part - others[nearest]).square().sum(dim=1) for part, nearest in parts]), rows


def authentic(sets: Sequence[Tensor], training: Tensor) -> list[NDArray[np.bool_]]:
    """Which vectors of each set (n, d) are no copies, (n,): AuthPct is the share of a set.

    A sample is authentic if its nearest training image has a training image that is nearer to it than the sample is
    (Alaa et al. 2022, arXiv:2102.08921, section 4).
    """
    *moved, training = centred(*sets, training)
    spacing = kth_neighbour(training, 1)
    found = []
    for features in moved:
        distances, rows = nearest_of(features, training)
        found.append((spacing[rows] < distances).numpy())
    return found


def copying_test(samples: Tensor, held_out: Tensor, training: Tensor) -> float | None:
    """C_T (Meehan, Chaudhuri and Dasgupta 2020, arXiv:2004.05675): below 0, samples lie nearer to training images.

    Nearer than held-out images do, in standard deviations: the Z-score of a Mann-Whitney test of the distances to the
    nearest training image, in the first 64 principal components, averaged over the three k-means cells of the training
    images by their shares of held-out images. None where no cell has more than 20 samples, and some of the others.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    wide = [features.double().numpy() for features in (samples, held_out, training)]
    components = min(COMPONENTS, *wide[2].shape)
    transform = PCA(components, random_state=0).fit(wide[2])
    near = [transform.transform(features) for features in wide]
    cells = KMeans(min(CELLS, len(near[2])), n_init=10, random_state=0).fit(near[2])
    in_cells = [cells.predict(features) for features in near]
    scores, weights = [], []
    for cell in range(cells.n_clusters):
        inside = [features[places == cell] for features, places in zip(near, in_cells, strict=True)]
        if len(inside[0]) > FEWEST_IN_A_CELL and len(inside[1]) and len(inside[2]):
            scores.append(_z_score(*inside))
            weights.append(len(inside[1]))
    return float(np.average(scores, weights=weights)) if scores else None


def _z_score(samples: NDArray[np.float64], held_out: NDArray[np.float64], training: NDArray[np.float64]) -> float:
    from scipy.stats import mannwhitneyu

    to_training = torch.from_numpy(training)
    first, second = (nearest_of(torch.from_numpy(rows), to_training)[0].numpy() for rows in (samples, held_out))
    n, m = len(first), len(second)
    statistic = mannwhitneyu(first, second, alternative="less").statistic
    return float((statistic - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))


def nearest_codes(codes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The Hamming distance, in tokens, of each of codes (n, T) to the nearest of others (M, T), and its row: (n,) each.

    Of equally near ones, the first. Both float32 on the same device. Memory does not grow with n times M.
    """
    found = [_nearest_codes(part, others) for part in codes.split(ROWS_PER_SEARCH)]
    return torch.cat([distance for distance, _ in found]), torch.cat([row for _, row in found])


def _nearest_codes(codes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    at_once = max(1, NUMBERS_PER_SEARCH // max(1, len(codes)))
    distance = torch.full((len(codes),), torch.inf, device=codes.device)
    row = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    for first, part in enumerate(others.split(at_once)):
        found, where = torch.cdist(codes, part, p=0).min(dim=1)
        nearer = found < distance
        distance = torch.where(nearer, found, distance)
        row = torch.where(nearer, where + first * at_once, row)
    return distance.long(), row
