"""Codes and images are those that other systems' own code computed, from the file itself and after an import."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests import peer_goldens
from tests.conftest import assert_refused, run_here
from tests.peer_checkpoints import gumbel_names, llamagen_names, taming_state
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


def ibq_yaml(class_path="src.IBQ.models.ibqgan.IBQ", **changes):
    """As SEED-Voken has it, which uses Lightning's command line."""
    network = {"double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    network |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}
    arguments = {"ddconfig": network, "n_embed": 24, "embed_dim": 6, "beta": 0.25, "use_entropy_loss": True, **changes}
    model = {"class_path": class_path, "init_args": arguments}
    Path("model.yaml").write_text(yaml.safe_dump({"seed_everything": True, "model": model, "ckpt_path": None}))
    return ["--config", "model.yaml"]


@pytest.mark.parametrize("told", ["by its YAML", "by --lookup", "by both"])
def test_ibq(here, told):
    golden = peer_goldens.load("ibq")
    torch.save({"state_dict": golden.state}, "ibq.ckpt")
    options = [] if told == "by --lookup" else ibq_yaml()
    options += [] if told == "by its YAML" else ["--lookup", "dot"]
    model = assert_same_after_import("ibq.ckpt", golden, *options)
    assert model.config.lookup == "dot"
    by_distance = load_vqgan(Path("ibq.ckpt"), "x", torch.device("cpu"))
    assert not torch.equal(by_distance.encode(to_unit_range(golden.images)), golden.codes)
    assert tokenizer_sha256(by_distance) != tokenizer_sha256(model)


def test_used_codes_of_ibq(here):
    """`--remap` leaves the largest product of those codes."""
    golden = peer_goldens.load("ibq")
    torch.save(golden.state, "ibq.ckpt")
    np.save("used.npy", np.array([5, 2, 20, 7, 23]))
    outcome = run_here("vqgan", "import", "ibq.ckpt", "--lookup", "dot", "--remap", "used.npy", "--out", "ours.pt")
    assert outcome.code == 0, outcome.err
    model = load_vqgan(Path("ours.pt"), "x", torch.device("cpu"))
    codebook = golden.state["quantize.embedding.weight"][[5, 2, 20, 7, 23]]
    with torch.no_grad():
        latents = model.latents(to_unit_range(golden.images))
        expected = torch.einsum("bdhw,kd->bkhw", latents, codebook).argmax(dim=1)
        assert torch.equal(model.quantize.latents_to_codes(latents), expected)


def test_a_file_of_ibqs_layers_does_not_tell_its_lookup(here):
    state = taming_state(ch_mult=(1, 1, 2, 2, 4), blocks=4, attn=())
    torch.save({"state_dict": state}, "imagenet.ckpt")
    for command in (
        ["vqgan", "import", "imagenet.ckpt", "--out", "ours.pt"],
        ["vqgan", "import", "imagenet.ckpt", "--out", "ours.pt", "--dry-run"],
        ["tokenize", "--dataset", "digits", "--checkpoint-vae", "imagenet.ckpt"],
    ):
        assert_refused(run_here(*command), 3, "imagenet.ckpt", "dot product", "--lookup dot", "--config")
    outcome = run_here("vqgan", "info", "imagenet.ckpt", "--json")
    assert outcome.code == 0, outcome.err
    assert "does not say" in outcome.json["lookup"]
    for lookup in ("dot", "nearest"):
        outcome = run_here("vqgan", "import", "imagenet.ckpt", "--lookup", lookup, "--out", f"{lookup}.pt")
        assert outcome.code == 0, outcome.err
        assert open_vqgan(Path(f"{lookup}.pt"), "x").config.lookup == lookup


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: ["--lookup", "nearest", *ibq_yaml()], ["--lookup nearest", "YAML", "dot"]),
        (lambda: ["--lookup", "dot", *ibq_yaml("taming.models.vqgan.VQModel")], ["--lookup dot", "nearest"]),
        (lambda: ibq_yaml(embed_dim=8), ["embed_dim: 8 in the YAML, 6 in the weights"]),
        (lambda: ibq_yaml("src.IBQ.models.ibqgan.GumbelVQ"), ["GumbelVQ", "lookup by nearest in the weights"]),
        (lambda: ibq_yaml("src.Open_MAGVIT2.models.lfqgan.Other"), ["Other in the YAML", "a VQ-GAN in the weights"]),
    ],
)
def test_what_contradicts_an_ibq(here, options, words):
    torch.save(peer_goldens.load("ibq").state, "ibq.ckpt")
    assert_refused(run_here("vqgan", "import", "ibq.ckpt", *options()), 3, *words)


def test_a_lookup_that_the_weights_contradict(here):
    state = taming_state(z=6, embed=6)
    torch.save(gumbel_names(state, codes=24), "gumbel.ckpt")
    torch.save({"model": llamagen_names(taming_state(attn=(1,)))}, "llamagen.pt")
    assert_refused(run_here("vqgan", "import", "gumbel.ckpt", "--lookup", "dot"), 3, "gumbel.ckpt", "logits")
    assert_refused(run_here("vqgan", "import", "gumbel.ckpt", *ibq_yaml()), 3, "IBQ in the YAML", "by logits")
    assert_refused(run_here("vqgan", "import", "llamagen.pt", "--lookup", "nearest"), 3, "llamagen.pt", "cosine")
