"""Networks for any order: cells that come with the batch, any mask, and what becomes of them in one order."""

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import vqgpt
from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.test_filters import chi_square
from tests.test_gpt import tiny_gpt
from tests.test_gpt_training import new_model, new_training, trained
from tests.test_interruption import assert_resumes
from tests.test_score import save_gpt
from vqgpt.errors import UsageError
from vqgpt.gpt.architecture import Arch
from vqgpt.gpt.checkpoint import load_gpt
from vqgpt.gpt.generate import Asked, Sampler, orders, sample_codes
from vqgpt.gpt.model import GPT, with_one_order
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.gpt.order import FixedOrder, grid_to_sequence, known_first, scan_order, sequence_to_grid
from vqgpt.gpt.scoring import nats_of_images, orders_to_score
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining
from vqgpt.tokens import TokenCache
from vqgpt.training.schedule import Schedule

CPU = torch.device("cpu")
ANY_ORDER = [*TINY_GPT, "--order", "random"]
CHI_SQUARE_BOUNDS = {1: 15.2, 3: 21.2, 7: 29.9}  # by degrees of freedom: p < 0.0001


def test_the_spiral_goes_round_to_the_middle():
    assert scan_order("spiral", (3, 4)).tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]
    assert scan_order("spiral", (1, 3)).tolist() == [0, 1, 2]
    assert scan_order("spiral", (3, 1)).tolist() == [0, 1, 2]


def test_each_image_is_read_in_its_own_order_and_put_back():
    codes = torch.randint(100, (5, 3, 4))
    cells = torch.stack([torch.randperm(12) for _ in range(5)])
    tokens = grid_to_sequence(codes, cells)
    assert tokens[2].tolist() == codes[2].flatten()[cells[2]].tolist()
    assert torch.equal(sequence_to_grid(tokens, cells, (3, 4)), codes)


def test_known_cells_come_first_and_both_parts_stay_in_order():
    known = torch.tensor([[[False, True], [True, False]], [[False, False], [False, True]]])
    assert known_first(known, torch.tensor([0, 1, 2, 3])).tolist() == [[1, 2, 0, 3], [3, 0, 1, 2]]
    assert known_first(known, torch.tensor([[3, 2, 1, 0]] * 2)).tolist() == [[2, 1, 3, 0], [3, 2, 1, 0]]


@pytest.mark.parametrize("order", get_args(FixedOrder))
@torch.no_grad()
def test_a_network_for_any_order_becomes_one_for_one_order_that_computes_the_same(order):
    model = tiny_gpt(order="random", condition="class")
    cells = scan_order(order, (3, 4))
    folded = tiny_gpt(order=order, condition="class")
    folded.load_state_dict(with_one_order(model.state_dict(), cells))
    codes, labels = torch.randint(16, (2, 12)), torch.tensor([1, -1])
    logits = folded.predictions(codes, labels, folded.cells)
    torch.testing.assert_close(logits, model.predictions(codes, labels, cells), atol=1e-5, rtol=1e-5)


def all_masks(cells):
    """Every set of known cells but none and all, (2^T - 2, T) bool."""
    masks = torch.tensor(list(itertools.product([False, True], repeat=cells)))
    return masks[masks.any(1) & ~masks.all(1)]


def images_of_two_codes(cells):
    """All of them, and the number of each."""
    return torch.tensor(list(itertools.product([0, 1], repeat=cells)))


def probabilities(model, images, cells):
    """Of all images (N, T) of a grid 2 x 2, read in an order."""
    (nats,) = nats_of_images(model, images.view(-1, 2, 2), torch.full((len(images),), -1), "fp32", cells[None])
    return (-nats).exp()


@pytest.mark.parametrize("draw_order", [None, "spiral", "random"])
@pytest.mark.parametrize("arch", get_args(Arch))
@torch.no_grad()
def test_completions_follow_the_models_own_conditional_given_all_known_cells(arch, draw_order):
    """Chi-square, for every mask of four cells, of the draws of known cells first and the others after them."""
    model = tiny_gpt(arch=arch, order="random", grid=(2, 2), codebook_size=2)
    images, truth = images_of_two_codes(4), torch.tensor([1, 0, 1, 1])
    for mask in all_masks(4):
        known = torch.where(mask, truth, -1).view(1, 2, 2).expand(600, 2, 2)
        options = SamplingOptions(draw_order=draw_order)
        sampler = Sampler(model, "fp32", completes=True)
        asked = Asked.of_one_seed(torch.full((600,), -1), 7, options, known)
        drawn = torch.cat([codes for codes, _ in sampler.codes(asked)]).flatten(1)
        assert (drawn[:, mask] == truth[mask]).all()
        possible = images[(images[:, mask] == truth[mask]).all(dim=1)]
        orders_drawn = orders(asked, model).unique(dim=0, return_counts=True)
        expected = torch.zeros(len(possible), dtype=torch.float64)
        for cells, count in zip(*orders_drawn, strict=True):
            of_order = probabilities(model, possible, cells)
            expected += count / 600 * of_order / of_order.sum()
        counts = (drawn[:, None] == possible).all(dim=2).sum(dim=0).numpy()
        assert chi_square(counts, expected.numpy()) < CHI_SQUARE_BOUNDS[len(possible) - 1]


@pytest.mark.parametrize("arch", get_args(Arch))
def test_a_trained_model_knows_the_conditionals_of_a_toy_distribution(arch):
    """Four cells of two codes: the first two agree, the third is their negation in 3 of 4 cases, the last a coin."""
    images = images_of_two_codes(4)
    first, second, third, _ = images.T
    likely = torch.where(third != first, 0.75, 0.25) * (first == second) / 4
    torch.manual_seed(0)
    options = GPTOptions(arch=arch, n_layer=2, n_head=2, embed_dim_t=32, dropout_t=0.0, order="random")
    model = GPT(GPTConfig(options=options, codebook_size=2, grid=(2, 2), num_classes=0))
    rows = images[torch.multinomial(likely, 4096, replacement=True, generator=torch.Generator().manual_seed(0))]
    data = TokenGrids(codes=rows.view(-1, 1, 2, 2).to(torch.uint8), labels=torch.full((4096,), -1))
    training_options = GPTTrainingOptions(batch_size=256, n_epochs=20, lr=1e-2, warmup=1)
    schedule = Schedule(seed=0, num_rows=4096, batch_size=256, n_epochs=20)
    training = GPTTraining(model, data, data, training_options, schedule, "fp32")
    for step in schedule.steps(0):
        training.take_step(step)
    model.eval()
    truth = torch.tensor([1, 1, 0, 1])
    for mask in all_masks(4):
        given = (images[:, mask] == truth[mask]).all(dim=1)
        expected = (likely * given / (likely * given).sum()).double()
        cells = known_first(mask.view(1, 2, 2), torch.arange(4))[0]
        found = probabilities(model, images, cells) * given
        assert (found / found.sum() - expected).abs().sum() / 2 < 0.06, mask  # total variation
    known = torch.tensor([[[-1, 1], [-1, -1]]]).expand(2000, 2, 2)  # the cell above is drawn after one that it decides
    codes = torch.cat(
        [
            codes
            for codes, _ in sample_codes(
                model, Asked.of_one_seed(torch.full((2000,), -1), 0, SamplingOptions(), known), "fp32"
            )
        ]
    )
    assert (codes[:, 0, 0] == 1).float().mean() > 0.97
    assert (codes[:, 1, 0] == 0).float().mean().item() == pytest.approx(0.75, abs=0.06)


@torch.no_grad()
def test_the_probability_under_several_orders_is_their_mean():
    model, codes = tiny_gpt(order="random"), torch.randint(16, (5, 3, 4))
    labels, orders = torch.full((5,), -1), orders_to_score("random", 3, tiny_gpt().config)
    (several,) = nats_of_images(model, codes, labels, "fp32", orders)
    alone = [next(nats_of_images(model, codes, labels, "fp32", cells[None])) for cells in orders]
    torch.testing.assert_close((-several).exp(), torch.stack([(-nats).exp() for nats in alone]).mean(dim=0))
    assert len({nats[0].item() for nats in alone}) == 3


def test_images_depend_on_the_seed_and_their_number_alone_in_random_orders():
    for arch in get_args(Arch):
        model = tiny_gpt(arch=arch, order="random", embed_dim_t=32)
        sampler, options = Sampler(model, "fp32"), SamplingOptions(draw_order="random")
        asked = [
            Asked.of_one_seed(torch.full((n,), -1), 0, options, first=first) for n, first in ((70, 0), (3, 0), (6, 64))
        ]
        many, few, later = (torch.cat([codes for codes, _ in sampler.codes(each)]) for each in asked)
        assert torch.equal(many[:3], few)
        assert torch.equal(many[64:], later)


def test_a_training_that_ends_in_one_order_leaves_a_network_of_one_order():
    result = new_model(order="hilbert").config
    training = new_training(model=new_model(order="random"), random_until=0.25, anneal_until=0.5)
    training = GPTTraining(
        training.model, training.train, training.held_out, training.options, training.schedule, "fp32", result
    )
    trained(training)
    folded = GPT(result)
    folded.load_state_dict(training.result_weights())
    codes = torch.randint(16, (2, 16))
    labels, cells = torch.full((2,), -1), scan_order("hilbert", (4, 4))
    training.model.eval()
    with torch.no_grad():
        expected = training.model.predictions(codes, labels, cells)
        torch.testing.assert_close(folded.eval().predictions(codes, labels, cells), expected, atol=1e-5, rtol=1e-5)
    assert training.validate()["held_out_nats_per_token"] == pytest.approx(
        GPTTraining(folded, training.train, training.held_out, training.options, training.schedule, "fp32").validate()[
            "held_out_nats_per_token"
        ],
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("random_until", "anneal_until", "shares"),
    [
        (0.5, 0.75, [1, 1, 0.6, 0, 0]),
        (0.5, None, [1, 1, 0.6, 0, 0]),
        (0.0, 1.0, [1, 0.75, 0.4, 0.25, 0.1]),
        (1.0, None, [1, 1, 1, 1, 1]),
        (0.0, None, [0, 0, 0, 0, 0]),
    ],
)
def test_the_share_of_random_orders_is_annealed(random_until, anneal_until, shares):
    options = GPTTrainingOptions(random_until=random_until, anneal_until=anneal_until)
    assert [options.random_share(at) for at in (0, 0.25, 0.6, 0.75, 0.9)] == pytest.approx(shares)


@pytest.fixture
def cache(here):
    """A folder with a token cache of 100 rows."""
    write_cache(Path("a.zarr"), description())
    return here


def test_random_orders_resume_and_end_in_the_order_asked_for(cache):
    command = ["train", "--cache", "a.zarr", *TINY_GPT, "--order", "spiral", "--random-until", "0.5", "--ema", "0.5"]
    command += ["--batch-size", "20", "--n-epochs", "4", "--sample-and-save-freq", "1"]
    assert_resumes(command, "gpt.pt", "gpt.best.pt")
    assert load_gpt(Path("s/gpt.pt"), CPU).model.config.options.order == "spiral"
    outcome = run_here("sample", "--checkpoint-gpt", "s/gpt.pt", "--tokens-only", "--out", "x.zarr")
    assert outcome.code == 0, outcome.err


def test_a_gpt_for_any_order_completes_any_mask_and_says_nothing_of_it(cache):
    assert run_here("train", "--cache", "a.zarr", *ANY_ORDER, "--max-steps", "1", "--out", "gpt.pt").code == 0
    mask = np.zeros((4, 3), np.uint8)
    mask[3, 1:] = mask[1, 0] = 255
    Image.fromarray(mask).save("mask.png")
    command = ["sample", "--checkpoint-gpt", "gpt.pt", "--tokens-only", "--prompt", "cache:a.zarr:train/3"]
    outcome = run_here(*command, "--keep", "mask.png", "--num-samples", "5", "--out", "x.zarr")
    assert outcome.code == 0, outcome.err
    assert "come after sampled ones" not in outcome.err
    source = TokenCache(Path("a.zarr")).read_split("train").codes[3, 0]
    assert (TokenCache(Path("x.zarr")).read_split("samples").codes[:, 0][:, mask > 0] == source[mask > 0]).all()
    outcome = run_here(*command, "--keep", "mask.png", "--draw-order", "random", "--out", "y.zarr")
    assert outcome.code == 0, outcome.err
    Path("y.zarr/samples/codes/c/0/0/0/0").unlink()
    outcome = run_here("cache", "verify", "--repair", "y.zarr", "--checkpoint-gpt", "gpt.pt")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--order", "random", "--random-until", "0.5"], ["--order random", "--random-until"]),
        (["--random-until", "0.5", "--anneal-until", "0.4"], ["anneal_until", "0.4", "0.5"]),
        (["--random-until", "0.5", "--anneal-until", "1.5"], ["anneal_until", "1.5"]),
        (["--random-until", "2"], ["random_until", "2"]),
        (["--random-until", "0.5", "--arch", "llama"], ["--arch llama", "--arch gpt2"]),
        (["--random-until", "0.5", "--patience", "3"], ["patience", "random orders"]),
        (["--anneal-until", "0"], ["anneal_until", "above 0"]),
        (["--token-noise-until", "0.5"], ["token_noise_until", "--token-noise"]),
    ],
)
def test_orders_that_cannot_be_trained(cache, arguments, words):
    assert_refused(run_here("train", "--cache", "a.zarr", *TINY_GPT, *arguments, "--out", "x.pt"), 2, *words)


def test_a_training_in_random_orders_starts_from_one(cache):
    command = ["train", "--cache", "a.zarr", *TINY_GPT, "--max-steps", "1"]
    assert run_here(*command, "--order", "raster", "--out", "one.pt").code == 0
    assert run_here(*command, "--order", "random", "--out", "any.pt").code == 0
    annealed = [*command, "--order", "raster", "--random-until", "0.5", "--out", "x.pt", "--checkpoint-gpt"]
    assert_refused(run_here(*annealed, "one.pt"), 3, "one.pt", "one order", "--order random")
    outcome = run_here(*annealed, "any.pt", "--json")
    assert outcome.code == 0, outcome.err
    weights = torch.load("x.pt", weights_only=True)["model"]
    assert outcome.json["parameters"] == sum(weight.numel() for weight in weights.values())


def test_a_gpt_of_one_order_knows_no_other(cache):
    save_gpt(description())
    command = ["--checkpoint-gpt", "g.pt"]
    outcome = run_here("sample", *command, "--tokens-only", "--draw-order", "spiral", "--out", "x.zarr")
    assert_refused(outcome, 2, "g.pt", "s-pattern", "--draw-order", "--order random")
    outcome = run_here("score", "a.zarr", *command, "--order", "random", "--num-orders", "4")
    assert_refused(outcome, 2, "g.pt", "s-pattern", "--order random")
    assert_refused(run_here("score", "a.zarr", *command, "--num-orders", "4"), 2, "num_orders", "--order random")
    generator = vqgpt.load_gpt("g.pt")
    codes = np.zeros((2, 4, 3), np.int64)
    for wrong in ({"num_orders": 4}, {"order": "random"}, {"order": "bogus"}, {"order": "raster", "num_orders": 0}):
        with pytest.raises(UsageError):
            generator.score(codes, **wrong)
    for wrong in ("spiral", "bogus"):
        with pytest.raises(UsageError):
            generator.sample(1, draw_order=wrong)
    assert generator.sample(2, draw_order="s-pattern").shape == codes.shape
    assert run_here("score", "a.zarr", *command, "--order", "s-pattern").code == 0


def test_rows_are_scored_in_an_order_and_in_several(cache):
    save_gpt(description(), order="random")
    found = {}
    for name, words in {
        "raster": [],
        "spiral": ["--order", "spiral"],
        "several": ["--order", "random", "--num-orders", "4"],
    }.items():
        outcome = run_here("score", "a.zarr", "--checkpoint-gpt", "g.pt", "--json", "--overwrite", *words)
        assert outcome.code == 0, outcome.err
        found[name] = outcome.json["splits"]["train"]["bits_per_token"]
    assert len(set(found.values())) == 3


def test_a_gpt_for_any_order_is_not_exported_to_transformers(cache):
    save_gpt(description(), order="random")
    assert_refused(run_here("export", "hf", "--checkpoint-gpt", "g.pt", "-q"), 2, "any order", "--order")
