"""The GPT: order, causality, training arithmetic, and sampling against plain references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgpt.config.gpt import GPTConfig, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.gpt.model import GPT
from vqgpt.gpt.optimizer import Optimizer
from vqgpt.gpt.order import grid_to_sequence, scan_order, sequence_to_grid
from vqgpt.gpt.sampling import draw, keep_top_k, sample_codes, uniform_numbers
from vqgpt.gpt.training import Draws, Sequences, learning_rate
from vqgpt.schedule import Schedule, Step


def tiny_gpt(grid=(3, 4), num_classes=3, codebook_size=16, seed=0, **changes) -> GPT:
    torch.manual_seed(seed)
    options = GPTOptions(n_layer=2, n_head=2, embed_dim_t=16, **changes)
    model = GPT(GPTConfig(options=options, codebook_size=codebook_size, grid=grid, num_classes=num_classes))
    for parameter in model.parameters():  # far from the flat distribution of the start
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def sampled(model, classes, seed=0, **options) -> torch.Tensor:
    images = sample_codes(model, torch.as_tensor(classes), 0, seed, SamplingOptions(**options), "fp32")
    return torch.cat([codes for codes, _ in images])


def test_the_s_pattern_turns_every_other_row_round():
    assert scan_order("s-pattern", (3, 3)).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert scan_order("raster", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]


@given(grid=st.tuples(st.integers(1, 7), st.integers(1, 7)), order=st.sampled_from(["s-pattern", "raster", "hilbert"]))
def test_orders_visit_every_code_once_and_have_an_inverse(grid, order):
    scan = scan_order(order, grid)
    assert sorted(scan.tolist()) == list(range(grid[0] * grid[1]))
    codes = torch.randint(100, (2, 3, *grid))
    assert torch.equal(sequence_to_grid(grid_to_sequence(codes, scan), scan, grid), codes)


@pytest.mark.parametrize("position", [0, 5, 11])
def test_no_token_sees_what_follows_it(position):
    model = tiny_gpt()
    tokens = torch.randint(16, (2, 12))
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 16
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :position], after[:, :position])
    assert not torch.allclose(before[:, position:], after[:, position:])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefill", [1, 5])
def test_cached_decoding_equals_full_passes(bias, prefill):
    model = tiny_gpt(bias=bias)
    tokens = torch.randint(16, (3, 12))
    caches = model.new_caches(3)
    parts = [model(tokens[:, :prefill], 0, caches)]
    parts += [model(tokens[:, t : t + 1], t, caches) for t in range(prefill, 12)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_logits_are_for_codes_only():
    assert tiny_gpt()(torch.tensor([[16, 3, 19]])).shape == (1, 3, 16)


def test_start_tokens_are_bos_or_the_class():
    model = tiny_gpt()
    assert model.start(torch.tensor([-1, 0, 2]))[0].tolist() == [[16], [17], [19]]
    assert model.config.vocabulary_size == 20


def test_the_loss_is_the_cross_entropy_of_each_token_given_those_before_it():
    model = tiny_gpt()
    codes, classes = torch.randint(16, (2, 12)), torch.tensor([-1, 2])
    inputs = torch.cat([model.start(classes)[0], codes], dim=1)[:, :12]
    log_probabilities = model(inputs).log_softmax(-1).gather(-1, codes[..., None])
    torch.testing.assert_close(model.loss(codes, classes), -log_probabilities.mean())


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
        loss = model.loss(codes, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    drawn = sampled(model, [0, 1, 2, 3], temperature=0)
    assert torch.equal(grid_to_sequence(drawn, scan_order("s-pattern", (3, 3))), codes)


def test_image_i_depends_on_the_seed_and_i_alone():
    model = tiny_gpt()
    classes = [i % 3 for i in range(130)]
    many = sampled(model, classes)
    assert torch.equal(many[:5], sampled(model, classes[:5]))
    assert torch.equal(many[:64], sampled(model, classes[:64]))
    assert not torch.equal(many, sampled(model, classes, seed=1))
    ((later, _), *rest) = sample_codes(model, torch.as_tensor(classes[64:]), 64, 0, SamplingOptions(), "fp32")
    assert torch.equal(many[64:], torch.cat([later, *[codes for codes, _ in rest]]))


def test_sampling_does_not_touch_torchs_own_random_numbers():
    state = torch.random.get_rng_state()
    sampled(tiny_gpt(), [0, 1])
    assert torch.equal(state, torch.random.get_rng_state())


def test_draws_follow_the_softmax():
    """Chi-square of 20,000 draws against softmax(logits / temperature), restricted to the top k."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        codes = draw(logits.repeat(20_000, 1), uniforms, SamplingOptions(temperature=temperature, top_k=top_k))
        scaled = logits / temperature
        if top_k:
            scaled[top_k:] = -torch.inf
        expected = scaled.softmax(0).numpy() * 20_000
        counts = np.bincount(codes.numpy(), minlength=6)
        assert counts[expected == 0].sum() == 0
        possible = expected > 0
        chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        assert chi_square < 25  # 5 degrees of freedom: p < 0.0002


def test_the_largest_uniform_number_draws_a_possible_code():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert draw(logits, torch.tensor([1 - 2**-24]), SamplingOptions()).item() == 1


@given(k=st.integers(1, 20), seed=st.integers(0, 50))
def test_top_k_keeps_the_k_most_likely(k, seed):
    logits = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    kept = keep_top_k(logits, k)
    assert (kept > -torch.inf).sum(dim=1).tolist() == [min(k, 16)] * 3
    assert torch.equal(kept.argmax(1), logits.argmax(1))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40))
def test_uniform_numbers_belong_to_their_image(seed, first):
    numbers = uniform_numbers(seed, first, 4, 8)
    assert not torch.equal(numbers, uniform_numbers(seed ^ 1, first, 4, 8))
    assert torch.equal(numbers[2:], uniform_numbers(seed, first + 2, 2, 8))
    assert numbers.min() >= 0
    assert numbers.max() < 1


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


def test_batches_draw_views_and_hide_labels_and_tokens():
    codes = torch.arange(2 * 3 * 4).view(2, 3, 4).to(torch.uint8)
    data = Sequences(codes=codes, labels=torch.tensor([5, 6]))
    step = Step(index=7, epoch=0, rows=torch.tensor([0, 1]).repeat(500), ends_epoch=False)
    options = GPTTrainingOptions(label_dropout=0.25, token_dropout=0.1)
    draws = Draws.of(step, 0, data.num_views, 4, options)
    batch, labels = data.batch(step.epoch, step.rows, draws.views)
    assert batch.dtype == torch.int64
    assert {int(row[0]) for row in batch[::2]} == {0, 4, 8}
    assert labels[:4].tolist() == [5, 6, 5, 6]
    assert 0.2 < draws.untold.float().mean() < 0.3
    assert 0.08 < draws.hidden.float().mean() < 0.12
    assert torch.equal(draws.views, Draws.of(step, 0, data.num_views, 4, options).views)
    assert not torch.equal(draws.views, Draws.of(step, 1, data.num_views, 4, options).views)


def test_weight_decay_is_on_matrices_only():
    groups = Optimizer(tiny_gpt(bias=True), GPTTrainingOptions()).adamw.param_groups
    assert all(parameter.ndim >= 2 for parameter in groups[0]["params"])
    assert groups[0]["weight_decay"] == 0.1
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])
    assert groups[1]["weight_decay"] == 0


def test_the_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    model = GPT(GPTConfig(options=GPTOptions(), codebook_size=128, grid=(8, 8), num_classes=0)).eval()
    loss = model.loss(torch.randint(128, (8, 64)), torch.full((8,), -1))
    assert loss.item() == pytest.approx(math.log(128), rel=0.02)
