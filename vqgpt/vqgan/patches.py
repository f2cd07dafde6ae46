"""Patches: squares of pixels that become channels before the first convolution, and pixels again after the last.

    images (B, C, H, W)  <->  (B, C*patch^2, H/patch, W/patch)

In training the channels are the frequencies of a patch instead, its two-dimensional cosine transform (Ahmed et al.
1974), which for 2 x 2 pixels is that of Haar. The transform is orthogonal, so the network can do the same; but the
optimiser scales the mean of a patch and its edges each for itself, and learns faster. A trained network takes it into
the first and the last convolution (`fold_frequencies`).
Letters: B images, C image channels, N = C*patch^2 channels.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST, LAST = "encoder.conv_in.weight", "decoder.conv_out.weight"
LAST_BIAS = "decoder.conv_out.bias"


def pixels_to_channels(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, H/patch, W/patch): squares of pixels become channels (Shi et al. 2016).

    Inverse of `channels_to_pixels`.
    """
    if patch == 1:
        return images
    return F.pixel_unshuffle(images, patch).contiguous(memory_format=torch.channels_last)


def channels_to_pixels(squares: Tensor, patch: int) -> Tensor:
    """(B, N, h, w) -> (B, C, h*patch, w*patch). Inverse of `pixels_to_channels`."""
    return squares if patch == 1 else F.pixel_shuffle(squares, patch)


def frequencies_of_pixels(image_channels: int, patch: int) -> Tensor:
    """What makes the frequencies of patches of their pixels, both as channels: orthogonal, (N, N) float32."""
    places = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi / patch * (places + 0.5) * places[:, None])
    waves /= waves.norm(dim=1, keepdim=True)
    return torch.kron(torch.eye(image_channels, dtype=torch.float64), torch.kron(waves, waves)).float()


def mixed(channels: Tensor, matrix: Tensor) -> Tensor:
    """(B, N, h, w), in channels_last memory -> the same: a matrix (N, N) times the channels of each place."""
    return F.linear(channels.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)


class Frequencies(nn.Module):
    """Of patches: between their pixels and their frequencies, both as channels (B, N, h, w)."""

    matrix: Tensor

    def __init__(self, image_channels: int, patch: int) -> None:
        super().__init__()
        self.register_buffer("matrix", frequencies_of_pixels(image_channels, patch), persistent=False)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Inverse of `to_pixels`."""
        return mixed(pixels, self.matrix)

    def to_pixels(self, frequencies: Tensor) -> Tensor:
        """Inverse of `of_pixels`."""
        return mixed(frequencies, self.matrix.T)


@torch.no_grad()
def fold_frequencies(weights: Mapping[str, Tensor], encoder: bool, matrix: Tensor) -> dict[str, Tensor]:
    """The weights of a VQ-GAN that takes and gives frequencies -> of one of pixels, which computes the same.

    Without `encoder`, its decoder alone gives frequencies. Inverse of `unfold_frequencies`.
    """
    folded = dict(weights)
    if encoder:
        folded[FIRST] = torch.einsum("onhw,nm->omhw", weights[FIRST], matrix).contiguous()
    folded[LAST] = torch.einsum("nm,nihw->mihw", matrix, weights[LAST]).contiguous()
    folded[LAST_BIAS] = weights[LAST_BIAS] @ matrix
    return folded


def unfold_frequencies(weights: Mapping[str, Tensor], encoder: bool, matrix: Tensor) -> dict[str, Tensor]:
    """Inverse of `fold_frequencies`."""
    return fold_frequencies(weights, encoder, matrix.T)
