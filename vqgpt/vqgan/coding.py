"""Images -> codes -> images, with a trained VQ-GAN, and how near they come.

encode_images    (n, V, C, H, W) uint8, V views of each image  ->  (n, V, h, w) int64
decode_codes     (n, h, w)                                     ->  (n, C, H, W) uint8
reconstruct      (N, C, H, W) uint8 tensor                     ->  the same shape, and codes
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vqgpt.progress import Progress, Report
from vqgpt.runtime.device import autocast
from vqgpt.tokens.arrays import codebook_rank, statistics_of_counts
from vqgpt.vqgan.model import VQGAN

PIXELS_PER_PASS = 2**20
MOST_IMAGES_PER_PASS = 256
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5  # pixels
IMAGES_PER_MEASURE = 256  # float images at once

Metric = Callable[[Tensor, Tensor], Tensor]  # images and reconstructions -> a number per image (N,)


def images_per_pass(height: int, width: int) -> int:
    """How many images of this size a network takes at once where nothing is to be learnt: few of the large ones."""
    return max(1, min(MOST_IMAGES_PER_PASS, PIXELS_PER_PASS // (height * width)))


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1. Inverse of `to_uint8`."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float -1..1 -> uint8 0..255, rounded. Inverse of `to_unit_range`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def encode_images(model: VQGAN, images: NDArray[np.uint8], precision: str) -> NDArray[np.int64]:
    """Images (n, V, C, H, W) uint8 -> codes (n, V, h, w) int64, in one pass. Inverse of `decode_codes`."""
    device = model.quantize.embedding.weight.device
    views = torch.from_numpy(images).to(device).flatten(0, 1)
    with autocast(device, precision):
        codes = model.encode(to_unit_range(views))
    return codes.view(*images.shape[:2], *codes.shape[1:]).cpu().numpy()


@torch.no_grad()
def decode_codes(model: VQGAN, codes: NDArray[Any], precision: str) -> NDArray[np.uint8]:
    """Codes (n, h, w) -> images (n, C, H, W) uint8, in one pass. Inverse of `encode_images`, but for what is lost."""
    device = model.quantize.embedding.weight.device
    with autocast(device, precision):
        return to_uint8(model.decode(torch.from_numpy(codes.astype(np.int64)).to(device))).cpu().numpy()


def decode_in_passes(model: VQGAN, codes: NDArray[Any], precision: str, report: Report) -> NDArray[np.uint8]:
    """Codes (N, h, w) -> images (N, C, H, W) uint8, all of them in memory."""
    at_once = images_per_pass(*(side * model.config.downsampling for side in codes.shape[1:]))
    batches = (codes[start : start + at_once] for start in range(0, len(codes), at_once))
    return np.concatenate(list(decode_batches(model, batches, len(codes), precision, report)))


def decode_batches(
    model: VQGAN, batches: Iterable[NDArray[Any]], total: int, precision: str, report: Report
) -> Iterator[NDArray[np.uint8]]:
    """The images (n, C, H, W) of each batch of codes (n, h, w), of `total` in all."""
    done = 0
    for codes in batches:
        yield decode_codes(model, codes, precision)
        done += len(codes)
        report(Progress(task="render", done=done, total=total, unit="images"))


@torch.no_grad()
def reconstruct(model: VQGAN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 -> their reconstructions, the same shape, and codes (N, h, w) int64. Sets eval mode."""
    model.eval()
    at_once = images_per_pass(*images.shape[2:])
    codes = torch.cat([model.encode(to_unit_range(batch)) for batch in images.split(at_once)])
    return torch.cat([to_uint8(model.decode(batch)) for batch in codes.split(at_once)]), codes


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of (N, C, H, W) uint8 images, in dB, (N,); an equal image counts as 100 dB."""
    error = (images.float() - reconstructions.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 / 1e10))


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity of each of (N, C, H, W) uint8 images, (N,), at most 1 (Wang et al. 2004, eq. 13).

    Means over channels and over the positions at which the Gaussian window, 11 x 11 with sigma 1.5, lies inside; the
    window is smaller for images below 11 pixels.
    """
    side = min(SSIM_WINDOW, *images.shape[2:])
    offsets = torch.arange(side, device=images.device) - (side - 1) / 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = (line[:, None] * line[None, :] / line.sum() ** 2)[None, None]

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], window)

    results = []
    at_once = images_per_pass(*images.shape[2:])
    for x, y in zip(images.split(at_once), reconstructions.split(at_once), strict=True):
        x, y = x.float(), y.float()
        mean_x, mean_y = local_mean(x), local_mean(y)
        variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
        covariance = local_mean(x * y) - mean_x * mean_y
        small, small_variance = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        likeness = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
        structure = (2 * covariance + small_variance) / (variances + small_variance)
        results.append((likeness * structure).flatten(1).mean(dim=1).view(len(x), -1).mean(dim=1))
    return torch.cat(results)


def likeness_captions(images: Tensor, reconstructions: Tensor) -> list[str]:
    """PSNR in dB and SSIM of each of (N, C, H, W) uint8 images, as a caption: "21.3 dB 0.87"."""
    pairs = zip(psnr(images, reconstructions).tolist(), ssim(images, reconstructions).tolist(), strict=True)
    return [f"{decibel:.1f} dB {likeness:.2f}" for decibel, likeness in pairs]


TRAINING_METRICS: dict[str, Metric] = {"psnr_db": psnr, "ssim": ssim}


def likeness(
    images: Tensor, reconstructions: Tensor, metrics: Mapping[str, Metric] = TRAINING_METRICS
) -> dict[str, Tensor]:
    """Each metric of (N, C, H, W) uint8 images, (N,). The float images of one pass at a time are in memory."""
    pairs = list(zip(images.split(IMAGES_PER_MEASURE), reconstructions.split(IMAGES_PER_MEASURE), strict=True))
    return {name: torch.cat([metric(*pair) for pair in pairs]) for name, metric in metrics.items()}


def figures_of(measured: Sequence[Mapping[str, Tensor]], code_counts: Tensor, codebook: Tensor) -> dict[str, float]:
    """The mean of each metric over all passes of images, codes in use, their perplexity and rank.

    `code_counts` (K,) over all of them, `codebook` (K, D).
    """
    figures = {name: float(torch.cat([each[name] for each in measured]).mean()) for name in measured[0]}
    counts = code_counts.cpu().numpy()
    usage, rank = statistics_of_counts(counts), codebook_rank(codebook.detach().cpu().numpy(), counts)
    return {**figures, "used_codes": usage.used_codes, "perplexity": usage.perplexity, "codebook_rank": rank}
