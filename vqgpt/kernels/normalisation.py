"""Group normalisation, with or without SiLU after it.

    (B, C, H, W) -> the same shape

In training on a CPU in float32, `normalisation.c` computes both at once, where there is a C compiler: four passes over
an image that stays in a core's cache. One thread computes it, while others may compute other images.
"""

import ctypes
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vqgpt.kernels.build import call, compiled_library

SOURCE = Path(__file__).with_name("normalisation.c")
GROUPS = 32  # of the published VQ-GANs
VECTOR_WIDTH = 8  # channels that the C code takes at once


class Norm(nn.GroupNorm):
    """Group normalisation of C channels, which lie in groups side by side (Wu and He 2018)."""

    def __init__(self, channels: int, silu: bool = False, groups: int = GROUPS) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        trains = torch.is_grad_enabled() and self._suits(x)
        if x.shape[1:].numel() == self.num_groups:
            y = self._of_single_values(x)
        elif trains and (library := compiled_library(SOURCE)):
            return cast(Tensor, _Normalised.apply(x, self.weight, self.bias, self, library))  # type: ignore[no-untyped-call]
        else:
            y = super().forward(x)
        return F.silu(y) if self.silu else y

    def _suits(self, x: Tensor) -> bool:
        """Whether the C code takes it; torch refuses what nothing takes."""
        numbers = (x, self.weight, self.bias)
        channels = x.ndim == 4 and x.numel() > 0 and x.shape[1] == self.num_channels and x.shape[1] % VECTOR_WIDTH == 0
        return channels and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in numbers)

    def _of_single_values(self, x: Tensor) -> Tensor:
        """With one value per group, which is its own mean, the bias is left.

        Torch refuses that of one image; of several, it makes rounding errors 1000 times as large.
        """
        return (x - x) * self.weight[:, None, None] + self.bias[:, None, None]


class _Normalised(torch.autograd.Function):
    """By `normalisation.c`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, library: ctypes.CDLL) -> Tensor:
        """Keeps the mean and the deviation of each group."""
        pixels = x.permute(0, 2, 3, 1).contiguous()  # of channels_last memory: nothing to do
        images, height, width, channels = pixels.shape
        sizes = torch.tensor([images, height * width, channels, norm.num_groups, int(norm.silu)])
        y, (means, scales) = torch.empty_like(pixels), pixels.new_empty(2, images, norm.num_groups)
        call(library, "normalise", sizes, pixels, weight, bias, y, means, scales, torch.tensor(norm.eps))
        ctx.save_for_backward(sizes, pixels, weight, bias, means, scales)
        ctx.library = library
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of the image, of weight and bias."""
        sizes, pixels, weight, bias, means, scales = ctx.saved_tensors
        of_y, of_x = gradient.permute(0, 2, 3, 1).contiguous(), torch.empty_like(pixels)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        saved = (sizes, pixels, weight, bias, means, scales)
        call(ctx.library, "normalise_backward", *saved, of_y, of_x, of_weight, of_bias)
        return of_x.permute(0, 3, 1, 2), of_weight, of_bias, None, None
