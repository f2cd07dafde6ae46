"""How good a VQ-GAN is as a tokenizer: numbers per image, its use of the codebook, and sets of what it makes of images.

    ImageSet, VQGAN  ->  Reconstruction: numbers (N,) by metric, code counts (K,)
    ImageSet, VQGAN  ->  the ImageSet of reconstructions, or of decoded perturbed codes

Several processes share the batches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.data.image_sets import BatchesOfRows, ImageSet, content_sha256
from vqgpt.evaluation.intervals import Estimate, interval
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.runtime.device import gather_to_main, rank, world_size
from vqgpt.tokens.arrays import count_codes, statistics_of_counts
from vqgpt.vqgan.checkpoint import vqgan_sha256
from vqgpt.vqgan.coding import Metric, decode_codes, encode_images, images_per_pass, to_unit_range
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.perceptual import SMALLEST_SIZES, PerceptualLoss

SHARE_OF_NEIGHBOURS = 0.024  # of the codebook: RobustTok takes 100 of 4,096
CODES_AT_ONCE = 1024
MOST_DEAD = 0.1  # share of the codes
MOST_USED = 0.3  # share of one code
WEAK_PSNR_DB = 20.0
LARGEST_GAP_DB = 1.0


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Of the images of a set: a number per image (N,) by metric, and how often each code occurs (K,)."""

    numbers: dict[str, NDArray[np.float64]]
    code_counts: NDArray[np.int64]

    __repr__ = one_line


def measure_reconstruction(
    images: ImageSet, model: VQGAN, metrics: Mapping[str, Metric], precision: str, report: Report
) -> Reconstruction | None:
    """Encode and decode all images, and compare. All processes call it together; the main one gets the result."""
    at_once = images_per_pass(*images.shape[1:])
    parts: list[dict[str, NDArray[np.float64]]] = []
    counts, done = np.zeros(model.config.codebook_size, np.int64), 0
    for batch in images.batches(at_once, first=rank(), step=world_size()):
        codes = encode_images(model, batch[:, None], precision)[:, 0]
        pair = torch.from_numpy(batch), torch.from_numpy(decode_codes(model, codes, precision))
        parts.append({name: metric(*pair).double().numpy() for name, metric in metrics.items()})
        counts += count_codes(codes, len(counts))
        done = min(len(images), done + world_size() * len(batch))
        report(Progress(task=f"reconstruct {images.name}", done=done, total=len(images), unit="images"))
    found = gather_to_main((parts, counts))
    if rank() > 0:
        return None
    by_process = [of_process for of_process, _ in found]
    turns = range(max(map(len, by_process)))
    in_order = [of_process[turn] for turn in turns for of_process in by_process if turn < len(of_process)]
    return Reconstruction(
        numbers={name: np.concatenate([numbers[name] for numbers in in_order]) for name in metrics},
        code_counts=np.sum([of_process for _, of_process in found], axis=0),
    )


def lpips_metric(loss: PerceptualLoss, device: torch.device) -> Metric:
    """LPIPS (Zhang et al. 2018) of pairs of images (n, C, H, W) uint8, (n,)."""

    @torch.no_grad()
    def lpips(images: Tensor, reconstructions: Tensor) -> Tensor:
        return loss(to_unit_range(images.to(device)), to_unit_range(reconstructions.to(device))).cpu()

    return lpips


def fits_lpips(images: ImageSet) -> bool:
    """True if images are large enough for VGG16."""
    return min(images.shape[1:]) >= SMALLEST_SIZES["lpips"]


def reconstructed(images: ImageSet, model: VQGAN, precision: str) -> ImageSet:
    """The reconstructions of a set."""
    return _decoded(images, model, precision, "reconstructed", {}, lambda codes, rows: codes)


def perturbed(images: ImageSet, model: VQGAN, share: float, seed: int, precision: str) -> ImageSet:
    """The decoded perturbed codes of a set: what pFID is measured on (Qiu et al. 2025, arXiv:2503.08354, section 3).

    Each code of an image becomes, with a probability of `share`, one of the nearest 2.4 % of the other codes, drawn
    evenly: the errors that sampling makes. The draw is a function of the seed and of the image's number alone.
    """
    neighbours = nearest_codes_of(model.quantize.vectors().detach())

    def perturb(codes: NDArray[np.int64], rows: list[int]) -> NDArray[np.int64]:
        return np.stack(
            [
                perturbed_codes(grid, neighbours, share, np.random.default_rng([seed, row]))
                for grid, row in zip(codes, rows, strict=True)
            ]
        )

    about = {"share": share, "seed": seed, "neighbours": neighbours.shape[1]}
    return _decoded(images, model, precision, "perturbed", about, perturb)


def _decoded(images: ImageSet, model: VQGAN, precision: str, what: str, about: dict[str, Any], change: Any) -> ImageSet:
    def read(batches: BatchesOfRows) -> Iterator[NDArray[np.uint8]]:
        at_once = images_per_pass(*images.shape[1:])
        for rows, batch in zip(batches, images.read(batches), strict=True):
            made = []
            for start in range(0, len(rows), at_once):
                here = slice(start, start + at_once)
                codes = encode_images(model, batch[here, None], precision)[:, 0]
                made.append(decode_codes(model, change(codes, list(rows[here])), precision))
            yield np.concatenate(made)

    of = {"images": images.sha256, "tokenizer": vqgan_sha256(model), "precision": precision, what: about}
    stem = images.features_stem
    return replace(
        images,
        name=f"{what} {images.name}",
        sha256=content_sha256(of),
        features_stem=stem and stem.with_name(f"{stem.name}-{what}"),
        read=read,
    )


def nearest_codes_of(vectors: Tensor) -> NDArray[np.int64]:
    """For each of K codes the nearest 2.4 % of the others, at least one, (K, n)."""
    vectors = vectors.cpu().double()
    count = min(max(1, round(SHARE_OF_NEIGHBOURS * len(vectors))), max(1, len(vectors) - 1))
    found = []
    for rows in torch.arange(len(vectors)).split(CODES_AT_ONCE):
        distances = torch.cdist(vectors[rows], vectors)
        distances[torch.arange(len(rows)), rows] = torch.inf
        found.append(distances.topk(count, dim=1, largest=False).indices)
    return torch.cat(found).numpy()


def perturbed_codes(
    codes: NDArray[np.int64], neighbours: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Codes of any shape, of which a share is replaced by neighbours (K, n)."""
    chosen = rng.random(codes.shape) < share
    others = neighbours[codes, rng.integers(neighbours.shape[1], size=codes.shape)]
    return np.where(chosen, others, codes)


def pixel_figures(found: Reconstruction, seed: int) -> dict[str, Any]:
    """The mean of each metric with its interval, and the use of the codebook."""
    usage, codes = statistics_of_counts(found.code_counts), len(found.code_counts)
    means = {}
    for name, numbers in found.numbers.items():
        low, high = interval(Estimate.mean_of(numbers), seed)
        means[name] = {"value": float(numbers.mean()), "low": low, "high": high, "worst": _worst(name, numbers)}
    return {
        "metrics": means,
        "used_codes": usage.used_codes,
        "dead_codes": codes - usage.used_codes,
        "perplexity": usage.perplexity,
        "share_of_the_most_used_code": float(found.code_counts.max() / max(1, found.code_counts.sum())),
    }


def _worst(name: str, numbers: NDArray[np.float64]) -> float:
    return float(numbers.max() if name == "lpips" else numbers.min())


def pixel_figures_by_class(found: Reconstruction, labels: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Any]:
    """The mean of each metric over the images of each class; None for a class without images."""
    rows = {}
    for number, name in enumerate(names):
        of_class = labels == number
        means = {
            key: float(values[of_class].mean()) if of_class.any() else None for key, values in found.numbers.items()
        }
        rows[name] = {"images": int(of_class.sum()), **means}
    return rows


def findings_of_reconstructions(splits: Mapping[str, Mapping[str, Any]], held_out: str) -> Iterator[str]:
    """What looks wrong, in plain sentences, from the figures of each split."""
    figures = splits[held_out]
    codes = figures["used_codes"] + figures["dead_codes"]
    if figures["dead_codes"] > MOST_DEAD * codes:
        yield f"{figures['dead_codes']:,} of {codes:,} codes are dead: no image of {held_out} uses them"
    if figures["share_of_the_most_used_code"] > MOST_USED:
        share = figures["share_of_the_most_used_code"]
        yield f"one code stands for {share:.0%} of all cells of {held_out}: flat regions, or a collapsed codebook"
    psnr = figures["metrics"]["psnr_db"]["value"]
    if psnr < WEAK_PSNR_DB:
        yield f"reconstructions are poor: {psnr:.1f} dB PSNR on {held_out}; samples cannot be better than these"
    if "train" in splits and splits["train"]["metrics"]["psnr_db"]["value"] - psnr > LARGEST_GAP_DB:
        train = splits["train"]["metrics"]["psnr_db"]["value"]
        yield f"the tokenizer has overfitted: {train:.1f} dB PSNR on training images, {psnr:.1f} on {held_out}"
