"""Group normalisation in C against its definition in float64."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vqgpt.kernels.normalisation import GROUPS, Norm
from vqgpt.vqgan.model import AttnBlock


def new_norm(channels, silu, groups=GROUPS):
    norm = Norm(channels, silu, groups)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    return norm


def defined(norm, x):
    exact = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps).double()
    exact.load_state_dict(norm.state_dict())
    y = exact(x)
    return (F.silu(y) if norm.silu else y), exact


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(1, 3),
    channels=st.sampled_from([32, 64, 96]),
    groups=st.sampled_from([1, 2, 8, 32]),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    silu=st.booleans(),
    spread=st.sampled_from([1e-3, 1.0, 200.0]),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
)
def test_values_and_gradients_are_those_of_the_definition(
    images, channels, groups, height, width, silu, spread, layout
):
    torch.manual_seed(height)
    norm = new_norm(channels, silu, groups)
    x = (spread * (torch.randn(images, channels, height, width) + 1)).to(memory_format=layout)
    gradient = torch.randn(x.shape)
    ours, right = x.clone().requires_grad_(), x.double().requires_grad_()
    y = norm(ours)
    assert type(y.grad_fn).__name__.startswith("_Normalised")
    wanted, exact = defined(norm, right)
    y.backward(gradient)
    wanted.backward(gradient.double())
    pairs = [(y, wanted), (ours.grad, right.grad)]
    pairs += [(norm.weight.grad, exact.weight.grad), (norm.bias.grad, exact.bias.grad)]
    for computed, expected in pairs:
        tolerance = 2e-4 * max(1.0, expected.abs().max().item())  # a group may be two numbers, nearly equal
        torch.testing.assert_close(computed.double(), expected, rtol=0, atol=tolerance)


def test_channels_that_the_c_code_does_not_take_are_computed_by_torch():
    torch.manual_seed(0)
    norm, x = new_norm(12, silu=True, groups=4), torch.randn(2, 12, 5, 5, requires_grad=True)
    y = norm(x)
    assert not type(y.grad_fn).__name__.startswith("_Normalised")
    torch.testing.assert_close(y.double(), defined(norm, x.double())[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("compiler", ["with a compiler", "without"])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_one_image_with_one_value_per_group_is_as_in_a_batch(begin_anew, compiler, trains, silu, layout):
    """Nothing varies in such a group: the bias is left of it, and no gradient reaches the image."""
    if compiler == "without":
        begin_anew("")
    torch.manual_seed(0)
    norm = new_norm(GROUPS, silu)
    batch = 100 * torch.randn(2, GROUPS, 1, 1).to(memory_format=layout)
    gradient, results = torch.randn(2, GROUPS, 1, 1), {}
    for name, some in {"both": slice(0, 2), "first": slice(0, 1), "second": slice(1, 2)}.items():
        x = batch[some].clone().requires_grad_(trains)
        with torch.set_grad_enabled(trains):
            y = norm(x)
        if trains:
            norm.zero_grad()
            y.backward(gradient[some])
        results[name] = y.detach(), x.grad
    bias = F.silu(norm.bias) if silu else norm.bias
    torch.testing.assert_close(results["both"][0].flatten(1), bias.detach().expand(2, -1), rtol=0, atol=1e-6)
    for both, first, second in zip(*results.values(), strict=True):
        if both is not None:
            torch.testing.assert_close(torch.cat([first, second]), both, rtol=0, atol=1e-6)
    if trains:
        assert not results["first"][1].any()
        wanted = torch.autograd.grad(bias, norm.bias, gradient[1].flatten())[0]
        torch.testing.assert_close(norm.bias.grad, wanted, rtol=0, atol=1e-6)
        assert not norm.weight.grad.any()


def test_without_a_compiler_and_without_gradients_torch_computes_it(begin_anew):
    norm, x = new_norm(32, silu=True), torch.randn(2, 32, 4, 4)
    trained = norm(x)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), trained, rtol=0, atol=2e-5)
    begin_anew("")
    y = norm(x)
    assert not type(y.grad_fn).__name__.startswith("_Normalised")
    torch.testing.assert_close(y, trained, rtol=0, atol=2e-5)


def test_attention_in_training_is_that_of_encoding():
    torch.manual_seed(0)
    block = AttnBlock(32, norm_groups=8)
    x = torch.randn(2, 32, 5, 6).to(memory_format=torch.channels_last)
    with torch.no_grad():
        encoding = block(x)
    torch.testing.assert_close(block(x), encoding, rtol=0, atol=1e-5)
