"""Patches: pixels as channels, frequencies of them in training, and what a trained network makes of these."""

import copy
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_VQGAN, run_here
from tests.test_vqgan_start import parts_that_differ
from tests.test_vqgan_training import start_training
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import to_unit_range
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions
from vqgpt.vqgan.patches import (
    Frequencies,
    channels_to_pixels,
    fold_frequencies,
    frequencies_of_pixels,
    pixels_to_channels,
    unfold_frequencies,
)
from vqgpt.vqgan.training import train_in_frequencies

CPU = torch.device("cpu")


def patched(image_channels=3, patch=2, size=16):
    torch.manual_seed(0)
    shape = {"channels": 8, "z_channels": 8, "num_res_blocks": 1, "attn_resolutions": (), "n_embed": 16, "embed_dim": 4}
    options = VQGANOptions(**shape, ch_mult=(1, 2), patch=patch)
    return VQGAN(VQGANConfig.of(options, image_channels, size)).eval()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_pixels_become_channels_and_pixels_again(patch):
    images = torch.randn(2, 3, 8, 8)
    channels = pixels_to_channels(images, patch)
    assert channels.shape == (2, 3 * patch**2, 8 // patch, 8 // patch)
    assert torch.equal(channels_to_pixels(channels, patch), images)


@pytest.mark.parametrize("patch", [2, 3, 4, 16])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_frequencies_are_an_orthogonal_transform_and_their_own_way_back(image_channels, patch):
    matrix = frequencies_of_pixels(image_channels, patch)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)
    frequencies = Frequencies(image_channels, patch)
    pixels = torch.randn(2, len(matrix), 4, 4).to(memory_format=torch.channels_last)
    torch.testing.assert_close(frequencies.to_pixels(frequencies.of_pixels(pixels)), pixels, atol=1e-5, rtol=0)


def test_of_two_by_two_pixels_they_are_sums_and_differences():
    a, b, c, d = 1.0, 2.0, 4.0, 8.0
    found = frequencies_of_pixels(1, 2) @ torch.tensor([a, b, c, d])
    expected = [a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]
    torch.testing.assert_close(found, torch.tensor(expected) / 2)


@pytest.mark.parametrize("image_channels", [1, 3])
@torch.no_grad()
def test_a_network_of_frequencies_computes_what_it_did_and_is_folded_back(image_channels):
    model, images = patched(image_channels), to_unit_range(torch.randint(256, (3, image_channels, 16, 16)))
    plain = copy.deepcopy(model)
    frequencies = train_in_frequencies(model, encoder=True)
    before, after = plain(images), model(images)
    torch.testing.assert_close(after.latents, before.latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(before.codes), plain.decode(before.codes), atol=1e-5, rtol=0)
    assert parts_that_differ(model, plain) == {"encoder", "decoder"}
    folded = fold_frequencies(model.state_dict(), True, frequencies.matrix)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(folded[name], weight, atol=1e-6, rtol=1e-5)
        again = unfold_frequencies(folded, True, frequencies.matrix)[name]
        torch.testing.assert_close(again, model.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_a_network_without_patches_has_no_frequencies():
    model = patched(patch=1)
    assert train_in_frequencies(model, encoder=True) is None
    assert model.encoder.frequencies is None


@torch.no_grad()
def test_frequencies_are_no_part_of_the_result_but_its_images_are():
    with torch.enable_grad():
        training = start_training(patch=2, ema=0.5)
        for step in list(training.schedule.steps(0))[:4]:
            training.take_step(step)
    images = to_unit_range(training.images.images[:8])
    plain = VQGAN(training.model.config)
    plain.load_state_dict(training.weights)
    codes = plain.eval().encode(images)
    training.result.eval()
    torch.testing.assert_close(plain.latents(images), training.result.latents(images), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.decode(codes), training.result.decode(codes), atol=1e-4, rtol=0)


def test_a_decoder_alone_leaves_encoder_and_codebook_as_they_are_bit_for_bit(here):
    words = ["vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--patch", "2", "--ch-mult", "1", "--out"]
    assert run_here(*words, "x.pt").code == 0
    outcome = run_here(*words, "y.pt", "--checkpoint-vae", "x.pt", "--train", "decoder")
    assert outcome.code == 0, outcome.err
    outcome = run_here(*words, "z.pt", "--checkpoint-vae", "x.pt")
    assert outcome.code == 0, outcome.err
    x, y, z = (load_vqgan(Path(name), "digits", CPU) for name in ("x.pt", "y.pt", "z.pt"))
    assert parts_that_differ(x, y) == {"decoder", "post_quant_conv"}
    assert parts_that_differ(x, z) == set(x._modules)
