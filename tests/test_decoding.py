"""What an image file carries besides its pixels does not make it unusable, whatever its size."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.dataset_files import image_bytes
from vqgpt.data.decoding import BrokenImageError, decode

WHITE = (255, 255, 255)
RED = (255, 0, 0)
LARGE = os.urandom(2_000_000)
COMPRESSED = zlib.compress(bytes(2_000_000))
XMP = b"XML:com.adobe.xmp\0"


def with_chunks(*chunks, after_pixels=False, damage=0):
    """A red PNG of 8 x 4 pixels with more chunks (kind, content) in it; `damage` makes their checksums wrong."""
    data = image_bytes(RED, size=(8, 4))
    place = len(data) - 12 if after_pixels else 33  # before IEND, or after IHDR
    added = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ damage)
        for kind, content in chunks
    ]
    return data[:place] + b"".join(added) + data[place:]


CHUNKS = {
    "profile": (b"iCCP", b"x\0\0" + zlib.compress(LARGE)),
    "unknown compression": (b"iCCP", b"x\0\7" + LARGE),
    "bomb": (b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000))),
    "text": (b"zTXt", b"Comment\0\0" + COMPRESSED),
    "international text": (b"iTXt", b"Comment\0\1\0\0\0" + COMPRESSED),
    "XMP": (b"iTXt", XMP + b"\1\0\0\0" + COMPRESSED),
    "EXIF in text": (b"zTXt", b"Raw profile type exif\0\0" + COMPRESSED),
    "other compression": (b"zTXt", b"Raw profile type exif\0\7" + COMPRESSED),
    "plain text": (b"tEXt", b"Comment\0" + b"a" * 70_000_000),
    "plain XMP": (b"iTXt", XMP + b"\0\0\0\0" + b"a" * 70_000_000),
    "a text that Pillow takes for its own": (b"tEXt", b"transparency\0yes"),
    "another": (b"tEXt", b"bbox\0yes"),
    "short": (b"gAMA", b"\0"),
    "EXIF": (b"eXIf", LARGE),
    "number of frames": (b"acTL", b"\0"),
    "place of a frame": (b"fcTL", b"\0"),
    "frame": (b"fdAT", bytes(9)),
}


@pytest.mark.parametrize("damage", [0, 1])
@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_what_is_beside_the_pixels_of_a_png_does_no_harm(name, after_pixels, damage):
    image = decode(with_chunks(CHUNKS[name], after_pixels=after_pixels, damage=damage), WHITE)
    assert (np.asarray(image) == RED).all()
    assert image.size == (8, 4)


def test_what_tells_the_rotation_of_a_png_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    packed = b"\nexif\n 1\n" + exif.tobytes().hex().encode()
    for chunk in (
        (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(packed)),
        (b"iTXt", XMP + b"\0\0\0\0" + b'<x tiff:Orientation="6"/>'),
    ):
        assert decode(with_chunks(CHUNKS["profile"], chunk, CHUNKS["text"]), WHITE).size == (4, 8)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_large_profiles_of_other_formats_do_no_harm(kind):
    np.testing.assert_allclose(np.asarray(decode(image_bytes(RED, kind, icc_profile=LARGE), WHITE))[0, 0], RED, atol=4)


def test_pixels_that_are_cut_off_are_still_missed():
    data = with_chunks(CHUNKS["profile"])
    pixels = data.index(b"IDAT")
    for end in (pixels - 4, pixels + 6, 40, 20):
        with pytest.raises(BrokenImageError):
            decode(data[:end], WHITE)
    with pytest.raises(BrokenImageError):
        decode(data[: pixels + 8] + bytes(9) + data[pixels + 17 :], WHITE)
