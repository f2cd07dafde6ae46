"""Manifests with digests that hold and one value that cannot be: each command reads the cache or refuses it."""

import functools
import shutil
from pathlib import Path

import pytest

from tests.conftest import assert_refused, description, run_here, write_cache
from tests.test_hostile_caches import load, sign
from vqgpt.api.options import SourceOptions
from vqgpt.api.sources import sample_config, tokenize_config
from vqgpt.errors import InputError
from vqgpt.tokens import read_manifest

SAMPLING = {"classes": [0, 1], "prompts": [], "seed": 0, "temperature": 1.0, "num_samples": 40, "log_prob": False}
WITHOUT = object()


def change(path: Path, place: tuple, value: object) -> None:
    """Put a value in a place of the manifest, or take it out, and sign it again."""
    manifest = load(path)
    node = manifest
    for key in place[:-1]:
        node = node[key]
    if value is WITHOUT:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    sign(path, manifest)


def nested(levels: int) -> list:
    """Lists inside one another."""
    return functools.reduce(lambda inner, _: [inner], range(levels), [])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One cache of each kind, small."""
    return write_each_kind(tmp_path_factory.mktemp("sound"))


def write_each_kind(folder: Path) -> Path:
    for kind in ("class", "bits"):
        write_cache(folder / f"encoded-{kind}.zarr", description((40, 5), label_kind=kind))
        sampling = {**SAMPLING, "classes": [[1, -1], [0, 1]] if kind == "bits" else [0, 1]}
        what = description((40, 5), label_kind=kind, origin="sampled", sampling=sampling)
        write_cache(folder / f"sampled-{kind}.zarr", what)
    return folder


@pytest.fixture
def caches(sound, here):
    """Copies of them, in the folder where `cache list` looks."""
    return shutil.copytree(sound, here / "cache")


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("encoded-bits", ("class_names",), []),
        ("encoded-class", ("class_names",), ["x" * 10**6, "b"]),
        ("encoded-class", ("image_size",), [0, 0]),
        ("encoded-class", ("image_size",), [2**39, 2**39]),
        ("encoded-class", ("image_channels",), 2**39),
        ("encoded-class", ("grid",), [10**400, 10**400]),
        ("encoded-class", ("shard_rows",), 10**400),
        ("encoded-class", ("val_split",), 7.0),
        ("encoded-class", ("preprocessing",), {"rule": ["x"]}),
        ("encoded-class", ("preprocessing",), {"fit": 7}),
        ("encoded-class", ("preprocessing",), {"background": {}}),
        ("encoded-class", ("preprocessing",), {"unverified": "all"}),
        ("encoded-class", ("sampling",), {"classes": [0]}),
        ("sampled-bits", ("sampling",), {}),
        ("sampled-bits", ("sampling", "classes"), [0, 1]),
        ("sampled-bits", ("sampling", "classes"), [[1]]),
        ("sampled-bits", ("sampling", "classes"), [[1, 2]]),
        ("sampled-class", ("sampling", "temperature"), 10**400),
        ("sampled-class", ("sampling", "note"), nested(500)),
        ("encoded-class", ("preprocessing",), {"rule": "x", "note": nested(700)}),
        ("encoded-class", ("splits",), [{"name": f"s{number}", "rows": 0} for number in range(5_000)]),
        ("sampled-class", ("sampling", "classes"), []),
        ("sampled-class", ("sampling", "classes"), [10**30]),
        ("sampled-class", ("sampling", "classes"), [2]),
        ("sampled-class", ("sampling", "classes"), {"0": 1}),
        ("sampled-class", ("sampling", "prompts"), 7),
        ("sampled-class", ("sampling", "prompts"), [[[1, 2], [3]]]),
        ("sampled-class", ("sampling", "prompts"), [[[16] * 3] * 4]),
    ],
)
def test_what_cannot_be_is_refused(caches, kind, place, value):
    path = caches / f"{kind}.zarr"
    change(path, ("description", *place), value)
    with pytest.raises(InputError, match=f"{kind}.zarr: the manifest holds |zarr.json is damaged"):
        read_manifest(path)


def test_a_dataset_that_we_do_not_know_is_neither_repaired_nor_compared_with(pipeline):
    path = pipeline / "cache/digits.zarr"
    change(path, ("description", "dataset"), "unheard-of")
    assert_refused(run_here("cache", "verify", str(path), "--repair"), 3, str(path), "'unheard-of'")
    looked_at = run_here("cache", "preview", str(path), "--checkpoint-vae", "runs/digits/vqgan.pt", "--out", "p.png")
    assert looked_at.code == 0, looked_at.err
    assert "'unheard-of' is a dataset that this vqgpt does not know" in looked_at.err


def test_a_listing_shows_what_is_wrong_with_one_cache_and_goes_on(caches):
    change(caches / "encoded-bits.zarr", ("description", "class_names"), [])
    change(caches / "sampled-bits.zarr", ("description", "sampling"), {})
    (caches / "a.zarr").mkdir()
    (caches / "a.zarr/zarr.json").symlink_to("zarr.json")
    (caches / "b.zarr/zarr.json").mkdir(parents=True)
    listed = run_here("cache", "list", "--json")
    assert listed.code == 0, listed.err
    status = {name: cache["status"] for name, cache in listed.json.items()}
    assert "bits without names" in status["encoded-bits.zarr"]
    assert "without the bits they were drawn for" in status["sampled-bits.zarr"]
    assert status["encoded-class.zarr"] == status["sampled-class.zarr"] == "complete"
    assert_refused(run_here("cache", "info", "cache/encoded-bits.zarr"), 3, "bits without names")


@pytest.mark.parametrize(
    "statistics",
    [
        {"used_codes": -1},
        {"used_codes": 10**30},
        {"perplexity": -1.0},
        {"perplexity": 1e300},
        {"histogram": [-1] * 16},
        {"histogram": [10**30] * 16},
    ],
)
def test_statistics_that_cannot_be(caches, statistics):
    path = caches / "encoded-class.zarr"
    for name, value in statistics.items():
        change(path, ("statistics", "train", name), value)
    with pytest.raises(InputError, match="of train that cannot be"):
        read_manifest(path)


@pytest.mark.parametrize("command", [["cache", "preview"], ["render"]])
def test_images_larger_than_the_codes_make_are_refused_before_any_is_prepared(pipeline, command):
    change(pipeline / "cache/digits.zarr", ("description", "image_size"), [65536, 65536])
    outcome = run_here(*command, "cache/digits.zarr", "--out", "p.png", "-q")
    assert_refused(outcome, 3, "65536 x 65536 pixels", "makes 16 x 16")


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("encoded-class", ("preprocessing",), {"rule": "x", "fit": "squeeze"}),
        ("encoded-class", ("preprocessing",), {"rule": "x", "background": "no color"}),
        ("encoded-class", ("precision",), "fp7"),
        ("encoded-class", ("views",), ["upside-down"]),
        ("encoded-class", ("views",), ["identity\n"]),
        ("encoded-class", ("image_channels",), 5),
        ("sampled-class", ("sampling", "temperature"), -1.0),
        ("sampled-class", ("sampling", "top_k"), "many"),
        ("sampled-class", ("sampling", "seed"), [1]),
        ("sampled-class", ("sampling", "classes"), WITHOUT),
    ],
)
def test_settings_that_no_command_has_are_read_and_not_repaired(caches, kind, place, value):
    path = caches / f"{kind}.zarr"
    change(path, ("description", *place), value)
    what, sources = read_manifest(path).description, SourceOptions()
    ways = {
        "encoded": lambda: tokenize_config(path, what, sources),
        "sampled": lambda: sample_config(path, what, sources, None),
    }
    with pytest.raises(InputError, match=r"settings that it records|does not record"):
        ways[what.origin]()
