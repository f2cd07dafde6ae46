"""GPTs and VQ-GANs made to harm: refused with a line that names the file, before anything is allocated or written."""

import copy
import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from tests.test_export_model import save_gpt
from tests.test_vqgan_runs import SMALL
from vqgpt.errors import InputError
from vqgpt.gpt.checkpoint import load_gpt
from vqgpt.storage.checkpoint import save_checkpoint

CPU = torch.device("cpu")
HEAD = ("format", "version", "kind")
NAMES_OF_NOTHING = ["", "..", "../../x", "/tmp/x", "a/b", "a\\b", "-rf", ".x", "x\n", "\x1b[31mx", "x" * 300, "a b"]


def of_architecture(name, value):
    return lambda content: content["architecture"].update({name: value})


def of_options(name, value):
    return lambda content: content["architecture"]["options"].update({name: value})


def of_description(name, value):
    return lambda content: content["cache_description"].update({name: value})


def of_model(name, value):
    return lambda content: content["model"].update({name: value})


def of(name, value):
    return lambda content: content.update({name: value})


WTE = "transformer.wte.weight"
PARTS = ("architecture", "model", "cache_description", "cache_digest", "codebook", "configuration", "figures")
CHANGES = {
    **{f"without {name}": lambda content, name=name: content.pop(name) for name in PARTS},
    **{f"{name} of {value}": of(name, value) for name in PARTS for value in (None, 3, [1])},
    "100,000 layers": of_options("n_layer", 10**5),
    "layers beyond numbers": of_options("n_layer", 10**30),
    "a width beyond memory": of_options("embed_dim_t", 2 * 10**12),
    "a width beyond numbers": of_options("embed_dim_t", 2 * 10**30),
    "a width beyond floats": of_options("embed_dim_t", 2 * 10**400),
    "heads of nothing": of_options("n_head", 0),
    "a dropout beyond floats": of_options("dropout_t", 10**400),
    "a grid beyond memory": of_architecture("grid", [10**9, 10**9]),
    "a grid of nothing": of_architecture("grid", [0, 12]),
    "classes beyond memory": of_architecture("num_classes", 10**12),
    "fewer than no classes": of_architecture("num_classes", -3),
    "no codes": of_architecture("codebook_size", 0),
    "codes beyond memory": of_architecture("codebook_size", 10**12),
    "another field": of_architecture("x", 1),
    "a weight too many": of_model("transformer.x", torch.zeros(1)),
    "a weight of another shape": of_model(WTE, torch.zeros(3, 3)),
    "a weight of whole numbers": of_model(WTE, torch.zeros(17, 16, dtype=torch.int64)),
    "a weight that is no tensor": of_model(WTE, "x"),
    "a weight too few": lambda content: content["model"].pop(WTE),
    "a codebook of another shape": of("codebook", torch.zeros(16, 3)),
    "a codebook of one dimension": of("codebook", torch.zeros(32)),
    "a codebook of other codes": of("codebook", torch.zeros(17, 2)),
    "a codebook of whole numbers": of("codebook", torch.zeros(16, 2, dtype=torch.int64)),
    "a codebook that is not finite": of("codebook", torch.full((16, 2), math.inf)),
    "labels of no class": of("labels_seen", [7]),
    "labels below none": of("labels_seen", [-1]),
    "labels of words": of("labels_seen", ["a"]),
    "labels of half a class": of("labels_seen", [0.5]),
    "labels without a list": of("labels_seen", "a"),
    "a configuration of nothing": of("configuration", {"training": 3}),
    "a share of words": of("configuration", {"training": {"label_dropout": "x"}}),
    "a share beyond all": of("configuration", {"training": {"label_dropout": 7}}),
    "figures of words": of("figures", {"a": "b"}),
    "figures that are not finite": of("figures", {"a": math.nan}),
    "images of nothing": of_description("image_size", [0, 0]),
    "images beyond numbers": of_description("image_size", [10**30, 1]),
    "a description of another grid": of_description("grid", [3, 4]),
    "a description of other codes": of_description("codebook_size", 8),
    "a description of other vectors": of_description("code_dimension", 3),
    "a description of no views": of_description("views", []),
    "a description with another field": of_description("x", 1),
    "a description that is not finite": of_description("val_split", math.nan),
    "preprocessing that is not finite": of_description("preprocessing", {"x": [math.inf]}),
    "a split that is a path": of_description("splits", [{"name": "../x", "rows": 1}]),
    "names that are no text": of_description("class_names", ["\ud800", "b"]),
    "bits without names": lambda content: content["cache_description"].update(label_kind="bits", class_names=[]),
    **{f"a dataset called {name!r:.20}": of_description("dataset", name) for name in NAMES_OF_NOTHING},
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """What a good GPT's file holds, by architecture."""
    folder = tmp_path_factory.mktemp("gpt")
    found = {}
    for arch in ("gpt2", "llama"):
        save_gpt(folder / "g.pt", arch=arch, condition="class")
        found[arch] = torch.load(folder / "g.pt", weights_only=True)
    return found


def save(path, content):
    save_checkpoint(Path(path), "gpt", {name: value for name, value in content.items() if name not in HEAD})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("change", CHANGES)
def test_a_gpt_that_cannot_be_is_refused_by_name(here, contents, change):
    for arch, content in contents.items():
        content = copy.deepcopy(content)
        CHANGES[change](content)
        save("bad.pt", content)
        with pytest.raises(InputError, match=r"^bad\.pt") as refused:
            load_gpt(Path("bad.pt"), CPU)
        assert len(refused.value.message) < 1_000, arch


@pytest.mark.parametrize(
    "change", ["without codebook", "100,000 layers", "images of nothing", "a dataset called '/tmp/x'"]
)
def test_every_command_refuses_it_and_writes_nothing(here, monkeypatch, contents, change):
    Path("some/where").mkdir(parents=True)
    monkeypatch.chdir("some/where")
    write_cache(Path("cache/digits.zarr"), description())
    content = copy.deepcopy(contents["gpt2"])
    CHANGES[change](content)
    save("bad.pt", content)
    before = files_of(here)
    for command in (
        ["sample", "--checkpoint-gpt", "bad.pt", "-q"],
        ["score", "cache/digits.zarr", "--checkpoint-gpt", "bad.pt", "-q"],
        ["export", "x", "--checkpoint-gpt", "bad.pt"],
        ["export", "x.safetensors", "--to", "safetensors", "--checkpoint-gpt", "bad.pt"],
        [
            "train",
            "--cache",
            "cache/digits.zarr",
            "--condition",
            "class",
            *TINY_GPT,
            "--checkpoint-gpt",
            "bad.pt",
            "-q",
        ],
    ):
        assert_refused(run_here(*command), 3, "bad.pt")
    assert files_of(here) == before


def test_a_good_gpt_is_read_from_either_kind_of_file(here, contents):
    for arch, content in contents.items():
        for name in ("good.pt", "good.safetensors"):
            save(name, content)
            gpt = load_gpt(Path(name), CPU)
            assert gpt.description == description(), arch
            assert all(torch.equal(value, content["model"][key]) for key, value in gpt.model.state_dict().items())


METADATA = {
    "NaN": lambda text: text.replace('"loss": 1.0', '"loss": NaN'),
    "infinity": lambda text: text.replace('"loss": 1.0', '"loss": 1e999'),
    "a key twice": lambda text: text.replace('"loss": 1.0', '"loss": 1.0, "loss": 1.0'),
    "half a letter": lambda text: text.replace('"digits"', '"\\ud800"'),
    "a list": lambda text: "[]",
    "lists in lists": lambda text: "[" * 100_000,
    "dicts in dicts": lambda text: text.replace('"loss": 1.0', f'"loss": {"[" * 500}{"]" * 500}'),
    "nothing": lambda text: "{}",
    "no digest": lambda text: text.replace('"sha256"', '"sha"'),
}


@pytest.mark.parametrize("change", METADATA)
def test_metadata_of_a_safetensors_file_that_cannot_be_are_refused(here, contents, change):
    save("good.safetensors", contents["gpt2"])
    tensors = safetensors.torch.load_file("good.safetensors")
    with safetensors.safe_open("good.safetensors", "pt") as file:
        text = file.metadata()["vqgpt"]
    assert METADATA[change](text) != text
    safetensors.torch.save_file(tensors, "bad.safetensors", {"vqgpt": METADATA[change](text)})
    with pytest.raises(InputError, match=r"^bad\.safetensors"):
        load_gpt(Path("bad.safetensors"), CPU)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"x": entry()}, 9),
        ({"x": entry()}, 7),
        ({"x": entry(offsets=(0, 9))}, 9),
        ({"x": entry(offsets=(4, 12))}, 12),
        ({"x": entry(), "y": entry()}, 8),
        ({"x": entry(offsets=(-8, 0))}, 8),
        ({"x": entry(offsets=(0.0, 8.0))}, 8),
        ({"x": entry(shape=(), dtype="U8", offsets=(False, True))}, 1),
        ({"x": entry(shape=[2**62, 2**62], offsets=(0, 8))}, 8),
        ({"x": entry(shape=[1] * 100 + [2])}, 8),
        ({"x": entry(shape=[2.0])}, 8),
        ({"x": entry(shape=["2"])}, 8),
        ({"x": entry(dtype="F99")}, 8),
        ({"x": [1]}, 0),
        ({"__metadata__": {"vqgpt": 3}}, 0),
        ([1], 0),
    ],
)
def test_a_header_of_a_safetensors_file_that_cannot_be_is_refused(here, header, size):
    text = json.dumps(header).encode()
    Path("bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    assert_refused(run_here("vqgan", "info", "bad.safetensors"), 3, "bad.safetensors is not a safetensors file")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", -16),
        ("size", 10**30),
        ("dropout", 7.0),
        ("dropout", math.nan),
        ("used_codes", -3),
        ("used_codes", 10**12),
        ("embed_dim", 10**30),
        ("z_channels", 10**12),
        ("ch_mult", [10**30, 1]),
        ("image_channels", 2**63),
        ("num_res_blocks", 10**6),
        ("attn_levels", [10**9]),
        ("lookup", ["nearest"]),
    ],
)
def test_a_vqgan_that_cannot_be_is_refused_by_name(pipeline, field, value):
    content = torch.load("runs/digits/vqgan.pt", weights_only=True)
    content["architecture"][field] = value
    torch.save(content, "bad.pt")
    for command in (["vqgan", "info", "bad.pt"], ["tokenize", "--dataset", "digits", "--checkpoint-vae", "bad.pt"]):
        assert_refused(run_here(*command), 3, "bad.pt")


@pytest.mark.parametrize("kind", ["gpt", "vqgan"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("identity"),
        lambda content: content.pop("state"),
        lambda content: content.update(state=[]),
        lambda content: content["state"].pop("step"),
        lambda content: content["state"].update(step="1"),
        lambda content: content["state"].update(step=-1),
        lambda content: content["state"].update(training=3),
        lambda content: content["state"].update(losses=3),
        lambda content: content["state"].update(losses=["1"]),
        lambda content: content["state"].pop("losses"),
        lambda content: content["state"].pop("training"),
        lambda content: content["state"].update(unvalidated=3),
        lambda content: content["state"].update(unvalidated={"loss": 1.0}),
        lambda content: content["state"].update(unvalidated={"step": 2, "loss": 1.0}),
        lambda content: content["state"].update(unvalidated={"step": 1, "loss": []}),
    ],
)
def test_an_unfinished_state_that_lacks_parts_is_refused_by_name(here, kind, change):
    write_cache(Path("a.zarr"), description())
    begin = {
        "gpt": ["train", "--cache", "a.zarr", *TINY_GPT],
        "vqgan": ["vqgan", "train", "--dataset", "digits", *SMALL],
    }
    content = {
        "identity": {},
        "state": {"step": 1, "ended": False, "losses": [], "best": 0.0, "worse": 0, "training": {}},
    }
    Path("s").mkdir()
    change(content)
    save_checkpoint(Path("s/x.unfinished.pt"), f"{kind} training", content)
    assert_refused(run_here(*begin[kind], "--out", "s/x.pt", "-q"), 3, "s/x.unfinished.pt lacks parts")
