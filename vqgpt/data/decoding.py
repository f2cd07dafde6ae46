"""Bytes of an image file -> a PIL image, grey ("L") or "RGB", 8 bits, upright and opaque. Must not import torch."""

import contextlib
import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngStream

Image.init()  # otherwise Pillow knows only some formats, until it has met a file of none
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262  # tags
GREY_MODES = ("1", "L", "LA", "La")
LARGE = 40_000_000  # pixels; larger images are decoded one at a time, whatever the number of threads
LARGE_IMAGES = threading.Lock()

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FRAME = struct.Struct(">I4s")  # of a chunk: length and kind; then come its content, and four bytes of checksum
TRANSPARENCY = b"tRNS"
EXIF = b"eXIf"  # has the rotation
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
ROTATION = {b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif"}  # keywords of texts in which Pillow looks for it


class BrokenImageError(Exception):
    """The bytes are not an image that can be used; the text says why."""


def is_image_name(name: str) -> bool:
    """True if the file's suffix is that of an image."""
    return name.lower().endswith(SUFFIXES)


def decode(data: bytes, background: tuple[int, int, int], most_pixels: float = math.inf) -> Image.Image:
    """Rotated as its EXIF says, put onto `background` where it is transparent, 16 bits scaled to 8.

    Of several frames or pages, the first. Raises BrokenImageError, also if there are more than `most_pixels`.
    """
    try:
        image = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
        if image.width * image.height > most_pixels:
            raise BrokenImageError(f"{image.width} x {image.height} pixels are more than {most_pixels:,}")
        with LARGE_IMAGES if image.width * image.height > LARGE else contextlib.nullcontext():
            return _to_grey_or_rgb(_to_eight_bits(image), background)
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError(f"not an image in a format of {', '.join(FORMATS)}") from None
    except Exception as error:  # hostile and damaged files make PIL raise almost anything
        raise BrokenImageError(str(error) or type(error).__name__) from None


@contextlib.contextmanager
def no_decoder_warnings() -> Iterator[None]:
    """Silence what PIL warns of (odd metadata, images of more than 89 megapixels); to be entered before any thread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _to_eight_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Upright, and of 8 bits, with the color that PNG declares transparent."""
    bits, white_is_zero = 16, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, white_is_zero = tags.get(TIFF_BITS, (16,))[0], tags.get(TIFF_PHOTOMETRIC) == 0
    has_sixteen_bit_colors = image.mode == "RGB" and any("16" in str(tile.args) for tile in image.tile)
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data does not make an image unusable
        ImageOps.exif_transpose(image, in_place=True)
    transparent = image.info.get("transparency")
    if has_sixteen_bit_colors and transparent is not None:
        image.info["transparency"] = tuple(level >> 8 for level in transparent)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise BrokenImageError("pixels of 32 bits, or with a sign, have no known range")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.uint32)
    full = 2**bits - 1
    grey = ((levels * 255 + full // 2) // full).astype(np.uint8)
    shown = Image.fromarray(255 - grey if white_is_zero else grey)
    if transparent is None:
        return shown
    return Image.merge("LA", (shown, Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))))


def _to_grey_or_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    grey = image.mode in GREY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
        grey = grey and len(set(background)) == 1
    return image.convert("L" if grey else "RGB")


def without_metadata(data: bytes) -> bytes:
    """A PNG file of the first picture alone, with what may hold its rotation; other bytes as is.

    Pillow unpacks colour profiles, texts and the like, and refuses an image for one that is larger than 1 MiB. It also
    does for a damaged one, and for damage in the frames that come after the first picture.
    """
    if not data.startswith(SIGNATURE):
        return data
    view, chunks, position = memoryview(data), [memoryview(SIGNATURE)], len(SIGNATURE)
    pillow = PngStream(io.BytesIO())
    while position + FRAME.size <= len(data):
        length, kind = FRAME.unpack_from(data, position)
        end = position + FRAME.size + length + 4
        if end > len(data):
            break
        if _is_needed(kind, view[position + FRAME.size : end - 4], view[end - 4 : end], pillow):
            chunks.append(view[position:end])
        position = end
    return b"".join([*chunks, view[position:]])


def _is_needed(kind: bytes, content: memoryview, checksum: memoryview, pillow: PngStream) -> bool:
    if kind == EXIF or kind in TEXTS:
        is_whole = zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(checksum)
        keyword = bytes(content[:80]).partition(b"\0")[0]
        return is_whole and (kind == EXIF or (keyword in ROTATION and _takes(pillow, kind, content)))
    return kind[:1].isupper() or not kind.isalpha() or kind == TRANSPARENCY


def _takes(pillow: PngStream, kind: bytes, content: memoryview) -> bool:
    """True if Pillow takes a text after those that it took; it unpacks 1 MiB of each at most."""
    pillow.fp = io.BytesIO(content)
    try:
        pillow.call(kind, 0, len(content))
    except (ValueError, SyntaxError):
        return False
    return True
