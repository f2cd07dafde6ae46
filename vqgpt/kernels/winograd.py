"""Faster 3x3 convolutions for training on a CPU in float32, by Winograd's algorithm with a fourth of the products.

    with fast_convolutions(device, precision): model(images)  ->  the same to about 1e-6, and its gradients

F(4x4, 3x3) of Lavin and Gray 2015 (arXiv:1509.09308): a square of 4 x 4 pixels of the result and the 6 x 6 pixels it
depends on become 36 numbers per channel each, a kernel 36 numbers per pair of channels, and the convolution 36 matrix
products. Both gradients are such products too, between the transposed transforms. The numbers of kernels that are not
trained are kept: four times the kernels' memory, and as much again once a gradient passes through them. The transforms
and most of the products are in `winograd.c`, which is compiled at first use (a second); without a C compiler nothing is
made faster. One thread computes a convolution, while others may compute theirs.

Letters: N images, H W pixels, C channels in, K channels out.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from vqgpt.kernels.build import call, compiled_library

SIDE = 4  # pixels of a square
LANES = 16  # channels that the C code takes at once
SMALLEST_SIDE = 4  # pixels of an image
FEWEST_SQUARES = 64  # of a batch; with fewer, to transform the kernels costs more than it saves
FEWEST_SQUARES_KEPT = 8  # where the kernels' numbers are kept; with fewer, to read them does
SQUARES_AT_ONCE = 64  # in the gradient by the weight
UNUSED = 1  # square after each 64 or so: without it the 36 numbers of a pixel fall to the same places of a cache


def fast_convolutions(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a network's 3x3 convolutions are fast: on a CPU in float32, where there is a C compiler.

    It can be entered again and again. Elsewhere it changes nothing.
    """
    return _FastConvolutions() if device.type == "cpu" and precision == "fp32" and _library() else nullcontext()


_kept_numbers = WeakTensorKeyDictionary()  # kernel -> {transposed: (version of the kernel, its numbers)}


class _FastConvolutions(TorchFunctionMode):
    """Replaces `torch.conv2d`."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute those convolutions that suit in another way."""
        if function is F.conv2d and not kwargs and _suits(*args):
            return _Convolution.apply(*args[:3])  # type: ignore[no-untyped-call]
        return function(*args, **(kwargs or {}))


def _suits(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Whether the C code computes it; torch refuses what nothing computes."""
    return (
        bias is not None
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in (x, weight, bias))
        and x.ndim == weight.ndim == 4
        and (x.shape[1], *bias.shape) == (weight.shape[1], weight.shape[0])
        and weight.shape[2:] == (3, 3)
        and (stride, padding, dilation, groups) == ((1, 1), (1, 1), (1, 1), 1)
        and weight.shape[0] % LANES == weight.shape[1] % LANES == 0
        and min(x.shape[2:]) >= SMALLEST_SIDE
        and len(x) * _squares(*x.shape[2:]) >= (FEWEST_SQUARES if weight.requires_grad else FEWEST_SQUARES_KEPT)
    )


def _squares(height: int, width: int) -> int:
    """How many there are in an image."""
    return math.ceil(height / SIDE) * math.ceil(width / SIDE)


class _Convolution(torch.autograd.Function):
    """A convolution of x (N, C, H, W) by weight (K, C, 3, 3) and bias (K,), padded by 1 -> (N, K, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """All in one call of `winograd.c`."""
        ctx.save_for_backward(x, weight)
        pixels, kernels = _pixels(x), _numbers_of_kernel(weight, transposed=False)
        result = pixels.new_empty(*pixels.shape[:3], len(weight))

        _call("convolve", pixels, kernels, bias, result, _scratch(weight.shape[1]), *pixels.shape, len(weight))
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The transposed transforms; by the weight, a product of the numbers of both sides."""
        x, weight = ctx.saved_tensors
        pixels, of_result = _pixels(x), _pixels(gradient)
        of_pixels = of_weight = None
        if ctx.needs_input_grad[0]:
            kernels, of_pixels = _numbers_of_kernel(weight, transposed=True), torch.zeros_like(pixels)
            scratch = _scratch(len(weight))
            _call("convolve_transposed", of_result, kernels, of_pixels, scratch, *pixels.shape, len(weight))
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight, memory_format=torch.channels_last)
            in_c_order = of_weight.permute(0, 2, 3, 1)
            _call("numbers_to_kernel", _weight_gradient(pixels, of_result), in_c_order, *weight.shape[:2])
        return (
            None if of_pixels is None else of_pixels.permute(0, 3, 1, 2),
            of_weight,
            of_result.sum(dim=(0, 1, 2)) if ctx.needs_input_grad[2] else None,
        )


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C) without gaps, which is how channels_last memory is."""
    return x.permute(0, 2, 3, 1).contiguous()


def _numbers_of_kernel(weight: Tensor, transposed: bool) -> Tensor:
    """(K, C, 3, 3) -> (K/16, 36, C, 16), or with K and C exchanged; kept if the kernel is not trained."""
    kept = {} if weight.requires_grad else _kept_numbers.setdefault(weight, {})
    version, numbers = kept.get(transposed, (None, None))
    if version != weight._version or numbers is None:
        version, numbers = weight._version, _kernel_to_numbers(weight.transpose(0, 1) if transposed else weight)
        kept[transposed] = version, numbers
    return numbers


def _kernel_to_numbers(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (K/16, 36, C, 16)."""
    k, c = weight.shape[:2]
    numbers = weight.new_empty(k // LANES, 36, c, LANES)
    _call("kernel_to_numbers", weight.permute(1, 2, 3, 0).contiguous(), numbers, c, k)
    return numbers


def _weight_gradient(pixels: Tensor, of_result: Tensor) -> Tensor:
    """Input (n, H, W, C) and gradient of the result (n, H, W, K) -> gradient by the kernels' numbers (36, K, C)."""
    _, h, w, c = pixels.shape
    k = of_result.shape[3]
    of_kernels = pixels.new_zeros(36, k, c)
    images = math.ceil(SQUARES_AT_ONCE / _squares(h, w))
    for some, of_some in zip(pixels.split(images), of_result.split(images), strict=True):
        squares = len(some) * _squares(h, w)
        inputs, outputs = (some.new_empty(36, squares + UNUSED, channels) for channels in (c, k))
        _call("input_to_numbers", some, inputs, *some.shape, squares + UNUSED)
        _call("output_to_numbers", of_some, outputs, *of_some.shape, squares + UNUSED)
        of_kernels.baddbmm_(outputs[:, :squares].transpose(1, 2), inputs[:, :squares])
    return of_kernels


def _scratch(channels: int) -> Tensor:
    return torch.empty(_call("scratch_size", channels))


def _call(name: str, *arguments: Tensor | int) -> int:
    """Call a function of `winograd.c`."""
    library = _library()
    assert library is not None
    return call(library, name, *arguments)


def _library() -> ctypes.CDLL | None:
    return compiled_library(Path(__file__).with_name("winograd.c"))
