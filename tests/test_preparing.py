"""From images to what the VQ-GAN is fed: fit, channels, views, batches made by threads, memory."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import TINY_VQGAN, assert_refused, run_here
from vqgpt.data.images import (
    ArrayImages,
    ImageSplit,
    check_fits_memory,
    load_tensor,
    prepare,
    prepared_batches,
    row_batches,
    window_box,
)
from vqgpt.data.options import VIEW_SETS, VIEWS, Preprocessing, PreprocessingOptions, parse_views
from vqgpt.errors import ResourceError, UsageError
from vqgpt.progress import silent
from vqgpt.tokens import TokenCache
from vqgpt.vqgan.coding import to_uint8, to_unit_range


def how(size, channels=1, views=("identity",), **options):
    return Preprocessing(size=size, channels=channels, options=PreprocessingOptions(**options), views=views)


def split_of(pixels):
    return ImageSplit.whole(ArrayImages(pixels), np.zeros(len(pixels), dtype=np.int64))


def test_crop_takes_the_shorter_side_and_the_centre_and_stretch_takes_all():
    wide = np.zeros((8, 20), np.uint8)
    wide[:, 6:14] = 200
    image = Image.fromarray(wide)
    assert prepare(image, how(8)).tolist() == np.full((1, 1, 8, 8), 200).tolist()
    stretched = prepare(image, how(8, fit="stretch"))[0, 0]
    assert stretched[:, 0].tolist() == [0] * 8
    assert stretched[:, 4].tolist() == [200] * 8
    assert (
        prepare(Image.fromarray(np.full((28, 28), 77, np.uint8)), how(32)).tolist()
        == np.full((1, 1, 32, 32), 77).tolist()
    )


def test_an_image_that_needs_no_resizing_stays_as_it_is():
    odd = np.random.default_rng(0).integers(0, 256, (20, 31), dtype=np.uint8)
    assert prepare(Image.fromarray(odd), how(20))[0, 0].tolist() == odd[:, 5:25].tolist()


def test_resizing_is_antialiased():
    checkerboard = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = prepare(Image.fromarray(checkerboard.astype(np.uint8)), how(8))
    assert abs(small.astype(int) - 128).max() <= 2


def test_channels_are_kept_or_converted():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert prepare(red, how(4, channels=3))[0, :, 0, 0].tolist() == [255, 0, 0]
    assert prepare(red, how(4, channels=1)).shape == (1, 1, 4, 4)
    assert prepare(red, how(4, channels=1))[0, 0, 0, 0] == 76
    assert prepare(Image.new("L", (4, 4), 9), how(4, channels=3))[0, :, 0, 0].tolist() == [9, 9, 9]


def test_views_are_flips_and_windows():
    ramp = np.tile(np.arange(0, 220, 10, dtype=np.uint8), (22, 1))
    whole, mirrored = prepare(Image.fromarray(ramp), how(22, views=("identity", "hflip")))[:, 0]
    assert whole.tolist() == ramp.tolist()
    assert mirrored.tolist() == ramp[:, ::-1].tolist()
    crops = prepare(Image.fromarray(ramp), how(20, views=parse_views(("ten-crop",))))[:, 0]
    assert len(crops) == 10
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    center, left, right, bottom_left, _ = crops[:5]
    assert left.tolist() == ramp[:20, :20].tolist() == bottom_left.tolist()
    assert right.tolist() == ramp[:20, 2:].tolist()
    assert center.tolist() == ramp[:20, 1:21].tolist()


def test_views_are_parsed():
    assert parse_views(("identity,hflip",)) == parse_views(("identity", "hflip")) == ("identity", "hflip")
    assert parse_views(("identity, five_crop",)) == ("identity", *VIEW_SETS["five-crop"])
    assert parse_views(("ten-crop",)) == VIEW_SETS["ten-crop"]
    for wrong in (("hfilp",), ("identity", "identity"), ("",), ("ten-crop", "five-crop")):
        with pytest.raises(UsageError):
            parse_views(wrong)


@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    view=st.sampled_from(sorted(VIEWS)),
    fit=st.sampled_from(["crop", "stretch"]),
)
def test_a_view_lies_inside_its_image(width, height, view, fit):
    left, top, right, bottom = window_box((width, height), VIEWS[view].window, fit)
    assert 0 <= left < right <= width + 1e-9
    assert 0 <= top < bottom <= height + 1e-9
    if fit == "crop":
        assert right - left == pytest.approx(bottom - top)


@given(rows=st.integers(0, 90), batch_size=st.integers(1, 40), workers=st.integers(0, 3))
def test_batches_are_the_same_for_any_number_of_threads(rows, batch_size, workers):
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 6, 6), dtype=np.uint8)
    batches = row_batches(0, rows, batch_size)
    made = list(prepared_batches(split_of(pixels), batches, how(6), workers))
    assert [len(batch) for batch in made] == [len(batch) for batch in batches]
    assert np.concatenate([*made, np.zeros((0, 1, 1, 6, 6))])[:, 0, 0].tolist() == pixels.tolist()
    tensor = load_tensor(split_of(pixels), how(6), workers, "images", silent)
    assert tensor[:, 0].tolist() == pixels.tolist()


def test_a_consumer_may_leave_early():
    pixels = np.zeros((500, 6, 6), np.uint8)
    batches = prepared_batches(split_of(pixels), row_batches(0, 500, 10), how(6), 2)
    next(batches)
    batches.close()


def test_more_images_than_memory_are_refused_before_they_are_read():
    with pytest.raises(ResourceError, match="memory"):
        check_fits_memory(10**15, "the images")


def test_unit_range_and_uint8_are_inverses():
    import torch

    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(levels)), levels)
    assert to_unit_range(levels)[[0, 255]].tolist() == [-1.0, 1.0]


def test_views_and_preprocessing_are_in_the_cache(here):
    assert run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN).code == 0
    tokenize = ["tokenize", "--dataset", "digits", "--limit", "150"]
    outcome = run_here(*tokenize, "--views", "identity,hflip", "--fit", "stretch", "--batch-size", "99")
    assert outcome.code == 0
    assert "may mean something else" in outcome.err
    cache = TokenCache(here / "cache/digits.zarr")
    assert cache.description.views == ("identity", "hflip")
    assert "16 x 16" in cache.description.preprocessing["rule"]
    codes = cache.read_split("train").codes
    assert codes.shape[1] == 2
    assert (codes[:, 0] != codes[:, 1]).any()
    alone = run_here(*tokenize, "--views", "hflip", "--fit", "stretch", "--cache", "flipped.zarr")
    assert alone.code == 0
    flipped = TokenCache(here / "flipped.zarr").read_split("train").codes
    assert (flipped[:, 0] == codes[:, 1]).mean() > 0.999  # rounding differs by batch
    assert_refused(run_here(*tokenize), 3, "views", "fit: stretch there, crop here")


@pytest.mark.parametrize(
    "flags",
    [
        ["--views", "upside-down"],
        ["--views", "hflip,hflip"],
        ["--background", "#12"],
        ["--image-channels", "2"],
        ["--val-split", "1"],
        ["--num-workers", "-1"],
        ["--fit", "pad"],
        ["--on-error", "ignore"],
    ],
)
def test_values_out_of_range_are_refused(here, flags):
    assert_refused(run_here("tokenize", "--dataset", "digits", *flags), 2, flags[1].split(",")[0])


def test_training_takes_a_part_of_the_images(here):
    assert run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--limit", "100").code == 0
    (metrics,) = here.rglob("*metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[-1])["images"] == 100
