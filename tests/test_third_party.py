"""Other people's checkpoints: the same codes and images as at home; what is no VQ-GAN is refused."""

import argparse
import collections
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from tests.conftest import assert_refused, files_of, run_here
from tests.peer_checkpoints import decode, encode, gumbel_names, llamagen_names, taming_state
from vqgpt.tokens import TokenCache
from vqgpt.vqgan.checkpoint import load_vqgan, open_vqgan, tokenizer_sha256

LOSSES = {
    "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
    "loss.discriminator.main.3.num_batches_tracked": torch.tensor(7),
    "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(1).expand(64, 3, 3, 3),
}
NET2NET = {"transformer.tok_emb.weight": torch.zeros(9, 4), "cond_stage_model.encoder.conv_in.weight": torch.zeros(2)}


def load(path):
    return load_vqgan(Path(path), "digits", torch.device("cpu"))


def assert_as_at_home(model, state, lookup="nearest", size=16, codes_of=None):
    seeded = torch.Generator().manual_seed(0)
    images = torch.rand(3, state["encoder.conv_in.weight"].shape[1], size, size, generator=seeded) * 2 - 1
    with torch.no_grad():
        codes = model.encode(images)
        expected = encode(state, images, lookup)
        expected = expected if codes_of is None else codes_of(expected)
        assert torch.equal(codes, expected)
        assert len(codes.unique()) > 3
        decoded = model.decode_latents(model.quantize.codes_to_latents(codes))
        home = decode(state, encode(state, images, lookup), lookup)
        torch.testing.assert_close(decoded, home, atol=1e-4, rtol=0)


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def save_as(wrapping, state, path):
    """Save a taming-transformers VQModel as it is found in the wild."""
    if wrapping == "lightning":
        callbacks = {argparse.Namespace: {"best": Path("x")}, "lr": argparse.Namespace(a=collections.Counter("ab"))}
        content = {"epoch": 3, "state_dict": {**state, **LOSSES}, "callbacks": callbacks, "optimizer_states": [{}]}
    elif wrapping == "net2net":
        content = {"state_dict": {**prefixed("first_stage_model.", state), **NET2NET}}
    elif wrapping == "distributed":
        content = {f"{key.split('.')[0]}.module.{key.partition('.')[2]}": state[key] for key in state} | LOSSES
    elif wrapping == "compiled":
        content = {"model": prefixed("_orig_mod.module.", state)}
    elif wrapping == "prefix":
        content = prefixed("a.b.", state)
    elif wrapping == "parameters":
        content = collections.OrderedDict((key, torch.nn.Parameter(state[key])) for key in state)
    elif wrapping == "strided":
        content = {key: state[key].transpose(0, -1).contiguous().transpose(0, -1) for key in state}
    elif wrapping == "half":
        content = {key: state[key].half() for key in state}
    elif wrapping == "safetensors":
        safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    else:
        content = dict(state)
    torch.save(content, path, _use_new_zipfile_serialization=wrapping != "before torch 1.6")
    return path


WRAPPINGS = ["bare", "lightning", "net2net", "distributed", "compiled"]
WRAPPINGS += ["prefix", "parameters", "strided", "half", "safetensors"]


@pytest.mark.parametrize("wrapping", [*WRAPPINGS, "before torch 1.6"])
def test_a_vqmodel_is_the_same_from_every_wrapping(here, wrapping):
    state = taming_state()
    path = save_as(wrapping, state, Path("model.ckpt"))
    home = {key: state[key].half().float() for key in state} if wrapping == "half" else state
    assert_as_at_home(load(path), home)


@pytest.mark.parametrize(
    "shape",
    [
        {"image_channels": 1},
        {"ch_mult": (1, 2, 4), "blocks": 3, "attn": ()},
        {"ch_mult": (2, 1, 1, 2), "attn": (0, 3)},
        {"ch": 64, "ch_mult": (1,), "attn": ()},
        {"z": 16, "embed": 3, "codes": 300},
        {"double_z": True, "z": 6},
    ],
)
def test_the_architecture_is_read_off_the_weights(here, shape):
    state = taming_state(**shape)
    torch.save(state, "model.pt")
    model = load("model.pt")
    assert_as_at_home(model, state)
    values = {"ch_mult": "ch_mult", "blocks": "num_res_blocks", "attn": "attn_levels", "z": "z_channels"}
    values |= {"embed": "embed_dim", "codes": "n_embed", "double_z": "double_z", "image_channels": "image_channels"}
    for given, field in values.items():
        if given in shape:
            assert getattr(model.config, field) == shape[given]


@pytest.mark.parametrize("payload", ["model", "ema", "both"])
def test_llamagen(here, payload):
    model, average = (taming_state(attn=(1,), blocks=2, embed=8, seed=seed) for seed in (0, 1))
    content = {"model": llamagen_names(model), "ema": llamagen_names(average), "steps": 5}
    content["args"] = argparse.Namespace(codebook_size=24)
    content["discriminator"] = {"main.0.weight": torch.zeros(3)}
    if payload != "both":
        del content["ema" if payload == "model" else "model"]
    torch.save(content, "vq.pt")
    assert_as_at_home(load("vq.pt"), average if payload == "ema" else model, "cosine")
    if payload == "both":
        assert run_here("vqgan", "import", "vq.pt", "--weights", "ema", "--out", "e.pt").code == 0
        assert_as_at_home(load("e.pt"), average, "cosine")
    if payload == "model":
        assert_refused(run_here("vqgan", "import", "vq.pt", "--weights", "ema"), 3, "no moving average")
    assert open_vqgan(Path("vq.pt"), "x").family == "LlamaGen"


def test_the_moving_average_of_latent_diffusion(here):
    model, average = taming_state(seed=0), taming_state(seed=1)
    flat = {"model_ema." + name.replace(".", ""): tensor for name, tensor in average.items()}
    torch.save({"state_dict": {**model, **flat, "model_ema.decay": torch.tensor(0.9)}}, "ldm.ckpt")
    assert_as_at_home(load("ldm.ckpt"), model)
    assert run_here("vqgan", "import", "ldm.ckpt", "--weights", "ema", "--out", "e.pt").code == 0
    assert_as_at_home(load("e.pt"), average)


def test_gumbelvq_is_encoded_by_the_largest_logit(here):
    state = taming_state(z=6, embed=6)
    gumbel = gumbel_names(state, codes=24)
    torch.save({"state_dict": gumbel}, "gumbel.ckpt")
    assert_as_at_home(load("gumbel.ckpt"), {**state, **gumbel}, "logits")


def test_a_remapped_model_gives_the_nearest_used_code(here):
    state, used = taming_state(), torch.tensor([20, 3, 17, 4, 9, 11])
    torch.save({**state, "quantize.used": used}, "model.pt")
    torch.save(state, "plain.pt")
    np.save("used.npy", used.numpy())
    only_used = {**state, "quantize.embedding.weight": state["quantize.embedding.weight"][used]}
    assert_as_at_home(load("model.pt"), only_used)
    assert load("model.pt").config.codebook_size == 6
    remapped = load_vqgan(Path("plain.pt"), "x", torch.device("cpu"), Path("used.npy"))
    assert_as_at_home(remapped, only_used)
    assert tokenizer_sha256(remapped) == tokenizer_sha256(load("model.pt")) != tokenizer_sha256(load("plain.pt"))


@pytest.mark.parametrize("ids", [[1, 1], [0, 24], [-1, 2], [3], [0.5, 1.0], [[1, 2]]])
def test_a_list_of_used_codes_that_cannot_be(here, ids):
    torch.save(taming_state(), "model.pt")
    np.save("used.npy", np.array(ids))
    assert_refused(run_here("vqgan", "import", "model.pt", "--remap", "used.npy"), 3, "used.npy")


def test_import_and_direct_use_are_the_same_tokenizer(here):
    state = taming_state(image_channels=1)
    torch.save({"state_dict": state}, "model.ckpt")
    outcome = run_here("vqgan", "import", "model.ckpt", "--out", "ours.pt", "--json")
    assert outcome.code == 0, outcome.err
    for path in ("model.ckpt", "ours.pt"):
        command = [
            "tokenize",
            "--dataset",
            "digits",
            "--checkpoint-vae",
            path,
            "--limit",
            "50",
            "--cache",
            f"{path}.zarr",
        ]
        assert run_here(*command).code == 0
    assert files_of(Path("model.ckpt.zarr")) == files_of(Path("ours.pt.zarr"))
    assert TokenCache(Path("ours.pt.zarr")).description.tokenizer_sha256 == outcome.json["tokenizer_sha256"]
    rendered = run_here("render", "ours.pt.zarr", "--checkpoint-vae", "model.ckpt", "--limit", "2", "--out", "x.png")
    assert rendered.code == 0, rendered.err


def test_info_reads_names_and_not_weights(here):
    torch.save({"state_dict": {**taming_state(), **LOSSES}}, "model.ckpt")
    data = Path("model.ckpt").read_bytes()
    middle = len(data) // 2
    Path("model.ckpt").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    outcome = run_here("vqgan", "info", "model.ckpt", "--json")
    assert outcome.code == 0, outcome.err
    expected = {"family": "taming-transformers", "n_embed": 24, "ch_mult": [1, 2], "attn_levels": [1]}
    assert expected.items() <= outcome.json.items()
    assert outcome.json["other_tensors_in_the_file"] == len(LOSSES)
    assert_refused(run_here("vqgan", "import", "model.ckpt"), 3, "model.ckpt", "damaged")


def taming_yaml(**changes):
    network = {"double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    network |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}
    params = {"embed_dim": 4, "n_embed": 24}
    for name, value in changes.items():
        (params if name in params else network)[name] = value
    return {"target": "taming.models.vqgan.VQModel", "params": {**params, "ddconfig": network, "lossconfig": {}}}


@pytest.mark.parametrize("place", ["model", "first stage"])
def test_a_yaml_that_agrees_adds_the_size(here, place):
    torch.save(taming_state(), "model.pt")
    section = taming_yaml()
    tree = {"model": section}
    if place == "first stage":
        conditions = {**taming_yaml(n_embed=7), "target": "taming.models.vqgan.VQModel"}
        tree = {"model": {"params": {"cond_stage_config": conditions, "first_stage_config": section}}}
    Path("model.yaml").write_text(yaml.safe_dump(tree))
    assert run_here("vqgan", "import", "model.pt", "--config", "model.yaml", "--out", "ours.pt").code == 0
    config = load("ours.pt").config
    assert (config.size, config.attn_resolutions) == (16, (8,))


@pytest.mark.parametrize(
    "change",
    [
        {"ch": 64},
        {"ch_mult": [1, 1]},
        {"n_embed": 25},
        {"embed_dim": 8},
        {"z_channels": 4},
        {"num_res_blocks": 2},
        {"in_channels": 1},
        {"double_z": True},
        {"attn_resolutions": [16]},
        {"resolution": 32},
    ],
)
def test_a_yaml_that_contradicts_the_weights(here, change):
    torch.save(taming_state(), "model.pt")
    Path("model.yaml").write_text(yaml.safe_dump({"model": taming_yaml(**change)}))
    name = "attn_resolutions" if "resolution" in change else next(iter(change))
    outcome = run_here("vqgan", "import", "model.pt", "--config", "model.yaml")
    assert_refused(outcome, 3, "model.yaml", name, "in the YAML", "in the weights")


@pytest.mark.parametrize("text", ["a: [", "just text", "model: {params: {}}", ""])
def test_a_yaml_that_is_none_of_a_vqgan(here, text):
    torch.save(taming_state(), "model.pt")
    Path("model.yaml").write_text(text)
    assert_refused(run_here("vqgan", "import", "model.pt", "--config", "model.yaml"), 3, "model.yaml")


def attention_of_level_0():
    return {name: tensor for name, tensor in taming_state(attn=(0,)).items() if name.startswith("encoder.down.0.attn")}


def without(state, name):
    return {key: state[key] for key in state if key != name}


def changed(state, name, value):
    return {**state, name: value}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda state: {"fc.weight": torch.zeros(10, 4), "layer1.0.conv1.weight": torch.zeros(4)}, ["classifier"]),
        (lambda state: {"transformer.wte.weight": torch.zeros(4, 4)}, ["GPT"]),
        (lambda state: {"state_dict": {"model.diffusion_model.x.weight": torch.zeros(4)}}, ["diffusion"]),
        (lambda state: without(state, "quantize.embedding.weight"), ["without a codebook"]),
        (
            lambda state: {
                **prefixed("first_stage_model.", without(state, "quantize.embedding.weight")),
                "model.diffusion_model.x.weight": torch.zeros(4),
            },
            ["without a codebook"],
        ),
        (
            lambda state: without(state, "decoder.up.0.block.1.conv2.bias"),
            ["decoder.up.0.block.1.conv2.bias is missing"],
        ),
        (lambda state: changed(state, "decoder.extra.weight", torch.zeros(4)), ["decoder.extra.weight", "no place"]),
        (lambda state: changed(state, "decoder.conv_out.bias", torch.zeros(4)), ["decoder.conv_out.bias is 4", "3"]),
        (lambda state: changed(state, "encoder.conv_in.bias", torch.full((32,), torch.nan)), ["conv_in", "not finite"]),
        (
            lambda state: changed(state, "quantize.embedding.weight", torch.zeros(4).expand(2000, 4)),
            ["embedding", "claims"],
        ),
        (
            lambda state: changed(state, "quantize.embedding.weight", torch.zeros(1).expand(10**9, 4)),
            ["embedding", "claims"],
        ),
        (lambda state: {**state, **attention_of_level_0()}, ["decoder.up.0.attn.0", "is missing"]),
        (lambda state: {"a": {"x": state}, "b": dict(state)}, ["several", "a.x, b"]),
        (lambda state: {"epoch": 3}, ["0 tensors"]),
        (lambda state: [1, 2], ["0 tensors"]),
    ],
)
def test_what_is_not_a_vqgan_is_refused(here, make, words):
    torch.save(make(taming_state()), "bad.ckpt")
    for command in (
        ["vqgan", "import", "bad.ckpt"],
        ["tokenize", "--dataset", "digits", "--checkpoint-vae", "bad.ckpt"],
    ):
        assert_refused(run_here(*command), 3, "bad.ckpt", *words)
    assert {path.name for path in here.iterdir()} == {"bad.ckpt"}


def test_sizes_that_an_imported_model_cannot_take(here):
    torch.save(taming_state(image_channels=1, attn=(1,)) | LOSSES, "gz.pt")  # GenerativeZoo: attention at 16 pixels
    command = ["tokenize", "--dataset", "digits", "--checkpoint-vae", "gz.pt", "--dry-run"]
    command += ["--batch-size", "4", "--size"]
    assert run_here(*command, "32").code == 0
    assert_refused(run_here(*command, "33"), 3, "size = 33", "multiple of 2")
    assert_refused(run_here(*command, "0"), 2, "size = 0")
    assert_refused(run_here(*command, "64"), 3, "size = 64", "16 x 16", "level 1", "--size 64")
    assert run_here("vqgan", "import", "gz.pt", "--size", "64", "--out", "gz64.pt").code == 0
    command[4] = "gz64.pt"
    assert run_here(*command, "64").code == 0
    assert_refused(run_here(*command, "32"), 3, "size = 32", "use size 64")


def test_a_model_for_other_images(here):
    torch.save(taming_state(image_channels=3), "rgb.pt")
    assert_refused(run_here("tokenize", "--dataset", "digits", "--checkpoint-vae", "rgb.pt"), 3, "3 channels", "has 1")


def test_import_does_not_replace_what_is_there(here):
    torch.save(taming_state(), "model.pt")
    Path("ours.pt").write_text("mine")
    assert_refused(run_here("vqgan", "import", "model.pt", "--out", "ours.pt"), 2, "ours.pt", "--overwrite")
    assert Path("ours.pt").read_text() == "mine"
    assert run_here("vqgan", "import", "model.pt", "--out", "ours.pt", "--overwrite").code == 0
    assert_refused(run_here("vqgan", "import", "ours.pt", "--out", "again.pt"), 2, "already")
