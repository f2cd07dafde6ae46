"""Pictures: what is where on a sheet, and images of more channels than a screen has."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from vqgpt.pictures.sheet import comparison_sheet, contact_sheet, histogram, reconstruction_panel, to_displayable


def test_images_of_many_channels_are_projected_the_same_way_every_time():
    labels = np.zeros((2, 5, 4, 4), dtype=np.uint8)
    labels[0, 1, :2] = 255
    labels[1, 3] = 255
    shown = to_displayable(labels, seed=0)
    assert shown.shape == (2, 3, 4, 4)
    assert np.array_equal(shown, to_displayable(labels, seed=0))
    assert not np.array_equal(shown, to_displayable(labels, seed=1))
    assert len({tuple(color) for color in shown.transpose(0, 2, 3, 1).reshape(-1, 3)}) == 3  # one per label, and none
    for channels in (1, 3):
        few = np.ones((2, channels, 4, 4), dtype=np.uint8)
        assert to_displayable(few, seed=0) is few


@pytest.mark.parametrize("count", [1, 7, 8, 11])
def test_a_comparison_has_each_reconstruction_below_its_original(count):
    originals = np.full((count, 1, 64, 64), 50, dtype=np.uint8)
    sheet = np.asarray(comparison_sheet(originals, originals + 100, [""] * count))
    assert (sheet == 50).sum() == (sheet == 150).sum() == count * 64 * 64 * 3
    assert sheet[30, 30, 0] == 50
    assert sheet[64 + 4 + 30, 30, 0] == 150


def test_captions_fit_their_image():
    image = np.zeros((1, 1, 64, 64), dtype=np.uint8)
    assert contact_sheet(image, ["a caption that is much too long for it"], 1).width == 64 + 8


@pytest.mark.parametrize("bars", [1, 16, 5000])
def test_a_histogram_is_as_wide_as_asked_and_its_largest_bar_is_the_first(bars):
    chart = np.asarray(histogram(np.arange(bars, 0, -1), "title", 300).convert("L"))[20:]
    assert chart.shape[1] == 300
    heights = (chart < 200).sum(axis=0)
    assert heights[:20].max() == heights.max() >= 70
    assert heights[290] > 0 or bars == 5000


def test_a_panel_has_likeness_use_and_configuration():
    images = np.random.default_rng(0).integers(256, size=(3, 1, 16, 16), dtype=np.uint8)
    data = reconstruction_panel(images, images, ["a", "b", "c"], np.array([3, 0, 5]), 0, {"seed": 7})
    picture = Image.open(io.BytesIO(data))
    assert json.loads(picture.text["vqgpt"]) == {"seed": 7}
    assert picture.width == 3 * (64 + 4) + 4
