"""VQModels of diffusers: the codes and images of its own code; a folder that does not fit together is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests import peer_goldens
from tests.conftest import assert_refused, files_of, run_here
from tests.test_peer_goldens import assert_equals_golden, assert_same_after_import
from vqgpt.vqgan.checkpoint import open_vqgan

SAFETENSORS, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def save_folder(folder, golden, weights=SAFETENSORS, state=None, without=(), **changes):
    """A folder as `save_pretrained` leaves it, with a changed config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads(golden.config) | changes
    kept = {name: value for name, value in description.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(kept))
    state = state or golden.state
    if weights == SAFETENSORS:
        safetensors.torch.save_file(state, folder / weights, {"format": "pt"})
    else:
        torch.save(state, folder / weights)
    return folder


@pytest.mark.parametrize("weights", [SAFETENSORS, BIN])
@pytest.mark.parametrize("name", ["attention", "plain"])
def test_a_folder(here, name, weights):
    golden = peer_goldens.load(f"diffusers-{name}")
    folder = save_folder(Path("vq"), golden, weights)
    before = files_of(folder)
    model = assert_same_after_import("vq", golden)
    assert files_of(folder) == before
    assert model.config.attn_levels == ((1,) if name == "attention" else ())
    assert model.config.mid_attention == (name == "attention")
    assert open_vqgan(folder, "x").family == "diffusers"
    assert_equals_golden(folder / weights, golden)
    outcome = run_here("vqgan", "info", "vq", "--json")
    assert (outcome.code, outcome.json["bytes"]) == (0, (folder / weights).stat().st_size)


def test_a_pipelines_folder(here):
    golden = peer_goldens.load("diffusers-plain")
    save_folder(Path("pipeline/vqvae"), golden)
    save_folder(Path("pipeline/unet"), golden, _class_name="UNet2DModel")
    Path("pipeline/model_index.json").write_text(json.dumps({"_class_name": "LDMPipeline"}))
    assert_same_after_import("pipeline", golden)
    encoding = ["tokenize", "--dataset", "digits", "--checkpoint-vae", "pipeline", "--limit", "20", "--size", "16"]
    outcome = run_here(*encoding, "--image-channels", "3")
    assert outcome.code == 0, outcome.err
    outcome = run_here("render", "cache/digits.zarr", "--checkpoint-vae", "pipeline", "--limit", "2", "--out", "x.png")
    assert outcome.code == 0, outcome.err


def test_attention_under_its_older_names(here):
    golden = peer_goldens.load("diffusers-attention")
    state = golden.state
    for new, old in OLD_ATTENTION.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    assert set(state) != set(golden.state)
    assert_equals_golden(save_folder(Path("vq"), golden, state=state), golden)


def test_attention_under_both_names(here):
    golden = peer_goldens.load("diffusers-attention")
    state = golden.state | {"encoder.mid_block.attentions.0.query.weight": torch.zeros(64, 64)}
    save_folder(Path("vq"), golden, state=state)
    assert_refused(run_here("vqgan", "info", "vq"), 3, f"vq/{SAFETENSORS}", "under two names")


def test_the_current_folder(here, monkeypatch):
    golden = peer_goldens.load("diffusers-plain")
    monkeypatch.chdir(save_folder(Path("vq"), golden))
    assert run_here("vqgan", "import", ".").code == 0
    assert_equals_golden("runs/vq/vqgan.pt", golden)


def test_what_an_older_config_leaves_out(here):
    golden = peer_goldens.load("diffusers-attention")
    left_out = ["norm_type", "mid_block_add_attention", "lookup_from_codebook", "force_upcast", "_class_name", "act_fn"]
    assert_equals_golden(save_folder(Path("vq"), golden, without=left_out), golden)
    golden = peer_goldens.load("diffusers-plain")
    assert json.loads(golden.config)["vq_embed_dim"] is None
    assert_equals_golden(save_folder(Path("plain"), golden), golden)


def test_safetensors_come_first_as_at_home(here):
    golden = peer_goldens.load("diffusers-plain")
    save_folder(Path("vq"), golden, BIN, state={name: tensor + 1 for name, tensor in golden.state.items()})
    assert_equals_golden(save_folder(Path("vq"), golden), golden)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_out_channels": [32, 32, 32]}, ["block_out_channels: [32, 32, 32]", "[32, 32, 64] in the weights"]),
        ({"layers_per_block": 1}, ["layers_per_block: 1"]),
        ({"latent_channels": 4}, ["latent_channels: 4", "vq_embed_dim: 4"]),
        ({"vq_embed_dim": 4}, ["vq_embed_dim: 4 in config.json, 8 in the weights"]),
        ({"num_vq_embeddings": 10**30}, ["num_vq_embeddings: 1000", "24 in the weights"]),
        ({"in_channels": "3"}, ["in_channels: '3'"]),
        ({"out_channels": None}, ["out_channels: None"]),
        ({"mid_block_add_attention": True}, ["mid_block_add_attention: True"]),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "x"]}, ["down_block_types", "Attn"]),
        ({"up_block_types": {"a": [1] * 1000}}, ["up_block_types: {'a': [1, 1"]),
        ({"norm_type": "spatial"}, ["norm_type is 'spatial'", "group"]),
        ({"norm_num_groups": 16}, ["norm_num_groups is 16", "32"]),
        ({"norm_num_groups": [32]}, ["norm_num_groups is [32]"]),
        ({"act_fn": "gelu"}, ["act_fn is 'gelu'", "silu or swish"]),
        ({"_class_name": "AutoencoderKL"}, ["describes 'AutoencoderKL', not a VQModel"]),
    ],
)
def test_a_config_that_is_not_of_these_weights(here, change, words):
    save_folder(Path("vq"), peer_goldens.load("diffusers-plain"), **change)
    assert_refused(run_here("vqgan", "import", "vq", "--out", "ours.pt"), 3, "vq/config.json", *words)
    assert not Path("ours.pt").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"VQModel"', '{"norm_type": NaN}', '{"a": 1, "a": 2}', "[" * 10**5, "x" * (2**20 + 1)]
)
def test_a_config_that_is_none(here, text):
    save_folder(Path("vq"), peer_goldens.load("diffusers-plain"))
    Path("vq/config.json").write_text(text)
    assert_refused(run_here("vqgan", "info", "vq"), 3, "vq/config.json")


def test_half_a_folder(here):
    golden = peer_goldens.load("diffusers-plain")
    save_folder(Path("vq"), golden)
    shutil.copytree("vq", "alone")
    Path("vq", SAFETENSORS).unlink()
    assert_refused(run_here("vqgan", "info", "vq"), 4, "vq has a config.json and no weights", SAFETENSORS, BIN)
    Path("alone/config.json").unlink()
    for path in ("alone", f"alone/{SAFETENSORS}"):
        assert_refused(run_here("vqgan", "info", path), 4, "there is no alone/config.json", SAFETENSORS)
    Path("empty").mkdir()
    assert_refused(run_here("vqgan", "info", "empty"), 3, "empty is a folder", "config.json")
    os.mkfifo("alone/config.json")
    assert_refused(run_here("vqgan", "info", "alone"), 3, "alone/config.json is a pipe")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"decoder.up_blocks.0.x.weight": torch.zeros(1)}, ["decoder.up.2.x.weight", "no place"]),
        (lambda state: state | {f"decoder.up_blocks.{'9' * 5000}.x": torch.zeros(1)}, ["has no place"]),
        (lambda state: state | {"decoder.up_blocks.9999.x": torch.zeros(1)}, ["is missing"]),
        (lambda state: {key: state[key] for key in state if "quantize" not in key}, ["without a codebook"]),
        (lambda state: state | {"quantize.embedding.weight": torch.zeros(24, 5)}, ["quant_conv.weight"]),
        (lambda state: state | {"encoder.conv_in.weight": torch.zeros(32)}, ["encoder.conv_in.weight is 32"]),
        (
            lambda state: state | {"encoder.down_blocks.1.resnets.0.conv1.weight": torch.zeros(48, 32, 3, 3)},
            ["32, 48, 64 wide"],
        ),
    ],
)
def test_weights_that_do_not_fit_together(here, change, words):
    golden = peer_goldens.load("diffusers-plain")
    save_folder(Path("vq"), golden, state=change(golden.state))
    assert_refused(run_here("vqgan", "info", "vq"), 3, f"vq/{SAFETENSORS}", *words)


def test_a_header_that_claims_more_than_there_is(here):
    golden = peer_goldens.load("diffusers-plain")
    save_folder(Path("vq"), golden)
    data = Path("vq", SAFETENSORS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["quantize.embedding.weight"]["shape"] = [2**40, 8]
    text = json.dumps(header).encode()
    Path("vq", SAFETENSORS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert_refused(run_here("vqgan", "info", "vq"), 3, f"vq/{SAFETENSORS}")
    torch.save(golden.state | {"quantize.embedding.weight": torch.zeros(1).expand(10**9, 8)}, Path("vq", BIN))
    Path("vq", SAFETENSORS).unlink()
    assert_refused(run_here("vqgan", "info", "vq"), 3, f"vq/{BIN}", "claims more")
