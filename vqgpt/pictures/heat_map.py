"""Numbers on a grid as a picture: a coloured cell per number, and the scale of colours below.

    values (h, w) -> a PIL image; several of them side by side

Imports numpy and PIL; must not import torch.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
TEXT_HEIGHT = 18
BAR_HEIGHT = 14
SMALLEST_CELL = 16  # pixels
SHORTEST_SIDE = 256  # pixels of a map's width; smaller ones have larger cells
STEPS = 256  # of the scale
# Light to dark for one sign; for two, red below zero, blue above it, and light at zero.
SEQUENTIAL = ((247, 251, 255), (107, 174, 214), (8, 48, 107))
DIVERGING = ((178, 24, 43), (244, 165, 130), (247, 247, 247), (146, 197, 222), (33, 102, 172))


def heat_map(values: NDArray[np.float64], title: str, signed: bool) -> Image.Image:
    """Finite values (h, w) under a title, above a bar that names the lowest and the highest.

    `signed` values have a diverging scale, as long on both sides of zero; others a sequential one.
    """
    colours = np.array(DIVERGING if signed else SEQUENTIAL, np.float64)
    low, high = float(values.min()), float(values.max())
    bound = max(abs(low), abs(high))
    bottom, top = (-bound, bound) if signed else (low, high)
    cell = max(SMALLEST_CELL, math.ceil(SHORTEST_SIDE / values.shape[1]))
    height, width = values.shape[0] * cell, values.shape[1] * cell
    font = ImageFont.load_default(TEXT_HEIGHT - 5)
    ends = f"{bottom:.3g}", f"{top:.3g}"
    texts = [title, f"lowest {low:.3g}, highest {high:.3g}"]
    whole = max(width, *(math.ceil(font.getlength(text)) for text in texts))
    bar_top = MARGIN + 2 * TEXT_HEIGHT + height + MARGIN
    panel = Image.new("RGB", (whole + 2 * MARGIN, bar_top + BAR_HEIGHT + TEXT_HEIGHT + MARGIN), "white")
    pen = ImageDraw.Draw(panel)
    for line, text in enumerate(texts):
        pen.text((MARGIN, MARGIN + line * TEXT_HEIGHT - 4), text, fill="black", font=font)
    shares = (values - bottom) / (top - bottom) if top > bottom else np.full(values.shape, 0.5)
    cells = Image.fromarray(_coloured(shares, colours))
    panel.paste(cells.resize((width, height), Image.Resampling.NEAREST), (MARGIN, MARGIN + 2 * TEXT_HEIGHT))
    bar = Image.fromarray(_coloured(np.linspace(0, 1, STEPS)[None], colours))
    panel.paste(bar.resize((width, BAR_HEIGHT), Image.Resampling.NEAREST), (MARGIN, bar_top))
    below = bar_top + BAR_HEIGHT
    pen.text((MARGIN, below), ends[0], fill="black", font=font)
    pen.text((MARGIN + width, below), ends[1], fill="black", font=font, anchor="ra")
    if signed:
        pen.text((MARGIN + width / 2, below), "0", fill="black", font=font, anchor="ma")
    return panel


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels in one picture, from left to right."""
    width, height = sum(panel.width for panel in panels), max(panel.height for panel in panels)
    whole = Image.new("RGB", (width, height), "white")
    left = 0
    for panel in panels:
        whole.paste(panel, (left, 0))
        left += panel.width
    return whole


def _coloured(shares: NDArray[np.float64], colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shares (h, w) of the way along the scale, 0 to 1 -> (h, w, 3), between the nearest two of `colours` (n, 3)."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(shares, stops, channel) for channel in colours.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
