"""The VQ-GAN: its quantiser against plain arithmetic, its losses by their gradients, its names by their layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgpt.code_statistics import code_statistics
from vqgpt.config.options import resolve
from vqgpt.config.vqgan import VQGANConfig, VQGANOptions, VQGANTrainingOptions
from vqgpt.errors import UsageError
from vqgpt.vqgan.metrics import psnr
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.quantizer import Codebook, EMACodebook, codebook_loss, commitment_loss, nearest_codes
from vqgpt.vqgan.training import codebook_term


def tiny_model(**changes) -> VQGAN:
    values = {"channels": 32, "z_channels": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "n_embed": 16, "embed_dim": 4}
    return VQGAN(VQGANConfig(options=VQGANOptions(**{**values, **changes}), image_channels=1, size=16))


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
    out = type("Out", (), {"latents": latents, "quantized": quantized})
    for kind in ("ema", "loss"):
        latents.grad = quantized.grad = None
        codebook_term(out, VQGANTrainingOptions(codebook=kind)).backward()
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


def test_the_ema_codebook_follows_the_mean_of_its_latents():
    codebook = Codebook(2, 1)
    ema = EMACodebook(codebook, decay=0.5, revive_below=0.0)
    ema.weight.copy_(torch.tensor([[0.0], [10.0]]))
    ema.counts.fill_(1.0)
    ema.sums.copy_(ema.weight)
    latents = torch.tensor([1.0, 3.0, 8.0, 8.0]).view(1, 1, 2, 2)
    ema.update(latents, codebook.latents_to_codes(latents))
    torch.testing.assert_close(codebook.embedding.weight, torch.tensor([[4 / 3], [26 / 3]]))


def test_an_unused_code_is_put_onto_a_latent_with_fresh_statistics():
    codebook = Codebook(4, 1)
    ema = EMACodebook(codebook)
    ema.weight.copy_(torch.tensor([[0.0], [1.0], [100.0], [200.0]]))
    latents = torch.rand(8, 1, 4, 4)
    for _ in range(3):
        ema.update(latents, codebook.latents_to_codes(latents))
    assert codebook.embedding.weight.max() <= 1
    assert code_statistics(codebook.latents_to_codes(latents).numpy(), 4).used_codes == 4
    torch.testing.assert_close(ema.sums / ema.counts[:, None], ema.weight)


def test_seeding_puts_every_code_onto_a_latent():
    codebook = Codebook(8, 2)
    ema = EMACodebook(codebook)
    latents = torch.randn(4, 2, 3, 3)
    ema.seed(latents)
    rows = {tuple(row) for row in latents.permute(0, 2, 3, 1).reshape(-1, 2).tolist()}
    assert {tuple(row) for row in codebook.embedding.weight.tolist()} <= rows


def test_psnr_of_known_values():
    black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    grey = black.clone()
    grey[1] = 51
    torch.testing.assert_close(psnr(black, grey), torch.tensor([100.0, 13.9794]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"channels": 48}, {"ch_mult": ()}, {"ch_mult": (1, 0)}, {"n_embed": 1}, {"dropout": 1.0}, {"num_res_blocks": 0}],
)
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        resolve(VQGANOptions, wrong)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="size = 30") as caught:
        VQGANConfig(options=VQGANOptions(), image_channels=1, size=30)
    assert "multiple of 4" in caught.value.hint
