"""Codes and images are those that other systems' own code computed, from the file itself and after an import."""

from pathlib import Path

import pytest
import torch

from tests import peer_goldens
from tests.conftest import assert_refused, run_here
from vqgpt.vqgan.checkpoint import load_vqgan, open_vqgan, tokenizer_sha256
from vqgpt.vqgan.coding import to_unit_range


def assert_equals_golden(path, golden):
    model = load_vqgan(Path(path), "cifar10", torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(model.encode(to_unit_range(golden.images)), golden.codes)
        decoded = model.decode_latents(model.quantize.codes_to_latents(golden.codes))
        torch.testing.assert_close(decoded, golden.decoded, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(golden.codes), golden.decoded.clamp(-1, 1), atol=1e-5, rtol=0)
    return model


def assert_same_after_import(path, golden, *options):
    """It is another file then, and the same tokenizer."""
    model = assert_equals_golden(path, golden) if not options else None
    outcome = run_here("vqgan", "import", path, *options, "--out", "ours.pt", "--json")
    assert outcome.code == 0, outcome.err
    imported = assert_equals_golden("ours.pt", golden)
    assert model is None or tokenizer_sha256(imported) == tokenizer_sha256(model) == outcome.json["tokenizer_sha256"]
    return imported


def test_maskgit(here):
    golden = peer_goldens.load("maskgit")
    torch.save(golden.state, "maskgit-vqgan.bin")
    model = assert_same_after_import("maskgit-vqgan.bin", golden)
    assert (model.config.network, model.config.ch_mult, model.config.num_res_blocks) == ("maskgit", (1, 2, 2), 2)
    assert open_vqgan(Path("maskgit-vqgan.bin"), "x").family == "MaskGIT"
    assert model.config.grid(16) == (4, 4)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("decoder.up.1.upsample_conv.bias", None, ["decoder.up.1.upsample_conv.bias is missing"]),
        ("encoder.down.1.block.0.nin_shortcut.weight", None, ["nin_shortcut.weight is missing"]),
        ("encoder.mid.1.conv1.bias", torch.zeros(64), ["encoder.mid.1.conv1.bias has no place"]),
        ("quantize.embedding.weight", torch.zeros(24, 4), ["embed_dim = 4", "no layers between"]),
        ("encoder.down.1.block.0.conv1.weight", torch.zeros(48, 32, 3, 3), ["32, 48, 64 wide", "multiples"]),
    ],
)
def test_a_maskgit_that_does_not_fit_together(here, name, value, words):
    state = peer_goldens.load("maskgit").state
    state = {key: tensor for key, tensor in state.items() if key != name} | ({} if value is None else {name: value})
    torch.save(state, "bad.bin")
    assert_refused(run_here("vqgan", "info", "bad.bin"), 3, "bad.bin", *words)


def test_maskgit_in_a_pipeline(here):
    torch.save(peer_goldens.load("maskgit").state, "maskgit.bin")
    encoding = ["tokenize", "--dataset", "digits", "--checkpoint-vae", "maskgit.bin", "--limit", "20", "--size", "16"]
    for command in (
        [*encoding, "--image-channels", "3"],
        ["render", "cache/digits.zarr", "--checkpoint-vae", "maskgit.bin", "--limit", "2", "--out", "x.png"],
    ):
        outcome = run_here(*command)
        assert outcome.code == 0, outcome.err
