"""Nearest neighbours of features and of tokens, beside plain loops; and what they say of copies of training images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import description, write_cache
from vqgpt.evaluation import memorisation, neighbours
from vqgpt.evaluation.distances import Moments
from vqgpt.evaluation.features import Features
from vqgpt.evaluation.memorisation import (
    NearestRows,
    closest_pairs,
    feature_figures,
    held_out_codes,
    nearest_rows,
    token_figures,
)
from vqgpt.evaluation.neighbours import (
    FEWEST_IN_A_CELL,
    NEIGHBOURS,
    authentic,
    copying_test,
    kth_neighbour,
    manifolds,
    nearest_codes,
    nearest_of,
    squared_distances,
)
from vqgpt.progress import Progress
from vqgpt.tokens import TokenCache

FIGURES = ("precise", "density", "recalled", "covered")


def normal(count, dimensions, seed, mean=0.0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + mean


@st.composite
def whole_vectors(draw, dimensions, least=2, most=10):
    """Small whole numbers, of which many are equal: their distances are exact in float32."""
    numbers = st.lists(st.integers(-3, 3), min_size=dimensions, max_size=dimensions)
    return torch.tensor(draw(st.lists(numbers, min_size=least, max_size=most)), dtype=torch.float32)


def symmetric(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors whose mean is 0, so that what is less their mean is as exact."""
    return torch.cat([vectors, -vectors])


def apart(x, y) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))


def loop_radius(rows, row, k) -> float:
    return sorted(apart(rows[row], other) for number, other in enumerate(rows) if number != row)[k - 1]


def loop_manifolds(samples, reference) -> dict[str, list[float]]:
    k = min(NEIGHBOURS, len(samples) - 1, len(reference) - 1)
    around_samples = [loop_radius(samples, row, k) for row in range(len(samples))]
    around = [loop_radius(reference, row, k) for row in range(len(reference))]
    inside = [[apart(x, y) < radius for y, radius in zip(reference, around, strict=True)] for x in samples]
    return {
        "precise": [float(any(row)) for row in inside],
        "density": [sum(row) / k for row in inside],
        "recalled": [
            float(any(apart(x, y) < radius for x, radius in zip(samples, around_samples, strict=True)))
            for y in reference
        ],
        "covered": [float(any(row[number] for row in inside)) for number in range(len(reference))],
    }


def made_features(values: torch.Tensor, pixels=None, rows=None) -> Features:
    """As `read_features` gives them; images are equal where their `pixels` (N,) are."""
    numbers = np.arange(len(values)) if pixels is None else np.asarray(pixels)
    digests = np.stack([np.frombuffer(int(number).to_bytes(16, "big"), np.uint8) for number in numbers])
    return Features(
        about={},
        moments=Moments.of(values),
        rows=np.arange(len(values)) if rows is None else np.asarray(rows),
        values=values,
        digests=digests,
        sharpness=np.ones(len(numbers), np.float32),
    )


# Precision and recall, density and coverage


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dimensions=st.integers(1, 3))
def test_manifolds_are_those_of_loops(data, dimensions):
    samples = data.draw(whole_vectors(dimensions))
    reference = symmetric(data.draw(whole_vectors(dimensions)))
    found, expected = manifolds(samples, reference), loop_manifolds(samples, reference)
    for name in FIGURES:
        assert getattr(found, name).dtype == np.float64
        assert getattr(found, name).tolist() == pytest.approx(expected[name], rel=1e-6)


def test_manifolds_of_many_dimensions_are_those_of_loops():
    samples, reference = normal(30, 8, 0, mean=100.3), normal(40, 8, 1, mean=100.0)
    found, expected = manifolds(samples, reference), loop_manifolds(samples, reference)
    assert 0 < found.precise.mean() < 1 or 0 < found.covered.mean() < 1
    for name in FIGURES:
        assert getattr(found, name).tolist() == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize(("at_once", "blocks"), [(1, 33), (40, 33), (100, 17)])
def test_blocks_do_not_change_what_is_found(monkeypatch, at_once, blocks):
    samples = torch.randint(-9, 10, (33, 4), generator=torch.Generator().manual_seed(0)).float()
    reference = symmetric(torch.randint(-9, 10, (20, 4), generator=torch.Generator().manual_seed(1)).float())
    whole = manifolds(samples, reference)
    copies, (near, rows) = authentic([samples], reference)[0], nearest_of(samples, reference)
    monkeypatch.setattr(neighbours, "NUMBERS_AT_ONCE", at_once)
    assert len(list(squared_distances(samples, reference))) == blocks
    found = manifolds(samples, reference)
    for name in FIGURES:
        assert getattr(found, name).tolist() == getattr(whole, name).tolist()
    assert authentic([samples], reference)[0].tolist() == copies.tolist()
    assert nearest_of(samples, reference)[0].tolist() == near.tolist()
    assert nearest_of(samples, reference)[1].tolist() == rows.tolist()


def test_the_same_distribution_is_precise_and_recalled_and_one_far_away_is_not():
    same = manifolds(normal(500, 4, 2), normal(500, 4, 3))
    assert same.precise.mean() > 0.9
    assert same.recalled.mean() > 0.9
    assert same.density.mean() == pytest.approx(1, abs=0.15)
    assert same.covered.mean() > 0.9
    far = manifolds(normal(100, 4, 2, mean=50), normal(100, 4, 3))
    assert [getattr(far, name).max() for name in FIGURES] == [0, 0, 0, 0]
    narrow = manifolds(normal(200, 4, 2) * 0.1, normal(200, 4, 3))
    assert narrow.precise.mean() == 1
    assert narrow.recalled.mean() < 0.1


def test_the_kth_neighbour_is_another_one():
    rows = torch.tensor([[0.0], [0.0], [3.0], [7.0]])
    assert kth_neighbour(rows, 1).tolist() == [0, 0, 9, 16]
    assert kth_neighbour(rows, 3).tolist() == [49, 49, 16, 49]


# Copies, by features


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dimensions=st.integers(1, 3))
def test_authentic_samples_are_those_of_loops(data, dimensions):
    samples = data.draw(whole_vectors(dimensions, least=1))
    training = symmetric(data.draw(whole_vectors(dimensions, least=1)))
    expected = []
    for sample in samples:
        near = min(range(len(training)), key=lambda row: apart(sample, training[row]))
        expected.append(loop_radius(training, near, 1) < apart(sample, training[near]))
    assert authentic([samples], training)[0].tolist() == expected


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("dimensions", [3, 100])
def test_copies_are_never_authentic_and_at_no_distance(count, dimensions):
    once = torch.rand(150, dimensions, generator=torch.Generator().manual_seed(0)) + 0.3
    training = torch.cat([once, once])  # so that the nearest other one is at no distance either
    assert not authentic([once[:count]], training)[0].any()
    assert nearest_of(once[:count], training)[0].tolist() == [0] * count


def test_the_copying_test_tells_copies_from_what_is_held_out():
    training, held_out = normal(400, 8, 0), normal(200, 8, 1)
    noise = normal(150, 8, 2) * 0.01
    assert copying_test(training[:150] + noise, held_out, training) < -8
    assert abs(copying_test(normal(150, 8, 3), held_out, training)) < 3
    assert copying_test(normal(150, 8, 4) * 3, held_out, training) > 5
    assert copying_test(normal(150, 8, 3), held_out, training) == copying_test(normal(150, 8, 3), held_out, training)


def test_the_copying_test_of_too_few_samples_says_nothing():
    training, held_out = normal(60, 8, 0), normal(30, 8, 1)
    assert copying_test(normal(FEWEST_IN_A_CELL, 8, 3), held_out, training) is None
    assert copying_test(normal(3 * FEWEST_IN_A_CELL + 1, 8, 3), held_out, training) is not None  # one cell has enough


def test_feature_figures_count_copies_of_each_kind():
    training = normal(300, 6, 0)
    held_out, samples = normal(100, 6, 1), torch.cat([training[:60], normal(40, 6, 2)])
    pixels = [*range(60), *range(1000, 1040)]
    known = made_features(training)
    found = feature_figures(
        made_features(samples, pixels), made_features(held_out, range(2000, 2100)), known, known.digests
    )
    assert found["training_images"] == 300
    assert found["equal_to_a_training_image"] == 0.6
    assert found["equal_held_out"] == 0
    assert found["authentic"] <= 0.4
    assert found["authentic"] == authentic([samples], training)[0].mean()
    assert found["authentic_held_out"] == authentic([held_out], training)[0].mean()
    assert found["copying_test"] == copying_test(samples, held_out, training)
    assert found["copying_test"] < -3


def test_feature_figures_are_of_limited_numbers_of_images(monkeypatch):
    monkeypatch.setattr(memorisation, "MOST_NEIGHBOURS", 50)
    samples, held_out, training = (made_features(normal(80, 4, seed)) for seed in range(3))
    found = feature_figures(samples, held_out, training, training.digests)
    assert found["training_images"] == 80
    assert found["authentic"] * 50 == pytest.approx(round(found["authentic"] * 50))


def test_the_closest_pairs_are_those_of_loops_by_the_numbers_of_the_images():
    samples, training = normal(20, 5, 0), normal(30, 5, 1)
    samples[7] = training[11]
    of_samples, of_training = np.arange(20) * 3, np.arange(30) + 100
    found = closest_pairs(made_features(samples, rows=of_samples), made_features(training, rows=of_training), 4)
    every = sorted(min((apart(x, y), row, other) for other, y in enumerate(training)) for row, x in enumerate(samples))
    assert [(row, other) for row, other, _ in found] == [(3 * row, other + 100) for _, row, other in every[:4]]
    assert [distance for *_, distance in found] == pytest.approx([square**0.5 for square, *_ in every[:4]], rel=1e-4)
    assert found[0] == (21, 111, 0.0)
    assert len(closest_pairs(made_features(samples), made_features(training), 99)) == 20


# Copies, by tokens


def loop_nearest(codes, others) -> tuple[list[int], list[int]]:
    """Of flat codes (n, T) and (M, T): how many tokens differ from the nearest, and which is the first such."""
    differing = [[int((one != other).sum()) for other in others] for one in codes]
    return [min(row) for row in differing], [row.index(min(row)) for row in differing]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 6), others=st.integers(1, 20), at_once=st.integers(1, 40))
def test_the_nearest_codes_are_those_of_loops_in_blocks_too(seed, count, others, at_once):
    rng = np.random.default_rng(seed)
    codes, stored = rng.integers(0, 3, (count, 5)), rng.integers(0, 3, (others, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "NUMBERS_PER_SEARCH", at_once)
        distance, row = nearest_codes(torch.from_numpy(codes).float(), torch.from_numpy(stored).float())
    assert (distance.tolist(), row.tolist()) == loop_nearest(codes, stored)
    assert distance.dtype == row.dtype == torch.int64


@pytest.mark.parametrize("views", [("identity",), ("identity", "hflip")])
def test_the_nearest_rows_of_a_cache_of_several_shards_and_views(tmp_path, monkeypatch, views):
    what = description(rows=(90, 20), views=views, codebook_size=4)
    cache = TokenCache(write_cache(tmp_path / "c.zarr", what))
    stored = cache.read_split("train").codes
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 4, (25, 4, 3))
    samples[3], samples[4] = stored[88, -1], stored[40, 0]
    monkeypatch.setattr(neighbours, "ROWS_PER_SEARCH", 10)
    events = []
    found = nearest_rows(samples, cache, "train", "samples", events.append)
    distances, rows = loop_nearest(samples.reshape(25, -1), stored.reshape(-1, 12))
    assert found.distances.tolist() == distances
    assert found.rows.tolist() == [row // len(views) for row in rows]
    assert found.views.tolist() == [row % len(views) for row in rows]
    assert found.distances[[3, 4]].tolist() == [0, 0]
    assert found.rows[[3, 4]].tolist() == [88, 40]
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [(1, 3), (2, 3), (3, 3)]


def test_token_figures_count_copies_and_tell_the_mean():
    samples = NearestRows(distances=np.array([0, 0, 3, 5]), rows=np.arange(4), views=np.zeros(4, np.int64))
    held_out = NearestRows(distances=np.array([4, 8]), rows=np.arange(2), views=np.zeros(2, np.int64))
    assert token_figures(samples, held_out, 12) == {
        "samples": {"images": 4, "copies": 2, "nearest_row_differs_in": 2.0, "of_tokens": 12},
        "held-out": {"images": 2, "copies": 0, "nearest_row_differs_in": 6.0, "of_tokens": 12},
    }


def test_held_out_codes_are_rows_of_the_first_view(tmp_path, monkeypatch):
    cache = TokenCache(write_cache(tmp_path / "c.zarr", description(views=("identity", "hflip"))))
    stored = cache.read_split("test").codes
    assert (held_out_codes(cache, "test") == stored[:, 0]).all()
    monkeypatch.setattr(memorisation, "MOST_HELD_OUT", 7)
    some = held_out_codes(cache, "test")
    assert some.shape == (7, 4, 3)
    assert all(any((one == row).all() for row in stored[:, 0]) for one in some)
