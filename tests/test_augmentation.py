"""Random crops and flips of training images: what an epoch sees of each image, and what decides it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_preparing import how, split_of
from tests.test_training_images import schedule_of
from vqgpt.data.augmentation import SMALLEST_CROP, Augmentation, DrawnWindow
from vqgpt.data.options import parse_augment
from vqgpt.data.training_images import StreamedImages, drawn_box
from vqgpt.errors import UsageError

CROP_AND_FLIP = Augmentation(kinds=("crop", "hflip"), seed=3)


def views_of_rows(split, schedule, workers, augmentation):
    """What each epoch sees of each row."""
    streamed = StreamedImages(split, how(8), workers, schedule, augmentation)
    seen = {}
    for step in schedule.outlook(0):
        for row, image in zip(step.rows.tolist(), streamed.batch(step), strict=True):
            seen[step.epoch, row] = image.numpy().tobytes()
    streamed.close()
    return seen


def test_a_view_depends_on_seed_epoch_and_row_alone():
    split = split_of(np.random.default_rng(0).integers(0, 256, (30, 12, 17), dtype=np.uint8))
    seen = views_of_rows(split, schedule_of(30, 7), 0, CROP_AND_FLIP)
    assert len(set(seen.values())) == 60
    assert views_of_rows(split, schedule_of(30, 16), 3, CROP_AND_FLIP) == seen
    other = views_of_rows(split, schedule_of(30, 7), 0, Augmentation(kinds=("crop", "hflip"), seed=4))
    assert all(other[key] != seen[key] for key in seen)


def test_a_crop_is_a_part_of_the_image_and_a_flip_mirrors_it():
    wide = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (20, 1))  # 50 pixels wide
    split = split_of(np.repeat(wide[None], 200, axis=0))
    schedule = schedule_of(200, 200, epochs=1)
    (step,) = schedule.outlook(0)

    def seen(*kinds):
        streamed = StreamedImages(split, how(16), 0, schedule, Augmentation(kinds=kinds, seed=0))
        return streamed.batch(step).float()[:, 0, 8]  # a line of each image

    crops, both, flips = seen("crop"), seen("crop", "hflip"), seen("hflip")
    widths = (crops[:, -1] - crops[:, 0]) / 5 * 16 / 15  # of the windows, in pixels of the image
    assert 0.8 * 20 - 0.5 < widths.min() < 17
    assert 19 < widths.max() < 20.5
    assert crops[:, 0].min() < 20  # near the left end, which the centre crop never shows
    assert crops[:, -1].max() > 225
    mirrored = both[:, 0] > both[:, -1]
    assert 70 < mirrored.sum() < 130
    assert torch.equal(both, torch.where(mirrored[:, None], crops.flip(1), crops))
    assert torch.equal(flips[:, 0] > flips[:, -1], mirrored)
    assert len(flips.unique(dim=0)) == 2


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    numbers=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
    fit=st.sampled_from(["crop", "stretch"]),
)
def test_a_drawn_window_lies_inside_its_image(size, numbers, fit):
    window = DrawnWindow(SMALLEST_CROP + (1 - SMALLEST_CROP) * numbers[0], *numbers[1:])
    left, top, right, bottom = drawn_box(size, window, fit)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    if fit == "crop":
        assert right - left == pytest.approx(bottom - top) == pytest.approx(window.share * min(size))


def test_augmentations_are_parsed():
    assert parse_augment(()) == ()
    assert parse_augment(("hflip", "crop")) == parse_augment(("crop, hflip",)) == ("crop", "hflip")
    for wrong in (("flip",), ("",), ("crop,",)):
        with pytest.raises(UsageError):
            parse_augment(wrong)
