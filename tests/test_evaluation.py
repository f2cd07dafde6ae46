"""Figures of reconstructions: every row of the table of metrics is reported, and ranks images."""

import pytest
import torch

from vqgpt.evaluation.reconstruction import METRICS, reconstruction_figures


def noisy(images, amount):
    return (images.float() + amount * torch.randn(images.shape)).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [8, 40])
def test_a_metric_tells_a_little_noise_from_much(name, size):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (300, 3, size, size), dtype=torch.uint8)
    near, far = (METRICS[name](images, noisy(images, amount)) for amount in (5, 50))
    assert near.shape == far.shape == (300,)
    assert ((near > far) == (near > far)[0]).all()


def test_the_figures_are_the_means_of_all_rows_and_the_use_of_the_codebook():
    images = torch.full((3, 1, 8, 8), 100, dtype=torch.uint8)
    others = torch.stack([images[0], images[1] + 51, images[2] + 51])  # 51 of 255 is 13.9794 dB
    figures = reconstruction_figures(images, others, torch.tensor([6, 0, 2, 0]))
    assert list(figures)[: len(METRICS)] == list(METRICS)
    assert figures["psnr_db"] == pytest.approx((100 + 2 * 13.9794) / 3, abs=1e-3)
    assert figures["used_codes"] == 2
    assert figures["codebook_size"] == 4
    assert figures["share_of_the_most_used_code"] == 0.75
