"""The fast convolutions of training steps: the same as plain ones, in the steps alone, and only where they can be."""

import shutil
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.test_vqgan_training import small_perceptual_loss, start_training
from vqgpt.kernels import winograd
from vqgpt.kernels.winograd import fast_convolutions

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def inputs(images=2, width_in=16, width_out=32, height=8, width=64, dtype=torch.float32, trained=True):
    """Image, weight, bias, and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    shapes = (images, width_in, height, width), (width_out, width_in, 3, 3), (width_out,)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    gradient = torch.randn(images, width_out, height, width, generator=generator).to(dtype)
    return (x.requires_grad_(), *(tensor.requires_grad_(trained) for tensor in (weight, bias))), gradient


def convolve_and_differentiate(tensors, gradient):
    result = F.conv2d(*tensors, (1, 1), (1, 1), (1, 1), 1)
    return result, *torch.autograd.grad(result, [tensor for tensor in tensors if tensor.requires_grad], gradient)


def assert_near(found, expected, tolerance=1e-5):
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).norm() < tolerance * plain.norm()


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    width_in=st.sampled_from([16, 48]),
    width_out=st.sampled_from([16, 32]),
    height=st.integers(4, 13),
    width=st.integers(4, 40),
    trained=st.booleans(),
)
def test_result_and_gradients_are_those_of_the_plain_convolution(**shape):
    with mock.patch.object(winograd, "FEWEST_TILES", 1), fast_convolutions(CPU, "fp32"):
        found = convolve_and_differentiate(*inputs(**shape))
    expected = convolve_and_differentiate(*inputs(**shape, dtype=torch.float64))
    assert_near(found, expected)


@needs_compiler
@pytest.mark.parametrize(
    "shape", [{"width_in": 24}, {"width_out": 3}, {"height": 3, "width": 128}, {"width": 60}, {"dtype": torch.float64}]
)
def test_what_does_not_suit_is_left_alone(shape):
    with fast_convolutions(CPU, "fp32"):
        found = convolve_and_differentiate(*inputs(**shape))
    assert all(torch.equal(*pair) for pair in zip(found, convolve_and_differentiate(*inputs(**shape)), strict=True))


@needs_compiler
def test_numbers_of_a_kernel_that_is_not_trained_are_kept_until_it_changes(monkeypatch):
    made = []
    make = winograd._transform_kernel
    monkeypatch.setattr(winograd, "_transform_kernel", lambda weight: made.append(1) or make(weight))
    x, weight, bias = torch.randn(16, 16, 8, 8), torch.randn(16, 16, 3, 3), torch.zeros(16)

    def convolve():
        with fast_convolutions(CPU, "fp32"):
            return F.conv2d(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)

    before = convolve()
    assert torch.equal(convolve(), before)
    assert len(made) == 1
    weight.mul_(2)
    assert_near([convolve()], [2 * before])
    assert len(made) == 2
    weight.requires_grad_()
    convolve()
    convolve()
    assert len(made) == 4


def test_threads_share_the_images_and_their_number_alone_decides_the_bits():
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (3, 3, 1):
            torch.set_num_threads(threads)
            training = start_training(grad_clip=0.0, perceptual_loss=small_perceptual_loss(), perceptual_weight=0.7)
            figures = training.take_step(next(training.schedule.steps(0)))
            runs.append((figures, [parameter.grad for parameter in training.parameters]))
    finally:
        torch.set_num_threads(before)
    assert runs[0][0] == runs[1][0] == pytest.approx(runs[2][0], rel=1e-4)
    assert all(torch.equal(*pair) for pair in zip(runs[0][1], runs[1][1], strict=True))
    # rounding may take an activation of the perceptual network to the other side of 0, and its gradient with it
    assert_near(*(torch.cat([gradient.flatten() for gradient in run[1]])[None] for run in (runs[0], runs[2])), 2e-3)


@needs_compiler
def test_a_training_step_is_the_plain_one_but_for_rounding():
    figures, gradients = [], []
    for winograd_option in ("auto", "off"):
        training = start_training(winograd=winograd_option, grad_clip=0.0)
        figures.append(training.take_step(next(training.schedule.steps(0))))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in training.parameters]))
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    assert 0 < (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


@needs_compiler
def test_codes_and_validation_are_computed_by_plain_convolutions(monkeypatch):
    training = start_training()
    step = next(training.schedule.steps(0))

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(winograd._Convolution, "apply", refuse)
    training.validate()
    with torch.no_grad():
        training.model.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(AssertionError):
        training.take_step(step)


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_working_compiler_training_goes_on_with_plain_convolutions(begin_anew, tmp_path, compiler):
    if compiler == "broken":
        (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "cc").chmod(0o755)
    begin_anew(tmp_path)
    training, plain = start_training(), start_training(winograd="off")
    for run in (training, plain):
        run.take_step(next(run.schedule.steps(0)))
    for ours, expected in zip(training.parameters, plain.parameters, strict=True):
        assert torch.equal(ours, expected)
