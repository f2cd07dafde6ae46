"""How well a VQ-GAN reconstructs, and how it uses its codebook."""

import torch
from torch import Tensor

from vqgpt.code_statistics import code_statistics
from vqgpt.pixels import to_uint8, to_unit_range
from vqgpt.vqgan.model import VQGAN

IMAGES_PER_PASS = 256


@torch.no_grad()
def reconstruct(model: VQGAN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 -> their reconstructions, the same shape, and codes (N, h, w) int64. Sets eval mode."""
    model.eval()
    codes = torch.cat([model.encode(to_unit_range(batch)) for batch in images.split(IMAGES_PER_PASS)])
    return torch.cat([to_uint8(model.decode(batch)) for batch in codes.split(IMAGES_PER_PASS)]), codes


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of (N, C, H, W) uint8 images, in dB, (N,); an equal image counts as 100 dB."""
    error = (images.float() - reconstructions.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 / 1e10))


def reconstruction_figures(model: VQGAN, images: Tensor) -> dict[str, float]:
    """Mean PSNR in dB, codes in use and perplexity over (N, C, H, W) uint8 images."""
    reconstructions, codes = reconstruct(model, images)
    usage = code_statistics(codes.cpu().numpy(), model.config.options.n_embed)
    return {
        "psnr_db": float(psnr(images, reconstructions).mean()),
        "used_codes": usage.used_codes,
        "perplexity": usage.perplexity,
    }
