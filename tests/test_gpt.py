"""The GPT: order, causality, training arithmetic."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.model import GPT
from vqgpt.gpt.optimizer import Optimizer
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.gpt.order import FixedOrder, grid_to_sequence, scan_order, sequence_to_grid
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import learning_rate
from vqgpt.training.schedule import Schedule


def tiny_gpt(grid=(3, 4), num_classes=3, codebook_size=16, seed=0, **changes) -> GPT:
    torch.manual_seed(seed)
    options = GPTOptions(**{"n_layer": 2, "n_head": 2, "embed_dim_t": 16, **changes})
    model = GPT(GPTConfig(options=options, codebook_size=codebook_size, grid=grid, num_classes=num_classes))
    for parameter in model.parameters():  # far from the flat distribution of the start
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def sampled(model, classes, seed=0, **options) -> torch.Tensor:
    images = sample_codes(model, Asked.of_one_seed(torch.as_tensor(classes), seed, SamplingOptions(**options)), "fp32")
    return torch.cat([codes for codes, _ in images])


def test_the_s_pattern_turns_every_other_row_round():
    assert scan_order("s-pattern", (3, 3)).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert scan_order("raster", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]


@given(grid=st.tuples(st.integers(1, 7), st.integers(1, 7)), order=st.sampled_from(get_args(FixedOrder)))
def test_orders_visit_every_code_once_and_have_an_inverse(grid, order):
    cells = scan_order(order, grid)
    assert sorted(cells.tolist()) == list(range(grid[0] * grid[1]))
    codes = torch.randint(100, (2, 3, *grid))
    assert torch.equal(sequence_to_grid(grid_to_sequence(codes, cells), cells, grid), codes)


@pytest.mark.parametrize("position", [0, 5, 11])
def test_no_token_sees_what_follows_it(position):
    model = tiny_gpt()
    tokens = torch.randint(16, (2, 12))
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 16
    before, after = model(tokens, model.cells), model(changed, model.cells)
    torch.testing.assert_close(before[:, :position], after[:, :position])
    assert not torch.allclose(before[:, position:], after[:, position:])


def test_logits_are_for_codes_only():
    model = tiny_gpt()
    assert model(torch.tensor([[16, 3, 19]]), model.cells).shape == (1, 3, 16)


def test_start_tokens_are_bos_or_the_class():
    model = tiny_gpt()
    assert model.start(torch.tensor([-1, 0, 2]))[0].tolist() == [[16], [17], [19]]
    assert model.config.vocabulary_size == 20


def test_the_loss_is_the_cross_entropy_of_each_token_given_those_before_it():
    model = tiny_gpt()
    codes, classes = torch.randint(16, (2, 12)), torch.tensor([-1, 2])
    inputs = torch.cat([model.start(classes)[0], codes], dim=1)[:, :12]
    log_probabilities = model(inputs, model.cells).log_softmax(-1).gather(-1, codes[..., None])
    torch.testing.assert_close(model.loss(codes, classes, model.cells), -log_probabilities.mean())


def test_it_learns_a_handful_of_grids_by_heart():
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            options=GPTOptions(n_layer=2, n_head=2, embed_dim_t=32, dropout_t=0.0),
            codebook_size=8,
            grid=(3, 3),
            num_classes=4,
        )
    )
    codes, classes = torch.randint(8, (4, 9)), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = model.loss(codes, classes, model.cells)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    drawn = sampled(model, [0, 1, 2, 3], temperature=0)
    assert torch.equal(grid_to_sequence(drawn, scan_order("s-pattern", (3, 3))), codes)


def test_the_learning_rate_makes_one_cycle():
    schedule = Schedule(seed=0, num_rows=100, batch_size=10, n_epochs=10)
    options = GPTTrainingOptions(lr=1e-3, warmup=2)
    rates = [learning_rate(step, schedule, options) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[10] == pytest.approx((1e-3 + 1e-6) / 2)
    assert max(rates) == rates[20] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert np.all(np.diff(rates[:21]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)


def test_the_schedule_sees_every_row_once_per_epoch_and_can_start_anywhere():
    schedule = Schedule(seed=3, num_rows=10, batch_size=4, n_epochs=3)
    steps = list(schedule.steps(0))
    assert len(steps) == schedule.num_steps == 9
    for epoch in range(3):
        rows = torch.cat([step.rows for step in steps if step.epoch == epoch])
        assert sorted(rows.tolist()) == list(range(10))
    resumed = list(schedule.steps(4))
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(steps[4:], resumed, strict=True))
    assert [step.ends_epoch for step in steps[:3]] == [False, False, True]


@pytest.mark.parametrize(("dtype", "held_as"), [(np.uint8, np.uint8), (np.uint16, np.int16)])
def test_a_batch_has_the_largest_codes(dtype, held_as):
    largest = np.iinfo(dtype).max
    grids = (largest - np.arange(12).reshape(2, 1, 2, 3)).astype(dtype)
    config = GPTConfig(options=GPTOptions(condition="none"), codebook_size=largest + 1, grid=(2, 3), num_classes=0)
    data = TokenGrids.of(torch.from_numpy(grids.view(held_as)), torch.tensor([0, 1]), config)
    codes, labels = data.batch(0, torch.tensor([1]), torch.tensor([0]))
    assert (largest - codes).tolist() == [[[6, 7, 8], [9, 10, 11]]]
    assert labels.tolist() == [-1]


def test_weight_decay_is_on_matrices_only():
    groups = Optimizer(tiny_gpt(bias=True), GPTTrainingOptions()).adamw.param_groups
    assert all(parameter.ndim >= 2 for parameter in groups[0]["params"])
    assert groups[0]["weight_decay"] == 0.1
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])
    assert groups[1]["weight_decay"] == 0


def test_the_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    model = GPT(GPTConfig(options=GPTOptions(), codebook_size=128, grid=(8, 8), num_classes=0)).eval()
    loss = model.loss(torch.randint(128, (8, 64)), torch.full((8,), -1), model.cells)
    assert loss.item() == pytest.approx(math.log(128), rel=0.02)
