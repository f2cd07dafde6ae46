"""Figures of reconstructions: every row of the table of metrics is reported, and ranks images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqgpt.evaluation.reconstruction import METRICS, reconstruction_figures
from vqgpt.tokens.arrays import codebook_rank, effective_rank


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
    codebook = torch.tensor([[1.0, 1.0], [9.0, 0.0], [3.0, 3.0], [0.0, 9.0]])
    figures = reconstruction_figures(images, others, torch.tensor([6, 0, 2, 0]), codebook)
    assert list(figures)[: len(METRICS)] == list(METRICS)
    assert figures["psnr_db"] == pytest.approx((100 + 2 * 13.9794) / 3, abs=1e-3)
    assert figures["used_codes"] == 2
    assert figures["codebook_rank"] == pytest.approx(1)  # those in use lie on a line
    assert figures["codebook_size"] == 4
    assert figures["share_of_the_most_used_code"] == 0.75


@pytest.mark.parametrize(
    ("variances", "rank"), [((4, 0, 0), 1), ((2, 2, 0), 2), ((1, 1, 1), 3), ((0, 0, 0), 0), ((3, 1, 0), 1.7548)]
)
def test_the_rank_of_known_variances_in_any_directions(variances, rank):
    directions, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    assert effective_rank(directions @ np.diag(np.array(variances, float)) @ directions.T) == pytest.approx(rank, 1e-4)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 12))
def test_the_rank_of_a_codebook_counts_each_code_as_often_as_it_occurs(seed, dimension, codes):
    random = np.random.default_rng(seed)
    codebook, counts = random.normal(size=(codes, dimension)), random.integers(0, 9, codes)
    counts[:2] += 1
    assert codebook_rank(codebook, np.arange(codes) == 1) == 0
    rank = codebook_rank(codebook, counts)
    assert 0 < rank <= dimension + 1e-9
    assert codebook_rank(np.repeat(codebook, counts, axis=0), np.ones(counts.sum(), int)) == pytest.approx(rank)
    assert codebook_rank(codebook * 3 + 5, counts) == pytest.approx(rank)
