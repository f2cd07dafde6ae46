"""How well a VQ-GAN reconstructs images: one row per metric, and how it uses its codebook.

    images (N, C, H, W) uint8, their reconstructions, how often each code occurs (K,) -> figures by name

A metric is a function (images, reconstructions) -> a number per image (N,), and its row in `METRICS`.
"""

from typing import Any

from torch import Tensor

from vqgpt.vqgan.coding import TRAINING_METRICS, Metric, figures_of, likeness

METRICS: dict[str, Metric] = {**TRAINING_METRICS}


def reconstruction_figures(
    images: Tensor, reconstructions: Tensor, code_counts: Tensor, codebook: Tensor
) -> dict[str, Any]:
    """The mean of each metric; of the codes (K, D) how many are in use, their perplexity and rank, and more."""
    return {
        **figures_of([likeness(images, reconstructions, METRICS)], code_counts, codebook),
        "codebook_size": len(code_counts),
        "share_of_the_most_used_code": float(code_counts.max() / code_counts.sum()),
    }
