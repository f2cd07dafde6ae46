"""The library: the lines of the README do what the commands do, and nothing heavy is imported before it is needed."""

import dataclasses
import importlib
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqgpt
from tests.conftest import TINY_VQGAN, run_here
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.codec import one_line

README = Path(__file__).parent.parent / "README.md"
SMALL_VQGAN = {"size": 16, "channels": 32, "z_channels": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "n_embed": 16}
SMALL_VQGAN |= {"embed_dim": 4, "attn_resolutions": (8,), "limit": 32, "batch_size": 16, "n_epochs": 1}


def test_the_five_lines_of_the_readme_do_what_the_commands_do(pipeline):
    lines = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(lines.strip().splitlines()) == 5
    namespace: dict = {}
    exec(lines, namespace)
    words = ["--class", "3", "7", "--num-samples", "20", "--temperature", "0.8", "--out", "s.zarr"]
    assert run_here("sample", *words).code == 0
    drawn = vqgpt.TokenCache(Path("s.zarr")).read_split("samples").codes[:, 0]
    np.testing.assert_array_equal(namespace["codes"], drawn)
    assert namespace["images"].shape == (20, 1, 16, 16)
    with Image.open("threes-and-sevens.png") as ours, Image.open("s.png") as theirs:
        assert ours.width == theirs.width


def test_options_are_those_of_the_command(pipeline):
    gpt = vqgpt.load_gpt("runs/digits/gpt.pt")
    codes = gpt.sample(num_samples=3, seed=5, top_k=7, min_p=0.01, cfg_scale=2.0, cfg_schedule="linear")
    words = ["--num-samples", "3", "--seed", "5", "--top-k", "7", "--min-p", "0.01"]
    words += ["--cfg-scale", "2", "--cfg-schedule", "linear", "--tokens-only", "--out", "s.zarr"]
    assert run_here("sample", *words).code == 0
    np.testing.assert_array_equal(codes, vqgpt.TokenCache(Path("s.zarr")).read_split("samples").codes[:, 0])
    unconditional = replace(gpt, gpt=replace(gpt.gpt, label_dropout=0))
    with pytest.raises(UsageError, match="label-dropout"):
        unconditional.sample(cfg_scale=2.0)
    with pytest.raises(UsageError, match="label-dropout"):
        unconditional.sample(classes=["none"])


def test_classes_are_names_and_whole_numbers(pipeline):
    gpt = vqgpt.load_gpt("runs/digits/gpt.pt")
    expected = gpt.sample(num_samples=2, classes=["name:3", "name:7"])
    for classes in ([3, 7], (np.int8(3), "7"), np.array([3, 7]), range(3, 8, 4)):
        np.testing.assert_array_equal(gpt.sample(num_samples=2, classes=classes), expected)
    for classes in ("37", 3, [True], [np.True_], [3.0], [None], [[3]], [b"3"], [-5], [10]):
        with pytest.raises(UsageError, match="class"):
            gpt.sample(num_samples=2, classes=classes)


def test_scores_are_those_of_the_command(pipeline):
    gpt = vqgpt.load_gpt("runs/digits/gpt.pt")
    tokens = vqgpt.TokenCache("runs/digits/samples.zarr").read_split("samples")
    assert run_here("score", "runs/digits/samples.zarr", "--out", "s.npz").code == 0
    with np.load("s.npz", allow_pickle=False) as scores:
        np.testing.assert_allclose(gpt.score(tokens.codes[:, 0], tokens.labels), scores["bits_per_token"], atol=1e-6)
    assert gpt.score(tokens.codes[:3, 0]).shape == (3,)
    assert gpt.class_names == tuple(map(str, range(10)))
    with pytest.raises(UsageError, match="shape"):
        gpt.score(tokens.codes)


def test_encoding_gives_the_codes_of_the_cache(pipeline):
    vqgan = vqgpt.load_vqgan("runs/digits/vqgan.pt")
    codes = vqgpt.TokenCache(Path("cache/digits.zarr")).read_split("test").codes[:20, 0]
    images = vqgan.decode(codes)
    again = vqgan.encode(images)
    assert again.shape == codes.shape
    assert vqgan.sha256 == vqgpt.load_gpt("runs/digits/gpt.pt").description.tokenizer_sha256


def test_mistakes_raise_our_errors(pipeline):
    gpt = vqgpt.load_gpt("runs/digits/gpt.pt")
    for wrong in (
        {"classes": ["seven"]},
        {"temperature": -1},
        {"num_samples": 0},
        {"top_k": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"precision": "fp16"},
    ):
        with pytest.raises(UsageError):
            gpt.sample(**wrong)
    grids = np.zeros((2, 8, 8), np.int64)
    for codes, labels in (
        (grids + 16, None),
        (grids - 1, None),
        (grids, np.array([0, 10])),
        (grids, np.array([-2, 0])),
    ):
        with pytest.raises(UsageError, match="used"):
            gpt.score(codes, labels)
    with pytest.raises(TypeError, match="temprature"):
        gpt.sample(temprature=1)
    with pytest.raises(MissingDataError):
        vqgpt.load_gpt("none.pt")
    with pytest.raises(InputError, match="not of a gpt"):
        vqgpt.load_gpt("runs/digits/vqgan.pt")
    assert run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--seed", "1", "--out", "o.pt").code == 0
    with pytest.raises(InputError, match="another VQ-GAN"):
        vqgpt.load_vqgan("o.pt", tokens_of=gpt)
    with pytest.raises(UsageError, match="decoded"):
        vqgpt.load_vqgan("o.pt").decode(np.full((1, 8, 8), 16))
    images = np.zeros((2, 1, 16, 16), np.uint8)
    for unfit in (images[0], images[:0], images.repeat(3, axis=1), images[..., :15], images.astype(np.float32)):
        with pytest.raises(UsageError, match="encoded"):
            vqgpt.load_vqgan("o.pt").encode(unfit)
    with pytest.raises(AttributeError, match="load_gtp"):
        vqgpt.load_gtp  # noqa: B018


def test_import_needs_no_torch_and_a_gpt_no_vqgan(pipeline):
    code = """
import sys, vqgpt
assert "torch" not in sys.modules
for name in ("PIL", "torchvision", "vqgpt.vqgan.model", "vqgpt.data.images"):
    sys.modules[name] = None
codes = vqgpt.load_gpt("runs/digits/gpt.pt").sample(num_samples=3)
assert codes.shape == (3, 8, 8)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_loaded_says_on_one_line_what_it_is(pipeline):
    gpt, vqgan = vqgpt.load_gpt("runs/digits/gpt.pt"), vqgpt.load_vqgan("runs/digits/vqgan.pt")
    cache = vqgpt.TokenCache(Path("cache/digits.zarr"))
    tokens = cache.read_split("test")
    for thing, words in (
        (gpt, ["Generator(runs/digits/gpt.pt: GPT of ", " parameters on cpu, grid 8 x 8 of 16 codes, 10 classes)"]),
        (vqgan, ["Tokenizer(VQ-GAN of ", " parameters on cpu, images of 1 channel, 16 codes of 2 x 2 pixels)"]),
        (cache, ["TokenCache(cache/digits.zarr: digits, encoded, 1,433 train + 364 test rows, grid 8 x 8, 16 codes)"]),
        (gpt.gpt, ["LoadedGPT(model=GPT of ", "codebook=torch.float32 (16, 4)"]),
        (tokens, ["SplitTokens(codes=uint8 (364, 1, 8, 8), labels=int64 (364,), ", "log_prob=None)"]),
        (cache.manifest, ["Manifest("]),
    ):
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 2000
        assert all(word in repr(thing) for word in words), repr(thing)


def types_of(holder) -> list[str]:
    return [str(item.type) for item in dataclasses.fields(holder) if "Callable" not in str(item.type)]


def test_no_dataclass_prints_the_arrays_that_it_holds():
    arrays = re.compile(r"ndarray|Tensor\b|StoredTensor|vqgpt\.gpt\.model|VQGAN\b")
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(vqgpt.__path__, "vqgpt.")]
    holders = {
        thing
        for module in modules
        for thing in vars(module).values()
        if dataclasses.is_dataclass(thing) and any(map(arrays.search, types_of(thing)))
    }
    assert len(holders) > 10
    assert {holder for holder in holders if holder.__repr__ is not one_line} == {vqgpt.Tokenizer}


def test_the_package_shows_its_public_names_alone():
    things = ["Generator", "TokenCache", "Tokenizer", "contact_sheet", "load_gpt", "load_vqgan"]
    assert dir(vqgpt) == [*things, "tokenize", "train", "train_vqgan"]
    namespace: dict = {}
    exec("from vqgpt import *", namespace)
    assert set(dir(vqgpt)) == namespace.keys() - {"__builtins__"}


def test_the_whole_way_in_python_is_that_of_the_commands(pipeline, capsys):
    options = {"checkpoint_vae": "runs/digits/vqgan.pt", "cache": "p.zarr"}
    cache = vqgpt.tokenize(dataset="digits", size=16, limit=64, **options)
    assert run_here("tokenize", "--dataset", "digits", "--limit", "64", "--cache", "c.zarr", "-q").code == 0
    assert cache.digest == vqgpt.TokenCache(Path("c.zarr")).digest
    told = capsys.readouterr().err
    assert "tokenize: " in told
    assert told.endswith("\n")
    events = []
    sizes = {"n_layer": 1, "n_head": 2, "embed_dim_t": 16, "n_epochs": 1}
    gpt = vqgpt.train(cache=cache.path, out="p.pt", progress=events.append, **sizes)
    assert gpt.sample(num_samples=2).shape == (2, 8, 8)
    assert any(getattr(event, "task", "") == "gpt" for event in events)
    with pytest.raises(UsageError, match=r"p\.pt"):
        vqgpt.train(cache=cache.path, out="p.pt", progress=events.append, **sizes)
    with pytest.raises(UsageError, match="n_layers"):
        vqgpt.train(n_layers=1)
    vqgan = vqgpt.train_vqgan(dataset="digits", out="v.pt", progress=events.append, **SMALL_VQGAN)
    images = vqgan.decode(cache.read_split("test").codes[:2, 0])
    assert vqgpt.contact_sheet(images)._repr_png_().startswith(b"\x89PNG")
