"""The Frechet distance of sets of features: the textbook, other libraries, exact answers; and intervals of figures."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgpt.data.image_sets import drawn_rows
from vqgpt.errors import InputError
from vqgpt.evaluation.distances import (
    SMALLEST_FOR_INFINITY,
    Moments,
    check_comparable_features,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_estimate,
    moments_of_batches,
)
from vqgpt.evaluation.intervals import Estimate, interval
from vqgpt.runtime.process import import_torchvision


def normal(count, dimensions, seed, mean=0.0, scale=1.0) -> torch.Tensor:
    """(count, dimensions) float32 of independent normal numbers."""
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) * scale + mean


def correlated(count, dimensions, seed, rank=None, mean=0.0, dtype=torch.float32) -> torch.Tensor:
    """Normal vectors with some covariance of this rank."""
    rank = rank or dimensions
    rows = normal(count, rank, seed).double() @ normal(rank, dimensions, seed + 1000).double()
    return (rows / math.sqrt(rank) + mean).to(dtype)


def gaussian(mean, covariance, count=1000) -> Moments:
    """The moments of `count` vectors with exactly this mean and covariance."""
    mean, covariance = (torch.as_tensor(each, dtype=torch.float64) for each in (mean, covariance))
    return Moments(count=count, mean=mean, scatter=covariance * (count - 1))


def orthogonal(dimensions, seed=0) -> torch.Tensor:
    return torch.linalg.qr(normal(dimensions, dimensions, seed).double()).Q


def textbook(a: torch.Tensor, b: torch.Tensor) -> float:
    """The Frechet distance of (n, d) and (m, d) with a square root of the product of covariances."""
    means = [rows.double().numpy().mean(axis=0) for rows in (a, b)]
    first, second = (np.cov(rows.double().numpy(), rowvar=False) for rows in (a, b))
    root = scipy.linalg.sqrtm(first @ second).real
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(first + second - 2 * root))


# Moments


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    mean=st.sampled_from([0.0, 1.0, -1e3, 1e5]),
    seed=st.integers(0, 1000),
)
def test_moments_do_not_depend_on_how_rows_are_cut_into_batches(cuts, mean, seed):
    rows = normal(40, 3, seed, mean)
    ends = sorted({0, 40, *cuts})
    found = moments_of_batches(rows[start:stop] for start, stop in itertools.pairwise(ends))
    whole = Moments.of(rows)
    assert found.count == whole.count == 40
    assert torch.allclose(found.mean, whole.mean, rtol=1e-10, atol=1e-13)
    assert (found.scatter - whole.scatter).norm() <= 1e-10 * whole.scatter.norm()


def test_moments_are_those_of_numpy():
    rows = correlated(50, 6, 0, mean=30.0)
    found = Moments.of(rows)
    assert np.allclose(found.mean, rows.double().numpy().mean(axis=0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-10)
    one = Moments.of(rows[:1])
    assert one.count == 1
    assert one.covariance.abs().max() == 0


@pytest.mark.parametrize(("count", "rank"), [(100, 8), (100, 1), (5, 8), (2, 8)])
def test_the_factor_times_its_transpose_is_the_covariance(count, rank):
    found = Moments.of(correlated(count, 8, 0, rank, mean=100.0, dtype=torch.float64))
    assert found.factor.shape == (8, min(rank, count - 1))
    assert torch.allclose(found.factor @ found.factor.T, found.covariance, atol=1e-10)


# The Frechet distance


@pytest.mark.parametrize(("dimensions", "rows"), [(1, (20, 30)), (8, (100, 60)), (32, (300, 200))])
def test_the_frechet_distance_is_that_of_the_textbook(dimensions, rows):
    a, b = correlated(rows[0], dimensions, 1, mean=0.3), correlated(rows[1], dimensions, 2)
    found = frechet_distance(Moments.of(a), Moments.of(b))
    expected = textbook(a, b) if dimensions > 1 else _textbook_of_lines(a, b)
    assert found == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(found, rel=1e-10)


def _textbook_of_lines(a, b):
    return float((a.double().mean() - b.double().mean()) ** 2 + (a.double().std() - b.double().std()) ** 2)


class Given(torch.nn.Module):
    """A network whose images are features already."""

    num_features = 16

    def forward(self, images):
        return images


def test_the_frechet_distance_is_that_of_torchmetrics():
    import_torchvision("transforms")
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = correlated(400, 16, 3, mean=1.0), correlated(300, 16, 4)
    metric = FrechetInceptionDistance(feature=Given())
    metric.update(a, real=False)
    metric.update(b, real=True)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_the_frechet_distance_of_gaussians_whose_answer_is_known():
    of_a, of_b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    apart = torch.tensor([1.0, -2.0, 3.0])
    diagonal = frechet_distance(gaussian(apart, of_a.diag()), gaussian(torch.zeros(3), of_b.diag()))
    assert diagonal == pytest.approx(14 + 1 + 4, rel=1e-12)

    turn = orthogonal(3)
    turned = [turn @ variances.diag() @ turn.T for variances in (of_a, of_b)]
    assert frechet_distance(gaussian(torch.zeros(3), turned[0]), gaussian(torch.zeros(3), turned[1])) == pytest.approx(
        5
    )

    covariance = Moments.of(correlated(50, 3, 5)).covariance
    shifted = frechet_distance(gaussian(torch.zeros(3), covariance), gaussian(apart, covariance))
    assert shifted == pytest.approx(14, rel=1e-9)


@pytest.mark.parametrize(("count", "rank"), [(100, 16), (9, 16), (100, 1), (2, 16)])
def test_a_set_has_no_distance_from_itself_even_if_its_covariance_is_singular(count, rank):
    found = Moments.of(correlated(count, 16, 6, rank, mean=5.0))
    assert frechet_distance(found, found) == pytest.approx(0, abs=1e-6)


def test_the_frechet_distance_of_singular_covariances():
    few, many = Moments.of(correlated(9, 16, 7)), Moments.of(correlated(300, 16, 8))
    values, vectors = np.linalg.eigh(many.covariance.numpy())
    root = vectors * np.sqrt(values) @ vectors.T
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root @ few.covariance.numpy() @ root).clip(0)).sum()
    traces = few.covariance.trace() + many.covariance.trace() + (few.mean - many.mean).square().sum()
    assert frechet_distance(few, many) == pytest.approx(float(traces) - 2 * trace_of_root, rel=1e-6)


def test_the_frechet_distance_of_sets_in_disjoint_subspaces_is_the_sum_of_their_traces():
    turn = orthogonal(8)
    a, b = normal(60, 8, 10).double(), normal(70, 8, 11, scale=2.0).double()
    a[:, 4:], b[:, :4] = 0, 0
    moments = [Moments.of(rows @ turn.T) for rows in (a, b)]
    apart = float((moments[0].mean - moments[1].mean).square().sum())
    traces = sum(float(each.covariance.trace()) for each in moments)
    assert frechet_distance(*moments) == pytest.approx(apart + traces, rel=1e-7)
    found = frechet_estimate(*moments, a @ turn.T, b @ turn.T)
    assert np.isfinite(found.of_a).all()
    assert np.abs(found.of_b).max() < 1e3


def test_images_that_are_all_the_same_have_a_distance_and_influences():
    same, others = torch.ones(20, 4), normal(30, 4, 12)
    a, b = Moments.of(same), Moments.of(others)
    expected = (a.mean - b.mean).square().sum() + b.covariance.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)
    found = frechet_estimate(a, b, same, others)
    assert found.value == pytest.approx(float(expected), rel=1e-12)
    assert found.of_a.shape == (20,)
    assert np.isfinite(found.of_b).all()


@pytest.mark.parametrize("which", [0, 1])
def test_influences_on_the_frechet_distance_are_its_derivatives_in_the_weights_of_images(which):
    rows = [correlated(40, 6, 13, mean=0.5).double(), correlated(50, 6, 14).double()]
    step = 1e-5

    def at(row, epsilon):
        """The distance where a row has the weight (1 - epsilon) / n + epsilon."""
        weights = torch.full((len(rows[which]),), (1 - epsilon) / len(rows[which]), dtype=torch.float64)
        weights[row] += epsilon
        mean = weights @ rows[which]
        centred = rows[which] - mean
        moments = [Moments.of(each) for each in rows]
        covariance = centred.T @ (weights[:, None] * centred)
        moments[which] = gaussian(mean, covariance * len(rows[which]) / (len(rows[which]) - 1))
        return frechet_distance(*moments)

    derivatives = torch.tensor([(at(row, step) - at(row, -step)) / (2 * step) for row in range(len(rows[which]))])
    estimate = frechet_estimate(Moments.of(rows[0]), Moments.of(rows[1]), *rows)
    assert estimate.value == pytest.approx(frechet_distance(Moments.of(rows[0]), Moments.of(rows[1])), rel=1e-9)
    found = torch.from_numpy((estimate.of_a, estimate.of_b)[which])
    count = len(rows[which])
    difference = (found - found.mean()) - derivatives
    assert difference.abs().max() < 1e-4 + 2 * derivatives.abs().max() / count
    assert torch.corrcoef(torch.stack([found, derivatives]))[0, 1] > 0.9999


# Its limit


def test_the_distance_at_infinity_is_nearer_to_the_truth():
    dimensions = 48
    truth = gaussian(torch.zeros(dimensions), torch.eye(dimensions), 10**6)
    for seed, mean in ((0, 0.0), (1, 0.05), (2, 0.1)):
        samples = normal(SMALLEST_FOR_INFINITY, dimensions, seed, mean)
        limit = frechet_distance_at_infinity(samples, truth, 0)
        expected = dimensions * mean**2
        measured = frechet_distance(Moments.of(samples), truth)
        assert abs(limit - expected) < 0.5 * abs(measured - expected)
        assert frechet_distance_at_infinity(samples, truth, 0) == limit


def test_too_few_images_have_no_distance_at_infinity():
    samples = normal(SMALLEST_FOR_INFINITY - 1, 4, 0)
    assert frechet_distance_at_infinity(samples, Moments.of(samples), 0) is None


# Intervals


def test_an_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        low, high = interval(Estimate.mean_of(rng.exponential(size=80)), seed)
        covered.append(low <= 1 <= high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_an_interval_adds_the_variances_of_both_sets_and_does_not_depend_on_a_constant():
    rng = np.random.default_rng(1)
    of_a, of_b = rng.normal(scale=2, size=100), rng.normal(scale=3, size=300)
    low, high = interval(Estimate(value=7.0, of_a=of_a, of_b=of_b), 0)
    assert (high - low) / 3.92 == pytest.approx(math.sqrt(of_a.var() / 100 + of_b.var() / 300), rel=0.1)
    assert low < 7 < high
    assert interval(Estimate(value=7.0, of_a=of_a + 10, of_b=of_b - 5), 0) == pytest.approx([low, high])


def test_an_interval_depends_on_the_seed_alone():
    estimate = Estimate.mean_of(np.random.default_rng(2).normal(size=50))
    assert interval(estimate, 3) == interval(estimate, 3)
    assert interval(estimate, 3) != interval(estimate, 4)
    same = Estimate.mean_of(np.full(20, 0.5))
    assert interval(same, 0) == [0.5, 0.5]


# Which rows, and what is refused


@given(total=st.integers(0, 300), most=st.integers(1, 300))
def test_drawn_rows_are_ascending_and_always_the_same(total, most):
    found = drawn_rows(total, most)
    assert len(found) == min(total, most)
    assert (np.diff(found) > 0).all()
    assert set(found) <= set(range(total))
    assert (found == drawn_rows(total, most)).all()


def test_features_that_cannot_be_compared_are_refused():
    good = normal(5, 3, 0)
    check_comparable_features(good, good)
    with pytest.raises(InputError, match="3 and of 4 dimensions") as refused:
        check_comparable_features(good, normal(5, 4, 0))
    assert "--features" in refused.value.hint
    for bad in (math.nan, math.inf):
        broken = good.clone()
        broken[2, 1] = bad
        for pair in ((good, broken), (broken, good)):
            with pytest.raises(InputError, match="not all finite"):
                check_comparable_features(*pair)
