"""The VQ-GAN of Esser et al. 2021 (arXiv:2012.09841): images <-> grids of codebook indices.

    images (B, C, H, W) float in [-1, 1]  --encode-->  codes (B, h, w) int64 in 0..K-1  --decode-->  images

Module names are those of taming-transformers' VQModel, so that its checkpoints need no renaming.
Letters: B batch, C image channels, H W pixels, h w grid, D code dimension, K codebook size.
"""

from itertools import pairwise
from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.kernels.normalisation import Norm
from vqgpt.vqgan import maskgit
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.codebook import Codebook
from vqgpt.vqgan.latent_norm import LatentNorm
from vqgpt.vqgan.patches import Frequencies, channels_to_pixels, pixels_to_channels

MOST_POSITIONS = 1024  # of which an image's attention weights are kept in training


class Reconstruction(NamedTuple):
    """What one pass through the whole VQ-GAN gives: (B, C, H, W), twice (B, D, h, w), and codes (B, h, w)."""

    images: Tensor
    latents: Tensor
    quantized: Tensor
    codes: Tensor


class Quantization(NamedTuple):
    """Latents and what stands for them, (B, D, h, w), and codes (B, h, w).

    `straight_through` has the values of `quantized`, and its gradient goes to `latents` as it is.
    """

    latents: Tensor
    quantized: Tensor
    straight_through: Tensor
    codes: Tensor


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a skip; a 1x1 convolution on the skip where the width changes."""

    def __init__(self, width_in: int, width_out: int, config: VQGANConfig) -> None:
        super().__init__()
        self.norm1 = Norm(width_in, silu=True, groups=config.norm_groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = Norm(width_out, silu=True, groups=config.norm_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, h, w) -> (B, width_out, h, w)."""
        y = self.conv1(self.norm1(x))
        y = self.conv2(self.dropout(self.norm2(y)))
        return self.nin_shortcut(x) + y


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map, with a skip."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = Norm(width, groups=norm_groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        rows = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, h*w, width)
        q, k, v = (_project(rows, projection) for projection in (self.q, self.k, self.v))
        seen = _project(_attend(q, k, v), self.proj_out)
        return x + seen.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class LinearAttnBlock(nn.Module):
    """Single-head linear attention (Shen et al. 2018, arXiv:1812.01243) of latent-diffusion: no norm, no skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.to_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)  # (B, width, h*w)
        seen = v @ k.softmax(dim=2).mT @ q
        return self.to_out(seen.unflatten(2, x.shape[2:]))


def attention_block(width: int, config: VQGANConfig) -> AttnBlock | LinearAttnBlock:
    """The attention of this network."""
    match config.attn_type:
        case "vanilla":
            return AttnBlock(width, config.norm_groups)
        case "linear":
            return LinearAttnBlock(width)
        case _:
            assert_never(config.attn_type)


def _project(rows: Tensor, projection: nn.Conv2d) -> Tensor:
    """A 1x1 convolution, as the matrix product that it is."""
    return F.linear(rows, projection.weight.flatten(1), projection.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head (B, h*w, width). In training on a CPU products beat the flash kernel."""
    if q.is_cpu and torch.is_grad_enabled() and q.shape[1] <= MOST_POSITIONS:
        return torch.bmm(torch.bmm(q * q.shape[2] ** -0.5, k.mT).softmax(-1), v)
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


class Downsample(nn.Module):
    """Halve both sides: pad right and bottom by one pixel, then a 3x3 convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; `resample` is named `downsample` or `upsample`, or is absent."""

    def __init__(self, widths: list[int], config: VQGANConfig, attention: bool, **resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, config) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(attention_block(width, config) for width in widths[1:] if attention)
        self.resample_name = next(iter(resample), None)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Residual blocks, each followed by its attention where there is any, then the change of resolution."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.get_submodule(self.resample_name)(x) if self.resample_name else x


class Middle(nn.Module):
    """Residual block, attention where there is any, residual block, at the lowest resolution."""

    def __init__(self, width: int, config: VQGANConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, config)
        self.attn_1 = attention_block(width, config) if config.mid_attention else nn.Identity()
        self.block_2 = ResnetBlock(width, width, config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images (B, C, H, W) -> latents (B, z_channels, h, w), or 2 x z_channels with `double_z`."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.ch_mult]
        self.patch = config.patch
        self.frequencies: Frequencies | None = None  # only while the network is trained
        self.conv_in = nn.Conv2d(config.image_channels * config.patch**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (width_in, width) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            smaller = Downsample(width) if config.resamp_with_conv else nn.AvgPool2d(2)
            resample = {"downsample": smaller} if level < len(widths) - 1 else {}
            attention = level in config.attn_levels
            self.down.append(Level([width_in] + [width] * config.num_res_blocks, config, attention, **resample))
        self.mid = Middle(widths[-1], config)
        self.norm_out = Norm(widths[-1], silu=True, groups=config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], encoder_channels(config), 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, z, h, w)."""
        channels = pixels_to_channels(images, self.patch)
        x = self.conv_in(self.frequencies.of_pixels(channels) if self.frequencies else channels)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) -> images (B, C, H, W). `up[0]` is the full resolution and runs last."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList()
        for level, (width, width_in) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            larger = Upsample(width) if config.resamp_with_conv else nn.Upsample(scale_factor=2.0)
            resample = {"upsample": larger} if level > 0 else {}
            attention = level in config.attn_levels
            widths_of_level = [width_in] + [width] * (config.num_res_blocks + 1)
            self.up.append(Level(widths_of_level, config, attention, **resample))
        self.norm_out = Norm(widths[0], silu=True, groups=config.norm_groups)
        self.patch, self.tanh_out = config.patch, config.tanh_out
        self.frequencies: Frequencies | None = None  # only while the network is trained
        self.conv_out = nn.Conv2d(widths[0], config.image_channels * config.patch**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, C, H, W), not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        channels = self.conv_out(self.norm_out(x))
        channels = self.frequencies.to_pixels(channels) if self.frequencies else channels
        images = channels_to_pixels(channels, self.patch)
        return images.tanh() if self.tanh_out else images


class VQGAN(nn.Module):
    """Encoder, codebook and decoder. `encode` and `decode` are inverses up to what the codebook loses."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        taming = config.network == "taming"
        self.encoder: Encoder | maskgit.Encoder = Encoder(config) if taming else maskgit.Encoder(config)
        self.decoder: Decoder | maskgit.Decoder = Decoder(config) if taming else maskgit.Decoder(config)
        self.quantize = Codebook(config)
        self.latent_norm: LatentNorm | None = None  # only while the network is trained
        self.quant_conv = nn.Conv2d(encoder_channels(config), config.embed_dim, 1) if taming else nn.Identity()
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1) if taming else nn.Identity()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encoder_latents(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, D, h, w) float32, before `latent_norm`."""
        return self.quant_conv(self.encoder(images.to(memory_format=torch.channels_last))).float()

    def latents(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> what the codebook quantises, (B, D, h, w) float32."""
        latents = self.encoder_latents(images)
        return latents if self.latent_norm is None else self.latent_norm(latents)

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> codes (B, h, w) int64."""
        return self.quantize.latents_to_codes(self.latents(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> images (B, C, H, W), clamped to [-1, 1]."""
        return self.decode_latents(self.quantize.codes_to_latents(codes)).clamp(-1, 1)

    def decode_latents(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> images (B, C, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(quantized)).float()

    def quantize_latents(self, latents: Tensor) -> Quantization:
        """What `latents` gives (B, D, h, w) -> the codes, and what they stand for."""
        latents = self.quantize.comparable(latents)
        codes = self.quantize.latents_to_codes(latents)
        quantized = self.quantize.codes_to_latents(codes)
        straight_through = latents + (quantized - latents).detach()
        return Quantization(latents, quantized, straight_through, codes)

    def forward(self, images: Tensor) -> Reconstruction:
        """(B, C, H, W) in [-1, 1] -> reconstruction; the gradient passes straight through the codebook."""
        out = self.quantize_latents(self.latents(images))
        return Reconstruction(self.decode_latents(out.straight_through), out.latents, out.quantized, out.codes)


def encoder_channels(config: VQGANConfig) -> int:
    """Channels of what the encoder emits."""
    return config.z_channels * (2 if config.double_z else 1)
