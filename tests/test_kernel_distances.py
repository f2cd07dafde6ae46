"""KID and MIND of sets of features: their formulas, other libraries, exact answers, and what each image adds."""

import math

import numpy as np
import pytest
import torch

from tests.test_distances import correlated, normal
from vqgpt.data.image_sets import drawn_rows
from vqgpt.evaluation import distances
from vqgpt.evaluation.distances import (
    DIRECTIONS,
    kernel_distance,
    kernel_influences,
    monge_distance,
    polynomial_kernel,
    squared_discrepancy,
)
from vqgpt.runtime.process import import_torchvision

# KID


def test_the_squared_discrepancy_is_that_of_torchmetrics_and_of_loops():
    import_torchvision("transforms")
    from torchmetrics.image.kid import poly_mmd

    a, b = correlated(40, 8, 20, mean=0.4), correlated(40, 8, 21)
    assert squared_discrepancy(a, b) == pytest.approx(float(poly_mmd(a.double(), b.double())), rel=1e-4)

    a, b = a[:12], b[:9]  # of unequal size

    def kernel(x, y):
        return (float(x.double() @ y.double()) / 8 + 1) ** 3

    within = sum(
        np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]) for rows in (a, b)
    )
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert squared_discrepancy(a, b) == pytest.approx(within - 2 * between, rel=1e-4)


def test_the_squared_discrepancy_is_zero_on_average_for_equal_distributions():
    found = np.array([squared_discrepancy(normal(20, 4, seed), normal(30, 4, 1000 + seed)) for seed in range(400)])
    assert (found < 0).any()
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
    assert squared_discrepancy(normal(20, 4, 0), normal(30, 4, 1, mean=1.0)) > found.max()


def test_kid_of_sets_no_larger_than_a_subset_is_their_squared_discrepancy():
    a, b = normal(50, 8, 22, mean=0.2), normal(50, 8, 23)
    mean, deviation = kernel_distance(a, b, 0)
    assert mean == pytest.approx(squared_discrepancy(a, b), rel=1e-4)
    assert deviation is None


def test_kid_is_the_mean_over_subsets(monkeypatch):
    monkeypatch.setattr(distances, "KID_SUBSET_SIZE", 30)
    a, b = normal(100, 8, 24, mean=0.3), normal(80, 8, 25)
    mean, deviation = kernel_distance(a, b, 0)
    assert abs(mean - squared_discrepancy(a, b)) < 4 * deviation / math.sqrt(100)
    assert deviation > 0
    assert (mean, deviation) == kernel_distance(a, b, 0)
    assert mean != kernel_distance(a, b, 1)[0]


def test_the_kernel_is_a_polynomial_of_the_product():
    x, y = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0], [-2.0, -2.0]])
    assert polynomial_kernel(x, y).tolist() == [[8.0, -27.0]]


# MIND


def directions_of(seed, dimensions):
    found = np.random.default_rng(seed).standard_normal((dimensions, DIRECTIONS))
    return found / np.linalg.norm(found, axis=0)


def test_mind_is_its_formula():
    a, b = correlated(40, 5, 30, mean=0.5), correlated(40, 5, 31)
    total = 0.0
    for direction in directions_of(7, 5).T:
        x, y = (np.sort(rows.double().numpy() @ direction) for rows in (a, b))
        total += ((x - y) ** 2).sum()
    assert monge_distance(a, b, 7).value == pytest.approx(3 * 5 * total / (40 * DIRECTIONS), rel=1e-5)


def test_mind_of_equal_sets_is_zero_and_it_scales_with_the_square():
    a, b = normal(60, 6, 32, mean=0.2), normal(60, 6, 33)
    shuffled = a[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert monge_distance(a, shuffled, 0).value == pytest.approx(0, abs=1e-10)
    assert monge_distance(2 * a, 2 * b, 0).value == pytest.approx(4 * monge_distance(a, b, 0).value, rel=1e-6)
    assert monge_distance(a, b, 0).value == pytest.approx(monge_distance(b, a, 0).value, rel=1e-6)
    assert monge_distance(a, b, 0).value != monge_distance(a, b, 1).value


def test_mind_of_a_shift_is_three_times_its_squared_length():
    rows, shift = normal(50, 8, 34), torch.linspace(-1, 1, 8)
    spread = 3 * math.sqrt(2 / DIRECTIONS)  # the relative deviation of a mean of squared directions is below this / 3
    assert monge_distance(rows + shift, rows, 0).value == pytest.approx(3 * float(shift.square().sum()), rel=spread)


def test_mind_of_sets_of_unequal_size_takes_as_many_of_the_larger():
    a, b = normal(90, 4, 35, mean=0.1), normal(60, 4, 36)
    found = monge_distance(a, b, 0)
    assert found.value == monge_distance(a[drawn_rows(90, 60)], b, 0).value
    assert len(found.of_a) == len(found.of_b) == 60


# Influences of KID and MIND


def assert_first_order(influences, left_out, whole):
    """Leaving image i out changes the figure by -(influence of i - their mean) / (n - 1), nearly."""
    changes = -(len(influences) - 1) * (np.array(left_out) - whole)
    centred = influences - influences.mean()
    assert np.corrcoef(centred, changes)[0, 1] > 0.95
    assert np.polyfit(centred, changes, 1)[0] == pytest.approx(1, abs=0.1)


def without(rows, row):
    return torch.cat([rows[:row], rows[row + 1 :]])


@pytest.mark.parametrize("which", [0, 1])
def test_influences_on_kid_tell_what_leaving_an_image_out_changes(which):
    sets = [correlated(120, 6, 40, mean=0.4), correlated(100, 6, 41)]
    left_out = []
    for row in range(len(sets[which])):
        fewer = [without(rows, row) if number == which else rows for number, rows in enumerate(sets)]
        left_out.append(squared_discrepancy(*fewer))
    found = kernel_influences(*sets)[which].numpy()
    assert_first_order(found, left_out, squared_discrepancy(*sets))


@pytest.mark.parametrize("which", [0, 1])
def test_influences_on_mind_tell_what_leaving_an_image_out_changes(which):
    count = 30
    sets = [correlated(count, 4, 42, mean=0.6), correlated(count, 4, 43)]
    along = directions_of(0, 4)
    places = [rows.double().numpy() @ along for rows in sets]

    def value(x, y):
        """Of sets of n - 1 and n images: each image counts as many times as the other set has images."""
        x, y = np.sort(np.repeat(x, len(y), axis=0), axis=0), np.sort(np.repeat(y, len(x), axis=0), axis=0)
        return 3 * 4 * float(((x - y) ** 2).mean())

    left_out = [value(np.delete(places[which], row, axis=0), places[1 - which]) for row in range(count)]
    found = monge_distance(*sets, 0)
    assert_first_order((found.of_a, found.of_b)[which], left_out, value(*places))
