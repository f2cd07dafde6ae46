"""VQ-GANs of latent-diffusion without attention (attn_type: none), and its YAMLs."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import assert_refused, run_here
from tests.peer_checkpoints import decode, encode, gumbel_names, taming_state
from tests.test_third_party import LOSSES, assert_as_at_home, load, prefixed
from tests.test_vqgan import tiny_model
from vqgpt.options.codec import from_json, to_json
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import tokenizer_identities

IDENTITY = (
    "4c1002c9a73e25a0"  # of a VQ-GAN with attention in the middle, in caches that were made before there were others
)


def without_attention(**shape):
    return taming_state(**{"attn": (), "mid_attn": False, "embed": 3, **shape})


def first_stage(state, **network):
    """A YAML as latent-diffusion has it beside its first stages."""
    described = {"attn_type": "none", "double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3}
    described |= {"out_ch": 3, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    codes, width = state["quantize.embedding.weight"].shape
    params = {"embed_dim": width, "n_embed": codes, "monitor": "val/rec_loss", "ckpt_path": "x/model.ckpt"}
    params |= {"ddconfig": {**described, **network}, "lossconfig": {"target": "torch.nn.Identity"}}
    return {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"ch_mult": (1,), "image_channels": 1},
        {"ch_mult": (1, 2, 4), "blocks": 2, "codes": 300, "z": 3},
        {"attn": (1,)},  # in levels alone
        {"mid_attn": True},  # in the middle alone
    ],
)
@pytest.mark.parametrize("wrapping", ["lightning", "first stage", "imported"])
def test_codes_and_images_are_those_of_its_home(here, shape, wrapping):
    state = without_attention(**shape)
    stored = prefixed("first_stage_model.", state) if wrapping == "first stage" else {**state, **LOSSES}
    path = Path("model.ckpt")
    torch.save({"state_dict": stored}, path)
    if wrapping == "imported":
        outcome = run_here("vqgan", "import", path, "--out", "ours.pt", "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.json["mid_attention"] == shape.get("mid_attn", False)
        path = Path("ours.pt")
    model = load(path)
    assert_as_at_home(model, state)
    assert model.config.mid_attention == shape.get("mid_attn", False)
    assert from_json(VQGANConfig, to_json(model.config), "x") == model.config


@pytest.mark.parametrize("resolutions", [[], [8], [32]])
def test_its_yaml_agrees(here, resolutions):
    state = without_attention()
    torch.save({"state_dict": state}, "model.ckpt")
    section = first_stage(state, attn_resolutions=resolutions)
    Path("model.yaml").write_text(yaml.safe_dump({"model": {"params": {"first_stage_config": section}}}))
    outcome = run_here("vqgan", "import", "model.ckpt", "--config", "model.yaml", "--out", "ours.pt")
    assert outcome.code == 0, outcome.err
    model = load("ours.pt")
    assert (model.config.size, model.config.attn_resolutions) == (16, ())
    assert_as_at_home(model, state)
    assert_as_at_home(model, state, size=32)  # no attention that could move


@pytest.mark.parametrize(
    ("shape", "network", "words"),
    [
        ({}, {"attn_type": "vanilla"}, ["attn_type: vanilla in the YAML, none in the weights"]),
        ({}, {"attn_type": "linear"}, ["attn_type: linear in the YAML, none in the weights"]),
        ({}, {"use_linear_attn": True}, ["attn_type: linear in the YAML"]),
        ({"mid_attn": True}, {}, ["attn_type: none in the YAML, vanilla in the weights"]),
        ({"attn": (1,)}, {}, ["attn_resolutions", "level none", "level 1 in the weights"]),
        ({}, {"give_pre_end": True}, ["give_pre_end", "no images"]),
        ({}, {"resamp_with_conv": False}, ["resamp_with_conv: False in the YAML, True in the weights"]),
    ],
)
def test_a_yaml_of_another_network_is_refused(here, shape, network, words):
    state = without_attention(**shape)
    torch.save(state, "model.ckpt")
    Path("model.yaml").write_text(yaml.safe_dump({"model": first_stage(state, **network)}))
    outcome = run_here("vqgan", "import", "model.ckpt", "--config", "model.yaml", "--out", "ours.pt")
    assert_refused(outcome, 3, "model.yaml", *words)


@pytest.mark.parametrize("network", [{"attn_type": "vanilla"}, {"attn_type": "vanilla-xformers"}, {"attn_type": None}])
def test_a_yaml_that_names_the_usual_attention_agrees(here, network):
    state = without_attention(mid_attn=True)
    torch.save(state, "model.ckpt")
    Path("model.yaml").write_text(yaml.safe_dump({"model": first_stage(state, **network)}))
    outcome = run_here("vqgan", "import", "model.ckpt", "--config", "model.yaml", "--out", "ours.pt")
    assert outcome.code == 0, outcome.err


def test_half_of_the_attention_is_not_enough(here):
    state = without_attention(mid_attn=True)
    torch.save({name: state[name] for name in state if not name.startswith("decoder.mid.attn_1.")}, "model.ckpt")
    assert_refused(run_here("vqgan", "import", "model.ckpt"), 3, "decoder.mid.attn_1.norm.weight is missing")


def test_an_autoencoder_without_a_codebook_is_named(here):
    autoencoder = {name: tensor for name, tensor in without_attention().items() if not name.startswith("quantize")}
    torch.save({"state_dict": autoencoder}, "model.ckpt")
    outcome = run_here("vqgan", "import", "model.ckpt")
    assert_refused(outcome, 3, "model.ckpt", "without a codebook")
    assert "get the file again" not in outcome.err


def test_other_parts_of_latent_diffusion_are_read_too(here):
    """A moving average beside the weights; learned logits; a list of used codes."""
    state, average = without_attention(), without_attention(seed=5)
    flat = {"model_ema." + name.replace(".", ""): tensor for name, tensor in average.items()}
    torch.save({"state_dict": {**state, **flat, "model_ema.decay": torch.tensor(0.9)}}, "model.ckpt")
    assert run_here("vqgan", "import", "model.ckpt", "--weights", "ema", "--out", "e.pt").code == 0
    assert_as_at_home(load("e.pt"), average)
    gumbel = gumbel_names(without_attention(z=6, embed=6), codes=24)
    torch.save({"state_dict": gumbel}, "gumbel.ckpt")
    assert_as_at_home(load("gumbel.ckpt"), {**without_attention(z=6, embed=6), **gumbel}, "logits")
    used = torch.tensor([20, 3, 17, 4, 9, 11])
    torch.save({"state_dict": {**state, "quantize.used": used}}, "used.ckpt")
    only = {**state, "quantize.embedding.weight": state["quantize.embedding.weight"][used]}
    assert_as_at_home(load("used.ckpt"), only)


def test_the_peer_leaves_the_attention_out():
    """What the tests above compare with is another network than with attention."""
    images = torch.rand(1, 3, 16, 16)
    plain, attending = without_attention(), taming_state(attn=(), embed=3)
    shared = {**attending, **plain}
    assert not torch.equal(encode(plain, images), encode(shared, images))
    codes = torch.zeros(1, 8, 8, dtype=torch.int64)
    assert (decode(plain, codes) - decode(shared, codes)).abs().max() > 0.1


def test_a_pipeline_runs_on_it(here):
    torch.save(without_attention(image_channels=1), "model.ckpt")
    encoding = ["tokenize", "--dataset", "digits", "--checkpoint-vae", "model.ckpt", "--limit", "20", "--size", "16"]
    for command in (encoding, ["render", "cache/digits.zarr", "--checkpoint-vae", "model.ckpt", "--limit", "2"]):
        outcome = run_here(*command)
        assert outcome.code == 0, outcome.err


def test_the_identity_of_a_vqgan_with_attention_has_not_changed():
    model = tiny_model(norm_groups=32)
    for number, tensor in enumerate(model.state_dict().values()):
        tensor.copy_(torch.full_like(tensor, number))
    assert tokenizer_identities(model)[1].startswith(IDENTITY)
    without = tiny_model().config
    assert "mid_attention" not in without.what_codes_depend_on
