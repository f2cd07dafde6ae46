"""Codes and images are those that other systems' own code computed, from the file itself and after an import."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests import peer_goldens
from tests.conftest import assert_refused, run_here
from tests.peer_checkpoints import gumbel_names, llamagen_names, taming_state
from vqgpt.options.codec import from_json, to_json
from vqgpt.vqgan.architecture import VQGANConfig
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


def test_ibq_with_a_moving_average_asks_for_one_of_them(here):
    golden = peer_goldens.load("ibq")
    plain = {name: tensor + 0.1 for name, tensor in golden.state.items()}
    average = {"model_ema." + name.replace(".", ""): tensor for name, tensor in golden.state.items()}
    torch.save({"state_dict": {**plain, **average, "model_ema.decay": torch.tensor(0.999)}}, "ibq.ckpt")
    outcome = run_here("vqgan", "import", "ibq.ckpt", *ibq_yaml(), "--out", "ours.pt")
    assert_refused(outcome, 3, "ibq.ckpt", "moving average", "--weights ema")
    assert_same_after_import("ibq.ckpt", golden, *ibq_yaml(), "--weights", "ema")
    command = ["vqgan", "import", "ibq.ckpt", "--lookup", "dot", "--weights", "model", "--out", "plain.pt"]
    assert run_here(*command).code == 0
    state = load_vqgan(Path("plain.pt"), "x", torch.device("cpu")).state_dict()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


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


def test_more_codes_than_tokens_have_bits_for(here):
    torch.save(peer_goldens.load("ibq").state | {"quantize.embedding.weight": torch.zeros(2**18, 6)}, "ibq.ckpt")
    assert_refused(run_here("vqgan", "import", "ibq.ckpt", "--lookup", "dot"), 3, "ibq.ckpt", "262144", "65536")


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


def ldm_yaml(target="ldm.models.autoencoder.VQModelInterface", params=(), **network):
    """As latent-diffusion has it beside a first stage."""
    described = {"double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    described |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0, **network}
    section = {"target": target, "params": {"embed_dim": 6, "n_embed": 24, "ddconfig": described, **dict(params)}}
    Path("model.yaml").write_text(yaml.safe_dump({"model": section}))
    return ["--config", "model.yaml"]


@pytest.mark.parametrize("kind", ["vanilla", "linear"])
def test_latent_diffusion(here, kind):
    golden = peer_goldens.load(f"ldm-{kind}")
    torch.save({"state_dict": golden.state}, "model.ckpt")
    model = assert_same_after_import("model.ckpt", golden)
    assert (model.config.attn_type, model.config.attn_levels, model.config.mid_attention) == (kind, (1,), True)
    assert_same_after_import("model.ckpt", golden, *ldm_yaml(attn_type=kind), "--overwrite")
    if kind == "linear":
        assert_same_after_import("model.ckpt", golden, *ldm_yaml(use_linear_attn=True), "--overwrite")


def test_latent_diffusion_without_convolutions_between_levels_and_with_a_tanh(here):
    golden = peer_goldens.load("ldm-pooled")
    torch.save({"state_dict": golden.state}, "model.ckpt")
    network = {"resamp_with_conv": False, "tanh_out": True, "ch_mult": [1, 1, 2]}
    model = assert_same_after_import("model.ckpt", golden, *ldm_yaml(**network))
    assert (model.config.resamp_with_conv, model.config.tanh_out) == (False, True)
    without_yaml = load_vqgan(Path("model.ckpt"), "x", torch.device("cpu"))
    assert (without_yaml.config.resamp_with_conv, without_yaml.config.tanh_out) == (False, False)
    with torch.no_grad():
        assert torch.equal(without_yaml.encode(to_unit_range(golden.images)), golden.codes)
        assert (without_yaml.decode(golden.codes) - golden.decoded).abs().max() > 0.1
    assert tokenizer_sha256(without_yaml) != tokenizer_sha256(model)


@pytest.mark.parametrize(
    ("golden", "yaml_of", "words"),
    [
        ("linear", {"attn_type": "vanilla"}, ["attn_type: vanilla in the YAML, linear in the weights"]),
        ("linear", {"attn_type": "none"}, ["attn_type: none in the YAML, linear in the weights"]),
        ("vanilla", {"attn_type": "linear"}, ["attn_type: linear in the YAML, vanilla in the weights"]),
        ("vanilla", {"resamp_with_conv": False}, ["resamp_with_conv: False in the YAML, True in the weights"]),
        ("vanilla", {"give_pre_end": True}, ["give_pre_end", "no images"]),
        ("vanilla", {"params": {"l2_normalize": True}}, ["l2_normalize", "does not compute"]),
        ("pooled", {"resamp_with_conv": True, "ch_mult": [1, 1, 2]}, ["resamp_with_conv: True in the YAML"]),
    ],
)
def test_a_yaml_of_another_kind_of_latent_diffusion(here, golden, yaml_of, words):
    torch.save({"state_dict": peer_goldens.load(f"ldm-{golden}").state}, "model.ckpt")
    outcome = run_here("vqgan", "import", "model.ckpt", *ldm_yaml(**yaml_of))
    assert_refused(outcome, 3, "model.yaml", *words)


@pytest.mark.parametrize(
    ("golden", "left_out", "words"),
    [
        ("vanilla", "encoder.down.0.downsample.conv.weight", ["encoder.down.0.downsample.conv.weight is missing"]),
        ("linear", "decoder.mid.attn_1.to_out.bias", ["decoder.mid.attn_1.to_out.bias is missing"]),
        ("linear", "encoder.down.1.attn.0.to_qkv.weight", ["attn.0.to_out.weight has no place", "decoder.up.1.attn"]),
    ],
)
def test_half_of_a_kind_of_latent_diffusion(here, golden, left_out, words):
    state = peer_goldens.load(f"ldm-{golden}").state
    torch.save({name: tensor for name, tensor in state.items() if name != left_out}, "bad.ckpt")
    assert_refused(run_here("vqgan", "info", "bad.ckpt"), 3, "bad.ckpt", *words)


def test_mixed_attention_is_refused(here):
    linear, vanilla = (peer_goldens.load(f"ldm-{kind}").state for kind in ("linear", "vanilla"))
    mixed = {name: tensor for name, tensor in linear.items() if not name.startswith("encoder.mid.attn_1")}
    mixed |= {name: tensor for name, tensor in vanilla.items() if name.startswith("encoder.mid.attn_1")}
    torch.save(mixed, "bad.ckpt")
    assert_refused(run_here("vqgan", "info", "bad.ckpt"), 3, "encoder.mid.attn_1.to_qkv.weight is missing")


def test_the_kinds_are_part_of_a_tokenizers_identity_only_where_they_are_used(here):
    golden = peer_goldens.load("ldm-vanilla")
    torch.save(golden.state, "model.ckpt")
    config = open_vqgan(Path("model.ckpt"), "x").config
    assert not {"attn_type", "resamp_with_conv", "tanh_out", "network", "mid_attention"} & set(
        config.what_codes_depend_on
    )
    other = replace(config, attn_type="linear", resamp_with_conv=False, tanh_out=True)
    assert {"attn_type", "resamp_with_conv", "tanh_out"} <= set(other.what_codes_depend_on)
    assert from_json(VQGANConfig, to_json(other), "x") == other
