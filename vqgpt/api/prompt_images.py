"""Image files as prompts of `vqgpt sample`: the VQ-GAN's codes of an image, and a mask of what is kept of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqgpt.data.decoding import BrokenImageError, decode
from vqgpt.data.file_trees import LARGEST_FILE
from vqgpt.data.preparing import prepare
from vqgpt.data.preprocessing import Preprocessing, PreprocessingOptions
from vqgpt.errors import InputError, MissingDataError
from vqgpt.storage.files import read_regular
from vqgpt.tokens import Description
from vqgpt.vqgan.coding import encode_images
from vqgpt.vqgan.model import VQGAN

WHITE = 128  # of 255; a pixel of a mask that is at least as bright is kept


def encode_image(path: Path, description: Description, load: Callable[[], VQGAN]) -> NDArray[np.int64]:
    """The codes (h, w) of an image, prepared as the images of a token cache of this description.

    `load` gives the VQ-GAN of the tokens. Raises InputError if the image has another size, and what `load` raises.
    """
    recorded, size = description.preprocessing, description.image_size
    chosen = {name: recorded[name] for name in ("fit", "background") if name in recorded}
    options = PreprocessingOptions(**chosen)
    image = read_image(path, options.background_rgb)
    if (image.height, image.width) != size:
        raise InputError(
            f"the prompt {path} has {image.width} x {image.height} pixels, the GPT's images {size[1]} x {size[0]}",
            "resize or crop it to that size",
        )
    preprocessing = Preprocessing(size=size[0], channels=description.image_channels, options=options)
    return encode_images(load(), prepare(image, preprocessing)[None], "fp32")[0, 0]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The pixels (H, W) of a mask that are white. Raises MissingDataError or InputError."""
    return np.asarray(read_image(path, (0, 0, 0)).convert("L")) >= WHITE


def read_image(path: Path, background: tuple[int, int, int]) -> Image.Image:
    """An image file, grey or RGB. Raises MissingDataError or InputError, naming it."""
    if not path.exists():
        raise MissingDataError(f"there is no file {path}", "give an image, or a row of a token cache: cache:train/17")
    try:
        return decode(read_regular(path, LARGEST_FILE), background)
    except BrokenImageError as error:
        raise InputError(f"{path} cannot be used as an image: {error}", "give another file") from None
