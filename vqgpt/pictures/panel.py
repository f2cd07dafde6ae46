"""The picture of how a VQ-GAN does: originals above reconstructions with their likeness, and the codebook's use."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vqgpt.pictures.sheet import below, comparison_sheet, histogram, png_bytes, to_displayable
from vqgpt.tokens.statistics import statistics_of_counts


def reconstruction_panel(
    originals: Tensor,
    reconstructions: Tensor,
    captions: Sequence[str],
    code_counts: Tensor,
    seed: int,
    configuration: Mapping[str, Any],
) -> bytes:
    """A PNG file. Images (n, C, H, W) uint8, a caption each; `code_counts` (K,) over all held-out images.

    `seed` fixes the projection of images of more than 3 channels.
    """
    shown, decoded = (to_displayable(images.cpu().numpy(), seed) for images in (originals, reconstructions))
    sheet = comparison_sheet(shown, decoded, captions)
    counts = code_counts.cpu().numpy()
    usage = statistics_of_counts(counts)
    title = f"{usage.used_codes} of {len(counts)} codes in use, perplexity {usage.perplexity:.1f}; most used first"
    return png_bytes(below(sheet, histogram(np.sort(counts)[::-1], title, sheet.width)), configuration)
