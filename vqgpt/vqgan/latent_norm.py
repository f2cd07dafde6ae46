"""Normalisation of latents: what the codebook sees has mean 0 and variance 1 in each channel, in training.

    latents (B, D, h, w) float32  ->  the same shape

So every channel counts as much in the distance to a code. It is batch normalisation (Ioffe and Szegedy 2015) without
parameters, over the whole batch of all ranks, gradients of the statistics included: with constants in their place,
MNIST lost PSNR. A trained network takes the running statistics into the convolution before (`fold_latent_norm`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqgpt.runtime.device import sum_over_ranks

MOMENTUM = 0.05  # of the running statistics
EPSILON = 1e-5


class LatentNorm(nn.Module):
    """Batch statistics in training, running ones else."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.last: list[Tensor] = []  # the statistics of the last batch in training

    def forward(self, latents: Tensor, counted: bool = True) -> Tensor:
        """(B, D, h, w) -> the same shape. A rank whose latents are another's too has `counted` false.

        In training all ranks call it together, and `follow` when the step is taken.
        """
        if self.training:
            normalised, *self.last = _Normalised.apply(latents, counted)  # type: ignore[no-untyped-call]
            return normalised
        return (latents - _of_channels(self.mean)) * _of_channels((self.variance + EPSILON).rsqrt())

    @torch.no_grad()
    def follow(self) -> None:
        """Move the running statistics towards those of the last batch."""
        for running, last in zip((self.mean, self.variance), self.last, strict=True):
            running.lerp_(last, MOMENTUM)

    @torch.no_grad()
    def start(self, latents: Tensor) -> None:
        """Take the statistics of these latents (B, D, h, w)."""
        self.mean.copy_(latents.mean(dim=(0, 2, 3)))
        self.variance.copy_(latents.var(dim=(0, 2, 3), unbiased=False))


class _Normalised(torch.autograd.Function):
    """By the statistics of the batch, which come with the result."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, counted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Keeps what is normalised, and the deviation of each channel."""
        mean = _mean(latents, counted)
        centred = latents - _of_channels(mean)
        variance = _mean(centred.square(), counted)
        scale = (variance + EPSILON).rsqrt()
        normalised = centred * _of_channels(scale)
        ctx.save_for_backward(normalised, scale)
        ctx.counted = counted
        ctx.mark_non_differentiable(mean, variance)
        return normalised, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor) -> tuple[Tensor, None]:
        """What remains of a gradient without its part along the mean and along the scale of each channel."""
        normalised, scale = ctx.saved_tensors
        along_mean = _mean(gradient, ctx.counted)
        along_scale = _mean(gradient * normalised, ctx.counted)
        rest = gradient - _of_channels(along_mean) - normalised * _of_channels(along_scale)
        return rest * _of_channels(scale), None


def _mean(values: Tensor, counted: bool) -> Tensor:
    """Of each channel of (B, D, h, w) over all ranks, (D,)."""
    sums = values.sum(dim=(0, 2, 3)) * counted
    number = values.new_full((1,), values[:, 0].numel() * counted)
    total = sum_over_ranks(torch.cat([sums, number]))
    return total[:-1] / total[-1].clamp(min=1)


def _of_channels(values: Tensor) -> Tensor:
    return values[:, None, None]


@torch.no_grad()
def fold_latent_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a VQ-GAN without the normalisation, that has the same latents: its `quant_conv` does it."""
    mean, scale = weights["latent_norm.mean"], (weights["latent_norm.variance"] + EPSILON).rsqrt()
    folded = {name: tensor for name, tensor in weights.items() if not name.startswith("latent_norm.")}
    folded["quant_conv.weight"] = folded["quant_conv.weight"] * scale[:, None, None, None]
    folded["quant_conv.bias"] = (folded["quant_conv.bias"] - mean) * scale
    return folded
