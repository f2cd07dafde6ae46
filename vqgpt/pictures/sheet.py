"""Contact sheets and panels: images (N, C, H, W) uint8 -> one PNG. Imports numpy and PIL; must not import torch."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vqgpt.tokens.statistics import statistics_of_counts

MARGIN = 4
TEXT_HEIGHT = 14
HISTOGRAM_HEIGHT = 80
SHORTEST_SIDE = 64  # pixels on the sheet; smaller images are enlarged by a whole factor


def to_pil(image: NDArray[np.uint8]) -> Image.Image:
    """(C, H, W) uint8, grey or RGB -> a PIL image."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def to_displayable(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """(N, C, H, W) -> (N, 3, H, W) where C is above 3, through a random projection that the seed fixes; else as is.

    Brought to 0..255 over all the images, as taming-transformers shows segmentation maps.
    """
    channels = images.shape[1]
    if channels <= 3:
        return images
    projection = np.random.default_rng(seed).standard_normal((3, channels))
    mixed = np.einsum("oc,nchw->nohw", projection, images.astype(np.float64))
    low, high = mixed.min(), mixed.max()
    return ((mixed - low) / max(1e-9, high - low) * 255).round().astype(np.uint8)


def to_rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, C, H, W), grey or RGB -> (N, H, W, 3), as most tools hold images."""
    return np.ascontiguousarray(np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1))


def png_bytes(picture: Image.Image, configuration: Mapping[str, Any]) -> bytes:
    """The picture as a PNG file that carries the configuration that made it, as JSON, in the text field `vqgpt`."""
    about = PngInfo()
    about.add_text("vqgpt", json.dumps(configuration))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=about)
    return buffer.getvalue()


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> Image.Image:
    """A grid of (N, C, H, W) uint8 images, row by row, each with its caption above it ("" for none)."""
    scale = max(1, math.ceil(SHORTEST_SIDE / min(images.shape[2:])))
    height, width = images.shape[2] * scale, images.shape[3] * scale
    text_height = TEXT_HEIGHT if any(captions) else 0
    cell = (width + MARGIN, height + text_height + MARGIN)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_HEIGHT - 3)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = MARGIN + (index % columns) * cell[0]
        top = MARGIN + (index // columns) * cell[1]
        pen.text((left, top - 2), _fitted(caption, font, width), fill="black", font=font)
        sheet.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (left, top + text_height))
    return sheet


def _fitted(caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while caption and font.getlength(caption) > width:
        caption = caption[:-1]
    return caption


def comparison_sheet(
    originals: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8],
    captions: Sequence[str],
    columns: int = 8,
) -> Image.Image:
    """Originals (N, C, H, W) uint8, each row of them above their reconstructions, which have the captions."""
    columns = min(columns, len(originals))
    images, texts = [], []
    for start in range(0, len(originals), columns):
        blanks = columns - len(originals[start : start + columns])
        for group, names in ((originals, [""] * len(originals)), (reconstructions, list(captions))):
            images += [*group[start : start + columns], *[np.full_like(originals[0], 255)] * blanks]
            texts += names[start : start + columns] + [""] * blanks
    return contact_sheet(np.stack(images), texts, columns)


def histogram(counts: NDArray[np.integer[Any]], title: str, width: int) -> Image.Image:
    """A bar for each of `counts` (K,), in their order, under a title; neighbours share a bar where they must."""
    chart = Image.new("RGB", (width, HISTOGRAM_HEIGHT + TEXT_HEIGHT + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(chart)
    pen.text((MARGIN, 0), title, fill="black", font=ImageFont.load_default(TEXT_HEIGHT - 3))
    bars = np.array_split(counts, min(len(counts), width - 2 * MARGIN))
    heights = np.array([bar.mean() for bar in bars])
    heights = heights / max(1e-9, heights.max()) * HISTOGRAM_HEIGHT
    edges = MARGIN + np.linspace(0, width - 2 * MARGIN, len(bars) + 1)
    bottom = chart.height - MARGIN
    for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
        if height > 0:
            pen.rectangle((left, bottom - max(1, height), max(left, right - 1), bottom), fill="steelblue")
    return chart


def below(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """One picture above another."""
    both = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both


def reconstruction_panel(
    originals: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8],
    captions: Sequence[str],
    code_counts: NDArray[np.integer[Any]],
    seed: int,
    configuration: Mapping[str, Any],
) -> bytes:
    """How a VQ-GAN does, as a PNG file: originals above reconstructions with a caption each, and the codes' use.

    Images (n, C, H, W) uint8; `code_counts` (K,) over all held-out images.

    `seed` fixes the projection of images of more than 3 channels.
    """
    shown, decoded = (to_displayable(images, seed) for images in (originals, reconstructions))
    sheet = comparison_sheet(shown, decoded, captions)
    usage = statistics_of_counts(code_counts)
    title = f"{usage.used_codes} of {len(code_counts)} codes in use, perplexity {usage.perplexity:.1f}; most used first"
    return png_bytes(below(sheet, histogram(np.sort(code_counts)[::-1], title, sheet.width)), configuration)
