"""Images of rare classes are shown more often, and epochs stay as long as they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY_GPT, assert_refused, run_here
from vqgpt.gpt.token_grids import BalancedGrids, TokenGrids, balanced_rows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6), balance=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_each_row_is_shown_as_often_as_its_class_is_rare(counts, balance, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shown = balanced_rows(labels, balance, generator(seed)).bincount(minlength=len(labels))
    weights = torch.tensor([float(count) for count in counts])[labels] ** -balance
    expected = weights * len(labels) / weights.sum()
    assert shown.sum() == len(labels)
    assert ((shown - expected).abs() < 1 + 1e-4).all()


def test_without_balance_each_row_is_shown_once_and_with_1_each_class_equally_often():
    labels = torch.tensor([0] * 90 + [2] * 9 + [3])
    assert sorted(balanced_rows(labels, 0.0, generator()).tolist()) == list(range(100))
    times = labels[balanced_rows(labels, 1.0, generator())].bincount()
    assert times[1] == 0
    assert times[0] + times[2] + times[3] == 100
    assert (times[[0, 2, 3]] - 100 / 3).abs().max() < 2
    on_average = torch.stack(
        [balanced_rows(labels, 0.5, generator(seed)).bincount(minlength=100) for seed in range(400)]
    )
    expected = 100 / (90 + 9 * 10**0.5 + 90**0.5)
    assert on_average[:, :90].double().mean().item() == pytest.approx(expected, abs=0.02)


def test_rows_without_a_class_are_a_class_of_their_own():
    labels = torch.tensor([-1] * 10 + [0] * 90)
    shown = balanced_rows(labels, 1.0, generator())
    assert (labels[shown] == -1).sum().item() == pytest.approx(50, abs=1)


def test_an_epoch_is_a_function_of_seed_and_number():
    grids = TokenGrids(codes=torch.arange(60).view(60, 1, 1, 1), labels=torch.tensor([0] * 50 + [1] * 10))
    rows, views = torch.arange(60), torch.zeros(60, dtype=torch.int64)
    balanced, again = BalancedGrids(grids, 0.5, seed=3), BalancedGrids(grids, 0.5, seed=3)
    first = balanced.batch(0, rows, views)[0]
    second = balanced.batch(1, rows, views)[0]
    assert not torch.equal(first, second)
    assert torch.equal(again.batch(1, rows, views)[0], second)
    assert torch.equal(balanced.batch(0, rows[7:9], views[7:9])[0], first[7:9])
    codes, labels = balanced.batch(0, rows, views)
    assert torch.equal(labels, (codes.flatten() >= 50).long())


def test_the_command_takes_it_with_classes_alone(pipeline):
    words = ("train", *TINY_GPT, "--out", "balanced.pt")
    assert_refused(run_here(*words, "--class-balance", 0.5, "--condition", "none"), 2, "class_balance", "class")
    assert_refused(run_here(*words, "--class-balance", 0.5, "--stream"), 2, "class_balance", "--stream")
    assert_refused(run_here(*words, "--class-balance", 2), 2, "class_balance", "[0, 1]")
    balanced = run_here(*words, "--class-balance", 0.5, "--condition", "class", "--json")
    plain = run_here(*words, "--condition", "class", "--overwrite", "--json")
    assert (balanced.code, plain.code) == (0, 0)
    nats = "held_out_nats_per_token"
    assert balanced.json[nats] != plain.json[nats]  # other images were shown
