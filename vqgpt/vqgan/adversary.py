"""The adversary that a VQ-GAN is trained against: a network that judges patches, and both sides of its loss.

    PatchDiscriminator  images (B, C, H, W) float in [-1, 1]  ->  logits (B, 1, h, w), above 0 for a real patch

Knows no VQ-GAN.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.errors import InputError

BASE_CHANNELS = 64
MOST_LAYERS = 3
SMALLEST_SIZE = 6  # pixels
SMALLEST_NORM = 1e-4
LARGEST_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004, section 6.1.2) with batch normalisation.

    Three halvings as there, fewer for images below 32 pixels, of which nothing would be left.
    Raises InputError below 6 pixels.
    """

    def __init__(self, image_channels: int, size: int) -> None:
        super().__init__()
        if size < SMALLEST_SIZE:
            raise InputError(
                f"images of {size} pixels are too small for the discriminator",
                f"use {SMALLEST_SIZE} or more, or --disc-weight 0 for none",
            )
        halvings = max(1, min(MOST_LAYERS, int(math.log2(size)) - 2))
        widths = [BASE_CHANNELS * 2**index for index in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index in range(1, len(widths)):
            stride = 2 if index < halvings else 1
            layers += [
                nn.Conv2d(widths[index - 1], widths[index], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[index]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, h, w) float32."""
        return self.main(images).float()


class Judgement(NamedTuple):
    """What a discriminator finds of a batch: both losses, and the gradient of the first by the reconstructions."""

    adversarial_loss: Tensor
    discriminator_loss: Tensor
    gradient: Tensor


def judge(discriminator: PatchDiscriminator, images: Tensor, reconstructions: Tensor) -> Judgement:
    """Two times (B, C, H, W), the whole batch at once, over which the discriminator normalises."""
    reconstructions = reconstructions.detach().requires_grad_()
    fake_logits = discriminator(reconstructions)
    (gradient,) = torch.autograd.grad(-fake_logits.mean(), reconstructions)
    loss = hinge_loss(discriminator(images), discriminator(reconstructions.detach()))
    return Judgement(-fake_logits.detach().mean(), loss, gradient)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the discriminator minimises (Lim and Ye 2017, arXiv:1705.02894): mean of both hinges, a scalar."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """The weight of the adversarial term, a scalar (Esser et al. 2021, eq. 7).

    It makes the adversarial gradient as long as that of the reconstruction loss, both at the decoder's last layer.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + SMALLEST_NORM)
    return ratio.clamp(0.0, LARGEST_WEIGHT)
