"""What chance decides about the batches of a GPT's training: how often, and that nothing else changes it."""

from dataclasses import replace

import pytest
import torch

from vqgpt.gpt.draws import draw_for_step
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions
from vqgpt.training.schedule import Schedule, Step

NUM_IMAGES = 2000
SCHEDULE = Schedule(seed=0, num_rows=NUM_IMAGES, batch_size=NUM_IMAGES, n_epochs=100)


def config(order, num_classes):
    return GPTConfig(options=GPTOptions(order=order), codebook_size=8, grid=(2, 2), num_classes=num_classes)


def draws(network="raster", result="raster", index=7, schedule=SCHEDULE, num_classes=0, **options):
    step = Step(index=index, epoch=index, rows=torch.arange(NUM_IMAGES), ends_epoch=True)
    configs = (config(order, num_classes) for order in (network, result))
    return draw_for_step(step, schedule, 3, GPTTrainingOptions(**options), *configs)


def test_views_labels_and_hidden_tokens_are_drawn_as_often_as_asked_for():
    found = draws(label_dropout=0.25, token_dropout=0.1)
    assert found.views.unique().tolist() == [0, 1, 2]
    assert 0.2 < found.unconditional.float().mean() < 0.3
    assert found.shown_as.unique().tolist() == [-1, 8]
    assert 0.08 < (found.shown_as == 8).float().mean() < 0.12
    assert found.cells is None
    assert draws().shown_as is None


def test_a_step_has_its_draws_and_another_has_others():
    first, again, later = draws(), draws(), draws(index=8)
    other_seed = draws(schedule=replace(SCHEDULE, seed=1))
    assert torch.equal(first.views, again.views)
    assert not torch.equal(first.views, later.views)
    assert not torch.equal(first.views, other_seed.views)


@pytest.mark.parametrize(("index", "share"), [(0, 1.0), (49, 1.0), (60, 0.6), (75, 0.0), (99, 0.0)])
def test_a_share_of_the_images_is_read_in_random_orders(index, share):
    """The other draws are as without."""
    changes = {"index": index, "token_dropout": 0.1}
    found = draws("random", "spiral", random_until=0.5, **changes)
    assert torch.equal(found.cells.sort(dim=1).values, torch.arange(4).expand(NUM_IMAGES, 4))
    in_order = (found.cells == torch.tensor([0, 1, 3, 2])).all(dim=1).float().mean().item()
    assert in_order == pytest.approx(1 - share + share / 24, abs=0.03)
    without = draws(**changes)
    assert torch.equal(found.views, without.views)
    assert torch.equal(found.shown_as, without.shown_as)


def test_random_orders_to_the_end_are_all_equally_likely():
    found = draws("random", "random", index=99)
    counts = torch.bincount((found.cells * torch.tensor([64, 16, 4, 1])).sum(dim=1))
    counts = counts[counts > 0].double()
    assert len(counts) == 24
    expected = NUM_IMAGES / 24
    assert ((counts - expected) ** 2 / expected).sum() < 60  # chi-square of 23 degrees of freedom: p < 0.0001


@pytest.mark.parametrize("index", [80, 99])
def test_token_noise_ends(index):
    assert draws(index=index, token_noise=0.8, token_noise_until=0.8).shown_as is None
    assert draws(index=75, token_noise=0.8).shown_as is None
    assert draws(index=74, token_noise=0.8).shown_as is not None


@pytest.mark.parametrize(("index", "highest"), [(0, 0.8), (40, 0.4)])
def test_token_noise_falls_and_is_uniform_over_codes_and_rates(index, highest):
    found = draws(index=index, token_noise=0.8, token_noise_until=0.8).shown_as
    noised = found >= 0
    assert noised.float().mean().item() == pytest.approx(highest / 2, abs=0.02)
    assert found[noised].bincount().min() > 0.08 * noised.sum()
    of_images = noised.float().mean(dim=1)
    assert of_images.var().item() == pytest.approx(highest**2 / 12 + (highest / 2 - highest**2 / 3) / 4, rel=0.15)


def test_hidden_tokens_stay_hidden_where_there_is_no_noise():
    found = draws(index=0, token_dropout=0.5, token_noise=0.5).shown_as
    assert found.unique().tolist() == [-1, *range(9)]
    assert (found == 8).float().mean().item() == pytest.approx(0.5 * 0.75, abs=0.02)
