"""Faster 3x3 convolutions for training on a CPU in float32, by Winograd's algorithm with a fourth of the products.

    with fast_convolutions(device, precision): model(images)  ->  the same to about 1e-6, and its gradients

F(4x4, 3x3) of Lavin and Gray 2015 (arXiv:1509.09308): in the Winograd domain a tile of 4 x 4 pixels of the result, and
the 6 x 6 pixels it depends on, are 36 values per channel each, a kernel is 36 values per pair of channels, and the
convolution is 36 matrix products. Both gradients are such products too, between the transposed transforms. Transformed
kernels that are not trained are cached: four times the kernels' memory, and as much again once a gradient passes
through them. All is computed by `winograd.c`; without a C compiler nothing is made faster.
One thread computes a convolution, while others may compute theirs.

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

SOURCE = Path(__file__).with_name("winograd.c")
SIDE = 4  # pixels of a tile
VECTOR_WIDTH = 16  # channels that the C code takes at once
SMALLEST_SIDE = 4  # pixels of an image
FEWEST_TILES = 64  # of a batch; with fewer, to transform the kernels costs more than it saves
FEWEST_TILES_CACHED = 8  # where transformed kernels are cached; with fewer, to read them does


def fast_convolutions(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a network's 3x3 convolutions are fast: on a CPU in float32, where there is a C compiler.

    It can be entered again and again. Elsewhere it changes nothing.
    """
    return _FastConvolutions() if device.type == "cpu" and precision == "fp32" and _library() else nullcontext()


_transformed_kernels = WeakTensorKeyDictionary()  # kernel -> {transposed: (its version, the kernel transformed)}


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
        and weight.shape[0] % VECTOR_WIDTH == weight.shape[1] % VECTOR_WIDTH == 0
        and min(x.shape[2:]) >= SMALLEST_SIDE
        and len(x) * _tiles(*x.shape[2:]) >= (FEWEST_TILES if weight.requires_grad else FEWEST_TILES_CACHED)
    )


def _tiles(height: int, width: int) -> int:
    """How many there are in an image."""
    return math.ceil(height / SIDE) * math.ceil(width / SIDE)


class _Convolution(torch.autograd.Function):
    """A convolution of x (N, C, H, W) by weight (K, C, 3, 3) and bias (K,), padded by 1 -> (N, K, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """All in one call of `winograd.c`."""
        ctx.save_for_backward(x, weight)
        pixels, kernels = _pixels(x), _transformed_kernel(weight, transposed=False)
        result = pixels.new_empty(*pixels.shape[:3], len(weight))
        _call("convolve", pixels, kernels, bias, result, _scratch(weight.shape[1]), *pixels.shape, len(weight))
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The transposed transforms; by the weight, products in the Winograd domain."""
        x, weight = ctx.saved_tensors
        pixels, of_result = _pixels(x), _pixels(gradient)
        of_pixels = of_weight = None
        if ctx.needs_input_grad[0]:
            kernels, of_pixels = _transformed_kernel(weight, transposed=True), torch.zeros_like(pixels)
            scratch = _scratch(len(weight))
            _call("convolve_transposed", of_result, kernels, of_pixels, scratch, *pixels.shape, len(weight))
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight, memory_format=torch.channels_last)
            scratch = torch.empty(_call("scratch_size_of_gradient", pixels.shape[3], len(weight)))
            in_c_order = of_weight.permute(0, 2, 3, 1)
            _call("kernel_gradient", pixels, of_result, in_c_order, scratch, *pixels.shape, len(weight))
        return (
            None if of_pixels is None else of_pixels.permute(0, 3, 1, 2),
            of_weight,
            of_result.sum(dim=(0, 1, 2)) if ctx.needs_input_grad[2] else None,
        )


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C) without gaps, which is how channels_last memory is."""
    return x.permute(0, 2, 3, 1).contiguous()


def _transformed_kernel(weight: Tensor, transposed: bool) -> Tensor:
    """(K, C, 3, 3) -> (K/16, 36, C, 16), or with K and C exchanged; cached if the kernel is not trained."""
    cached = {} if weight.requires_grad else _transformed_kernels.setdefault(weight, {})
    version, transformed = cached.get(transposed, (None, None))
    if version != weight._version or transformed is None:
        transformed = _transform_kernel(weight.transpose(0, 1) if transposed else weight)
        cached[transposed] = weight._version, transformed
    return transformed


def _transform_kernel(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (K/16, 36, C, 16)."""
    k, c = weight.shape[:2]
    transformed = weight.new_empty(k // VECTOR_WIDTH, 36, c, VECTOR_WIDTH)
    _call("transform_kernel", weight.permute(1, 2, 3, 0).contiguous(), transformed, c, k)
    return transformed


def _scratch(channels: int) -> Tensor:
    return torch.empty(_call("scratch_size", channels))


def _call(name: str, *arguments: Tensor | int) -> int:
    """Call a function of `winograd.c`."""
    library = _library()
    assert library is not None
    return call(library, name, *arguments)


def _library() -> ctypes.CDLL | None:
    return compiled_library(SOURCE)
