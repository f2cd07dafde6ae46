"""Image files of every format -> pixels: colours, transparency, 16 bits, rotation; and what is no image."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.dataset_files import image_bytes
from vqgpt.data.decoding import BrokenImageError, decode, no_decoder_warnings

WHITE = (255, 255, 255)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data, background=WHITE):
    image = decode(data, background)
    return image.mode, np.asarray(image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_common_formats_keep_their_colors(kind):
    mode, pixels = decoded(image_bytes((200, 100, 50), kind))
    assert mode == "RGB"
    np.testing.assert_allclose(pixels[6, 6], (200, 100, 50), atol=4)


def test_grey_stays_grey_and_one_bit_becomes_eight():
    assert decoded(image_bytes(77, mode="L"))[0] == "L"
    assert decoded(image_bytes(77, mode="L"))[1].tolist() == np.full((12, 12), 77).tolist()
    assert np.unique(decoded(image_bytes(1, mode="1"))[1]).tolist() == [255]


@pytest.mark.parametrize("background", [WHITE, (10, 20, 30)])
def test_transparency_shows_the_background_and_never_what_hides_beneath(background):
    hidden, half = (255, 0, 200, 0), (100, 100, 100, 128)
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), hidden)
    image.putpixel((1, 0), half)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        _, pixels = decoded(saved(image, kind, **options), background)
        assert tuple(pixels[0, 0]) == background
        np.testing.assert_allclose(pixels[0, 1], (100 + np.array(background)) / 2, atol=1)


def test_transparency_of_palettes_and_of_declared_colors():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN] + [0] * 762)
    palette.putpixel((1, 0), 1)
    assert decoded(saved(palette))[1].tolist() == [[[*RED], [*GREEN]]]
    assert decoded(saved(palette, transparency=0), BLUE)[1].tolist() == [[[*BLUE], [*GREEN]]]
    assert decoded(saved(palette, transparency=bytes([255, 0])), BLUE)[1].tolist() == [[[*RED], [*BLUE]]]
    rgb = Image.new("RGB", (2, 1), RED)
    rgb.putpixel((1, 0), GREEN)
    assert decoded(saved(rgb, transparency=RED), BLUE)[1].tolist() == [[[*BLUE], [*GREEN]]]
    grey = Image.new("L", (2, 1), 50)
    grey.putpixel((1, 0), 60)
    assert decoded(saved(grey, transparency=50))[1].tolist() == [[255, 60]]
    assert decoded(saved(Image.merge("LA", (grey, Image.new("L", (2, 1), 0)))))[1].tolist() == [[255, 255]]
    assert decoded(saved(grey, transparency=50), BLUE)[0] == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    levels = np.array([[0, 257, 128 * 257, 65535, 1000]], dtype=np.uint16)
    mode, pixels = decoded(saved(Image.fromarray(levels), kind))
    assert mode == "L"
    assert pixels.tolist() == [[0, 1, 128, 255, 4]]


def test_sixteen_bits_keep_their_transparent_color():
    data = saved(Image.fromarray(np.array([[257 * 9, 257 * 7]], dtype=np.uint16)), transparency=257 * 9)
    assert decoded(data)[1].tolist() == [[255, 7]]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(mode):
    with pytest.raises(BrokenImageError, match="no known range"):
        decode(image_bytes(1, "TIFF", mode=mode), WHITE)


def test_tiff_of_twelve_bits_and_of_inverted_greys():
    levels = np.array([[0, 1000 * 16, 65535, 32768]], dtype=np.uint16)
    inverted = saved(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})
    assert decoded(inverted)[1].tolist() == [[255, 193, 0, 127]]
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x07, 0xFF])  # 4095, 0, 2048, 2047
    header = struct.pack("<2sHI", b"II", 42, 8)
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1), (278, 3, 1)]
    tags += [(279, 4, 6)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    twelve = header + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    assert decoded(twelve + packed)[1].tolist() == [[255, 0, 128, 127]]


def test_cmyk_is_converted():
    _, pixels = decoded(image_bytes((0, 255, 255, 0), "TIFF", mode="CMYK"))
    np.testing.assert_allclose(pixels[0, 0], RED, atol=2)
    _, pixels = decoded(image_bytes((255, 0, 255, 0), "JPEG", mode="CMYK"))
    np.testing.assert_allclose(pixels[0, 0], GREEN, atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_exif_rotation_is_applied(kind, orientation):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8], upright[4:, :8], upright[:4, 8:] = RED, GREEN, BLUE
    turns = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (1, 0), 7: (1, 1), 8: (3, 0)}
    turned, mirrored = turns[orientation]
    stored = np.rot90(upright, turned)
    stored = stored[:, ::-1] if mirrored else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    _, pixels = decoded(saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert pixels.shape == upright.shape
    np.testing.assert_allclose(pixels[1::4, 1::4].astype(int), upright[1::4, 1::4], atol=60)


def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN)]
    for kind in ("TIFF", "GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decoded(data)[1][4, 4].tolist() == [*RED]


def test_damaged_exif_data_does_no_harm():
    data = image_bytes(RED, "JPEG", exif=b"Exif\x00\x00" + b"MM\x00*" + b"\xff" * 40)
    with no_decoder_warnings():
        np.testing.assert_allclose(decoded(data)[1][0, 0], RED, atol=3)


JPEG = image_bytes(RED, "JPEG", (64, 64))
BROKEN = {
    "empty": b"",
    "html": b"<html>404</html>",
    "truncated": JPEG[: len(JPEG) // 2],
    "zeros": bytes(1000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\nshowpage\n",
    "bomb": image_bytes(0, size=(14000, 14000), mode="1"),
    "half a header": image_bytes(RED)[:20],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_refused(name):
    with pytest.raises(BrokenImageError):
        decode(BROKEN[name], WHITE)
