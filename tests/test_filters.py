"""What is drawn from a prediction: filters against plain references, draws against chi-square, guidance."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_gpt import sampled, tiny_gpt
from tests.test_sampling import settings_of
from vqgpt.errors import UsageError
from vqgpt.gpt.generate import uniform_numbers
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions, SamplingOptions
from vqgpt.gpt.sampling import Settings, draw, filtered, guidance_scales

FILTERS = [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 4, "top_p": 0.9, "min_p": 0.05}]
CHI_SQUARE_BOUND = {5: 25, 8: 32}  # by degrees of freedom: p < 0.0002


def plain_filter(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The probabilities of one row, step by step as the documentation has it, with sorting and loops."""
    probabilities = np.exp(logits / temperature - (logits / temperature).max())
    probabilities /= probabilities.sum()
    if top_k is not None:
        least = sorted(probabilities)[::-1][min(top_k, len(probabilities)) - 1]
        probabilities = np.where(probabilities >= least, probabilities, 0)
        probabilities /= probabilities.sum()
    if top_p is not None:
        total = 0.0
        for code in np.argsort(-probabilities):
            least, total = probabilities[code], total + probabilities[code]
            if total >= top_p:
                break
        probabilities = np.where(probabilities >= least, probabilities, 0)
        probabilities /= probabilities.sum()
    if min_p is not None:
        probabilities = np.where(probabilities >= min_p * probabilities.max(), probabilities, 0)
        probabilities /= probabilities.sum()
    return probabilities


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    codes=st.sampled_from([2, 16, 200]),
    temperature=st.floats(0.3, 3),
    top_k=st.none() | st.integers(1, 250),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
)
def test_filters_do_what_a_plain_reference_does(seed, codes, temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(0, 2, codes).astype(np.float32)
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    found = (
        filtered(torch.from_numpy(logits)[None], settings_of(SamplingOptions(**chosen), codes))
        .softmax(dim=-1)[0]
        .numpy()
    )
    expected = plain_filter(logits.astype(np.float64), **chosen)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equally_likely_codes_stay_together():
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    for options in ({"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}):
        kept = filtered(logits, settings_of(SamplingOptions(**options), codes=4)) > -torch.inf
        assert kept.tolist() == [[True, True, True, False]]


def chi_square(counts, probabilities):
    """Of counts against expected shares; what is impossible must not occur."""
    expected = np.asarray(probabilities) * counts.sum()
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    return ((counts - expected)[possible] ** 2 / expected[possible]).sum()


@pytest.mark.parametrize("options", [{**chosen, "temperature": t} for chosen in FILTERS for t in (0.6, 1.0, 2.0)])
def test_draws_follow_the_filtered_distribution(options):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    codes = draw(logits.repeat(20_000, 1), uniforms, Settings.of([SamplingOptions(**options)] * 20_000, 6, 1))
    expected = plain_filter(logits.numpy().astype(np.float64), **options)
    assert chi_square(np.bincount(codes.numpy(), minlength=6), expected) < CHI_SQUARE_BOUND[5]


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 2.5}, {"top_k": 2, "temperature": 0.8}])
@torch.no_grad()
def test_images_of_a_toy_model_follow_their_joint_distribution(options):
    """Chi-square over all nine images of two tokens of three codes."""
    torch.manual_seed(0)
    shape = GPTOptions(n_layer=1, n_head=1, embed_dim_t=8, condition="class")
    model = GPT(GPTConfig(options=shape, codebook_size=3, grid=(1, 2), num_classes=2)).eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    images = torch.tensor(list(itertools.product(range(3), range(3))))
    with_label, without = (model.predictions(images, torch.full((9,), label), model.cells) for label in (1, -1))
    logits = (without + options.get("cfg_scale", 1.0) * (with_label - without)).double().numpy()
    chosen = {name: value for name, value in options.items() if name != "cfg_scale"}
    expected = [
        math.prod(plain_filter(logits[row, position], **chosen)[codes[position]] for position in range(2))
        for row, codes in enumerate(images.tolist())
    ]
    codes = sampled(model, [1] * 4000, **options).flatten(1)
    counts = np.bincount((3 * codes[:, 0] + codes[:, 1]).numpy(), minlength=9)
    assert chi_square(counts, expected) < CHI_SQUARE_BOUND[8]


def test_guidance_of_0_is_without_the_label_and_of_1_with_it():
    model = tiny_gpt(condition="class")
    assert torch.equal(sampled(model, [0, 1, 2], cfg_scale=0.0), sampled(model, [-1, -1, -1]))
    unlabelled = sampled(model, [-1, -1], cfg_scale=4.0)
    assert torch.equal(unlabelled, sampled(model, [-1, -1]))


def test_schedules_of_guidance():
    constant, linear = SamplingOptions(cfg_scale=3.0), SamplingOptions(cfg_scale=3.0, cfg_schedule="linear")
    cosine = SamplingOptions(cfg_scale=3.0, cfg_schedule="power-cosine", cfg_power=2.0)
    assert guidance_scales(constant, 4).tolist() == [3, 3, 3, 3]
    assert guidance_scales(linear, 4).tolist() == [1, 1.5, 2, 2.5]
    expected = [1 + 2 * (1 - math.cos(math.pi * (t / 4) ** 2)) / 2 for t in range(4)]
    assert guidance_scales(cosine, 4).tolist() == pytest.approx(expected)


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow():
    logits = torch.tensor([[3.0, 80.0, 79.0]])
    for temperature in (1e-30, 1e-50, 5e-324):
        assert (
            draw(logits, torch.tensor([0.999]), settings_of(SamplingOptions(temperature=temperature), codes=3)).item()
            == 1
        )


def test_the_largest_uniform_number_draws_a_possible_code():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert draw(logits, torch.tensor([1 - 2**-24]), settings_of(SamplingOptions(), codes=4)).item() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("cfg_scale", -1.0),
        ("cfg_scale", 1e300),
        ("cfg_power", 2.0),
    ],
)
def test_impossible_values_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        SamplingOptions(**{name: value})


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40))
def test_uniform_numbers_belong_to_their_image(seed, first):
    numbers = uniform_numbers([seed] * 4, range(first, first + 4), 8)
    assert not torch.equal(numbers, uniform_numbers([seed ^ 1] * 4, range(first, first + 4), 8))
    assert torch.equal(numbers[2:], uniform_numbers([seed] * 2, range(first + 2, first + 4), 8))
    assert numbers.min() >= 0
    assert numbers.max() < 1
