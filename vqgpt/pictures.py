"""Contact sheets: images (N, C, H, W) uint8 -> one PNG. Imports numpy and PIL; must not import torch."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

MARGIN = 4
TEXT_HEIGHT = 14
SHORTEST_SIDE = 64  # pixels on the sheet; smaller images are enlarged by a whole factor


def to_pil(image: NDArray[np.uint8]) -> Image.Image:
    """(C, H, W) uint8, grey or RGB -> a PIL image."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


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


def comparison_sheet(originals: NDArray[np.uint8], reconstructions: NDArray[np.uint8], columns: int = 8) -> Image.Image:
    """Originals (N, C, H, W) uint8, each row of them above the row of their reconstructions."""
    images, captions = [], []
    for start in range(0, len(originals), columns):
        for name, group in (("original", originals), ("decoded", reconstructions)):
            row = list(group[start : start + columns])
            blanks = [np.full_like(originals[0], 255)] * (columns - len(row))
            images += row + blanks
            captions += [name] + [""] * (columns - 1)
    return contact_sheet(np.stack(images), captions, columns)
