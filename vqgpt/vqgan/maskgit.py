"""Encoder and decoder of MaskGIT's VQ-GAN (Chang et al. 2022, arXiv:2202.04200), which RAR and TiTok use too.

    images (B, C, H, W) in [-1, 1]  --Encoder-->  latents (B, z, h, w)  --Decoder-->  images (B, C, H, W), not clamped

It has no attention, and no convolutions around the codebook. Residual blocks have no bias; where their width changes,
their input is dropped. Inside, pixels are in [0, 1]. Module names are those of the PyTorch ports of open-muse and
1d-tokenizer, so that their checkpoints need no renaming. Letters as in `model.py`, which it must not import.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.kernels.normalisation import Norm
from vqgpt.vqgan.architecture import VQGANConfig


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a skip. Where the width changes, a 1x1 convolution of their output is the skip."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = Norm(width_in, silu=True)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.norm2 = Norm(width_out, silu=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(width_out, width_out, 1, bias=False) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, h, w) -> (B, width_out, h, w)."""
        y = self.conv1(self.norm1(x))
        y = self.conv2(self.dropout(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class Level(nn.Module):
    """The blocks of one resolution, and in the decoder what doubles it."""

    def __init__(self, widths: list[int], dropout: float, upsample: bool = False) -> None:
        super().__init__()
        self.block = _blocks(widths, dropout)
        self.upsample_conv = nn.Conv2d(widths[-1], widths[-1], 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Residual blocks, then, if there is one, the upsampling: nearest neighbour and a 3x3 convolution."""
        x = self.block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _blocks(widths: list[int], dropout: float) -> nn.Sequential:
    return nn.Sequential(*(ResnetBlock(a, b, dropout) for a, b in pairwise(widths)))


class Encoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> latents (B, z_channels, h, w). Between levels, 2x2 pixels are averaged."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, blocks = [config.channels * mult for mult in config.ch_mult], config.num_res_blocks
        self.conv_in = nn.Conv2d(config.image_channels, config.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level([width_in] + [width] * blocks, config.dropout)
            for width_in, width in pairwise([config.channels, *widths])
        )
        self.mid = _blocks([widths[-1]] * (blocks + 1), config.dropout)
        self.norm_out = Norm(widths[-1], silu=True)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, z, h, w)."""
        x = self.conv_in((images + 1) / 2)
        for index, level in enumerate(self.down):
            x = level(x if index == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) -> images (B, C, H, W). `up[0]` is the full resolution and runs last."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, blocks = [config.channels * mult for mult in config.ch_mult], config.num_res_blocks
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _blocks([widths[-1]] * (blocks + 1), config.dropout)
        self.up = nn.ModuleList(
            Level([width_in] + [width] * blocks, config.dropout, upsample=level > 0)
            for level, (width, width_in) in enumerate(pairwise([*widths, widths[-1]]))
        )
        self.norm_out = Norm(widths[0], silu=True)
        self.conv_out = nn.Conv2d(widths[0], config.image_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, C, H, W), not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x)) * 2 - 1
