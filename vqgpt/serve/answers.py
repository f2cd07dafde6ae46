"""Between what is sent and arrays: images as PNG files in base64, codes as lists of grid rows; errors for the unfit."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.api.render import preprocessing_of
from vqgpt.data.images import prepare
from vqgpt.gpt.labels import is_prefix
from vqgpt.pictures.sheet import png_bytes, to_pil
from vqgpt.serve import schema
from vqgpt.serve.pair import Draw, Drawn, Pair


def line(event: str, **values: Any) -> str:
    """One event as a line."""
    return json.dumps({"event": event, **values}, separators=(",", ":")) + "\n"


def grids_of(grids: Sequence[schema.Grid], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Grids as lists -> (n, h, w). Raises UnfitError for one of another shape."""
    for grid in grids:
        if len(grid) != shape[0] or any(len(row) != shape[1] for row in grid):
            raise schema.UnfitError(
                f"a grid of {len(grid)} rows is not one of {shape[0]} x {shape[1]} codes",
                f"send {shape[0]} rows of {shape[1]} codes each",
            )
    return np.array(grids, dtype=np.int64)


def checked(pair: Pair, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes that there are. Raises UnfitError for others."""
    most = pair.generator.gpt.model.config.codebook_size - 1
    if not 0 <= codes.min() <= codes.max() <= most:
        raise schema.UnfitError(f"codes of {codes.min()} to {codes.max()} cannot be used", f"send codes of 0 to {most}")
    return codes


def notices_of(pair: Pair, known: NDArray[np.int64]) -> list[str]:
    """What is to be said of a completion: what it does not see."""
    cells = pair.generator.gpt.model.cells.cpu().numpy()
    if pair.sees_all or is_prefix(known[None], cells):
        return []
    order = pair.generator.gpt.model.config.options.order
    return [
        f"This GPT draws in one order ({order}): a code sees the known codes before it, and none after it. Seams can "
        "show. A GPT that was trained with --order random sees all of them."
    ]


def prepared(pair: Pair, images: Sequence[str]) -> NDArray[np.uint8]:
    """Images that were sent -> (n, C, H, W) uint8, resized and cropped as those of the training."""
    preprocessing = preprocessing_of(pair.cache.description)
    background, left, parts = preprocessing.options.background_rgb, schema.MOST_PIXELS, []
    for text in images:
        image = schema.image_of(text, background, left)
        left -= image.width * image.height
        parts.append(prepare(image, preprocessing))
    return np.concatenate(parts)


def shown(images: NDArray[np.uint8], codes: NDArray[np.int64]) -> list[schema.ShownImage]:
    """Images (n, C, H, W) with their codes (n, h, w), as they are sent."""
    return [schema.ShownImage(png=png(image), codes=own.tolist()) for image, own in zip(images, codes, strict=True)]


def drawn_images(pair: Pair, task: Draw, drawn: Drawn) -> list[schema.DrawnImage]:
    """Images that were drawn, as they are sent."""
    rows = zip(drawn.images, drawn.codes, drawn.bits_per_token, strict=True)
    return [
        schema.DrawnImage(
            png=png(image),
            codes=codes.tolist(),
            classes=names_of(task.asked.labels[place].tolist(), pair.generator.class_names),
            seed=task.asked.seeds[place],
            number=task.asked.numbers[place],
            bits_per_token=float(bits),
        )
        for place, (image, codes, bits) in enumerate(rows)
    ]


def names_of(label: int | Sequence[int], names: Sequence[str]) -> list[str]:
    """The classes of a label as `GPT.start` takes it."""
    if isinstance(label, int):
        return [names[label]] if label >= 0 else []
    return [name for name, bit in zip(names, label, strict=True) if bit > 0]


def png(image: NDArray[np.uint8]) -> str:
    """An image (C, H, W) as a PNG file in base64."""
    return base64.b64encode(png_bytes(to_pil(image), {})).decode()
