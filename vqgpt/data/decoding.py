"""Bytes of an image file -> a PIL image, grey ("L") or "RGB", 8 bits, upright and opaque. Must not import torch."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
Image.init()  # otherwise Pillow knows only some of them, until it has met a file of none
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


class BrokenImageError(Exception):
    """The bytes are not an image that can be used; the text says why."""


def is_image_name(name: str) -> bool:
    """True if the file's suffix is that of an image."""
    return name.lower().endswith(SUFFIXES)


def is_grey(data: bytes) -> bool:
    """True if the image has no colors, by its header alone. Raises BrokenImageError if it is no image."""
    with _explained():
        return Image.open(io.BytesIO(data), formats=FORMATS).mode in GREY_MODES


def decode(data: bytes, background: tuple[int, int, int]) -> Image.Image:
    """Rotated as its EXIF says, put onto `background` where it is transparent, 16 bits scaled to 8.

    Of several frames or pages, the first. Raises BrokenImageError.
    """
    with _explained():
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        image_format = image.format
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF data does not make an image unusable
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_eight_bits(image, image_format)
        grey = image.mode in GREY_MODES
        if image.has_transparency_data:
            image = _opaque(image, background)
            grey = grey and len(set(background)) == 1
        return image.convert("L" if grey else "RGB")


@contextlib.contextmanager
def no_decoder_warnings() -> Iterator[None]:
    """Silence what PIL warns of (odd metadata, images of more than 89 megapixels); to be entered before any thread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault: hostile and damaged ones make PIL raise almost anything."""
    try:
        yield
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError(f"not an image in a format of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise BrokenImageError(str(error) or type(error).__name__) from None


def _to_eight_bits(image: Image.Image, image_format: str | None) -> Image.Image:
    """A grey image of 16 bits as one of 8, keeping the color that PNG declares transparent."""
    if image.mode == "F" or (image.mode == "I" and image_format not in ("PNG", "PPM")):
        raise BrokenImageError(f"pixels of 32 bits (mode {image.mode}) have no known range")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))))


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
