"""The VQ-GAN: its lookup against plain arithmetic, its losses by their gradients, its names by their layout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from vqgpt.errors import InputError, UsageError
from vqgpt.options.definition import resolve
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.codebook import codebook_loss, codebook_term, commitment_loss, nearest_codes
from vqgpt.vqgan.coding import psnr, ssim
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions

TINY = {"channels": 32, "z_channels": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "n_embed": 16, "embed_dim": 4}


def tiny_model(used_codes=None, **changes) -> VQGAN:
    return VQGAN(VQGANConfig.of(VQGANOptions(**{**TINY, **changes}), image_channels=1, size=16, used_codes=used_codes))


@settings(deadline=None, max_examples=30)
@given(vectors=st.integers(1, 50), codes=st.integers(1, 40), dimension=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_nearest_code_is_the_nearest(vectors, codes, dimension, seed):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(vectors, dimension, generator=generator, dtype=torch.float64)
    e = torch.randn(codes, dimension, generator=generator, dtype=torch.float64)
    assert torch.equal(nearest_codes(v, e), torch.cdist(v, e).argmin(dim=1))


def test_the_lookup_is_in_float32_whatever_surrounds_it():
    vectors, codebook = torch.randn(2000, 8), torch.randn(256, 8)
    plain = nearest_codes(vectors, codebook)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codebook), plain)


def test_a_tie_goes_to_the_lowest_index():
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert nearest_codes(torch.tensor([[0.0], [1.0]]), codebook).tolist() == [1, 1]


def test_the_commitment_weight_is_on_the_commitment_term():
    """0.25 scales the gradient of the encoder; the gradient of the codebook, where it has one, is whole."""
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantized = torch.randn(2, 4, 3, 3, requires_grad=True)
    for kind in ("ema", "loss"):
        latents.grad = quantized.grad = None
        codebook_term(latents, quantized, kind).backward()
        difference = 2 * (latents - quantized).detach() / latents.numel()
        torch.testing.assert_close(latents.grad, 0.25 * difference)
        if kind == "loss":
            torch.testing.assert_close(quantized.grad, -difference)
        else:
            assert quantized.grad is None


def test_each_loss_moves_only_its_own_side():
    latents = torch.randn(1, 2, 2, 2, requires_grad=True)
    quantized = torch.randn(1, 2, 2, 2, requires_grad=True)
    commitment_loss(latents, quantized).backward()
    assert quantized.grad is None
    latents.grad = None
    codebook_loss(latents, quantized).backward()
    assert latents.grad is None


def test_the_gradient_passes_straight_through_the_codebook():
    model = tiny_model()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    model(images).images.square().sum().backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad is None


def test_encode_and_forward_agree_and_decode_is_clamped():
    model = tiny_model().eval()
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    codes = model.encode(images)
    out = model(images)
    assert codes.shape == (3, 8, 8)
    assert torch.equal(codes, out.codes)
    torch.testing.assert_close(model.decode(codes), out.images.clamp(-1, 1))


def test_codes_by_direction_ignore_lengths():
    model = tiny_model(l2_codes=True).eval()
    latents = torch.randn(2, 4, 3, 3)
    codes = model.quantize.latents_to_codes(latents)
    assert torch.equal(model.quantize.latents_to_codes(latents * 100), codes)
    model.quantize.embedding.weight.data *= torch.rand(16, 1) + 0.1
    assert torch.equal(model.quantize.latents_to_codes(latents), codes)
    lengths = model.quantize.codes_to_latents(codes).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_only_used_codes_are_used():
    """A list of used codes is a smaller codebook: codes are indices into the list, of the nearest in it."""
    model, ids = tiny_model(used_codes=5), torch.tensor([9, 3, 12, 0, 7])
    model.quantize.embedding.weight.data.normal_()
    model.quantize.used.copy_(ids)
    latents = torch.randn(3, 4, 6, 6)
    codes = model.quantize.latents_to_codes(latents)
    vectors = model.quantize.embedding.weight[ids]
    expected = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 4), vectors).argmin(dim=1)
    assert torch.equal(codes.flatten(), expected)
    assert torch.equal(model.quantize.codes_to_latents(codes).permute(0, 2, 3, 1), vectors[codes])


def test_a_large_codebook_is_searched_in_passes(monkeypatch):
    vectors, codebook = torch.randn(100, 3), torch.randn(50, 3)
    whole = nearest_codes(vectors, codebook)
    monkeypatch.setattr("vqgpt.vqgan.codebook.SCORES_PER_PASS", 7 * 50)
    assert torch.equal(nearest_codes(vectors, codebook), whole)


def test_module_names_are_those_of_taming_transformers():
    names = set(tiny_model(attn_resolutions=(8,)).state_dict())
    levels = "encoder.down.0.block.0.norm1 encoder.down.0.downsample.conv encoder.down.1.block.0.nin_shortcut"
    levels += " encoder.down.1.attn.0.proj_out decoder.up.0.block.0.nin_shortcut decoder.up.0.block.1.conv1"
    levels += " decoder.up.1.attn.1.k decoder.up.1.upsample.conv"
    middle = "encoder.mid.block_1.conv1 encoder.mid.attn_1.q encoder.mid.block_2.norm2 decoder.mid.attn_1.norm"
    ends = "conv_in norm_out conv_out"
    expected = [*levels.split(), *middle.split(), "quant_conv", "post_quant_conv", "quantize.embedding"]
    expected += [f"{side}.{end}" for side in ("encoder", "decoder") for end in ends.split()]
    assert {f"{name}.weight" for name in expected} <= names
    assert not {"encoder.down.1.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"} & names
    assert not {name for name in names if ".down.0.attn" in name or ".up.0.attn" in name}


def test_double_z_doubles_what_the_encoder_emits():
    model = tiny_model(double_z=True)
    assert model.encoder.conv_out.out_channels == 16
    assert model.encode(torch.zeros(1, 1, 16, 16)).shape == (1, 8, 8)


def test_psnr_of_known_values():
    black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    grey = black.clone()
    grey[1] = 51
    torch.testing.assert_close(psnr(black, grey), torch.tensor([100.0, 13.9794]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 28, 20), (1, 1, 8, 8)])
def test_ssim_is_that_of_scikit_image(shape):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    others = np.clip(images + generator.normal(0, 40, shape), 0, 255).astype(np.uint8)
    ours = ssim(torch.from_numpy(images), torch.from_numpy(others))
    side = min(11, *shape[2:])
    if side < 11:
        assert 0 < ours < 1  # scikit-image's Gaussian window cannot be smaller
        return
    for one, other, value in zip(images, others, ours, strict=True):
        maps = [
            structural_similarity(
                x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
            )[1][5:-5, 5:-5]
            for x, y in zip(one, other, strict=True)
        ]
        assert np.mean(maps) == pytest.approx(float(value), abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"channels": 33}, {"ch_mult": ()}, {"ch_mult": (1, 0)}, {"n_embed": 1}, {"dropout": 1.0}, {"num_res_blocks": 0}],
)
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        resolve(VQGANOptions, wrong)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="size = 30") as caught:
        VQGANConfig.of(VQGANOptions(), image_channels=1, size=30)
    assert "multiple of 4" in caught.value.hint


def test_a_size_that_moves_attention_is_refused():
    config = VQGANConfig.of(VQGANOptions(), image_channels=1, size=32)
    assert config.attn_levels == (1,)
    assert config.grid(32) == (8, 8)
    with pytest.raises(InputError, match="level 2, and the weights have it at level 1"):
        config.grid(64)
    without = VQGANConfig.of(VQGANOptions(attn_resolutions=()), image_channels=1, size=32)
    assert without.grid(64) == (16, 16)
