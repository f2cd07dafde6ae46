"""`vqgpt cache export`: what numpy, tarfile and struct read back is what is in the cache."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import assert_refused, description, files_of, run_here, write_cache
from vqgpt.options.codec import to_json
from vqgpt.tokens import TokenCache

ARRAYS = ("codes", "labels", "source_index")
VARIANTS = {
    "bytes": description(),
    "views": description(codebook_size=1000, views=("identity", "hflip")),
    "bits": description(label_kind="bits", class_names=("a", "b", "c")),
    "unlabelled": description(codebook_size=2**16, label_kind="none"),
}


@pytest.fixture(params=VARIANTS)
def cache(request, here):
    return TokenCache(write_cache(Path("a.zarr"), VARIANTS[request.param]))


def export(form, *more):
    outcome = run_here("cache", "export", "a.zarr", "--format", form, "--json", *more)
    assert outcome.code == 0, outcome.err
    return outcome.json


def test_npy(cache):
    result = export("npy")
    assert result["rows"] == 130
    assert sorted(path.name for path in Path("a-npy").iterdir()) == result["files"]
    for split in ("train", "test"):
        expected = cache.read_split(split)
        for name in ARRAYS:
            found = np.load(f"a-npy/{split}_{name}.npy", allow_pickle=False, mmap_mode="r")
            assert found.dtype == getattr(expected, name).dtype
            np.testing.assert_array_equal(found, getattr(expected, name))
    np.testing.assert_array_equal(np.load("a-npy/codebook.npy", allow_pickle=False), cache.codebook())
    about = json.loads(Path("a-npy/about.json").read_text())
    assert about["cache_digest"] == cache.digest
    assert about["description"] == to_json(cache.description)
    assert about["splits"] == {"train": 100, "test": 30}


def test_npz(cache):
    assert export("npz")["files"] == ["a.npz"]
    with np.load("a.npz", allow_pickle=False) as arrays:
        names = {f"{split}_{name}" for split in ("train", "test") for name in ARRAYS}
        assert set(arrays) == {*names, "codebook", "about"}
        for split in ("train", "test"):
            for name in ARRAYS:
                np.testing.assert_array_equal(arrays[f"{split}_{name}"], getattr(cache.read_split(split), name))
        np.testing.assert_array_equal(arrays["codebook"], cache.codebook())
        assert json.loads(str(arrays["about"]))["cache_digest"] == cache.digest


def test_bin_is_what_nanogpt_reads(cache):
    export("bin")
    for split in ("train", "test"):
        expected = cache.read_split(split)
        data = Path(f"a-bin/{split}.bin").read_bytes()
        assert list(struct.unpack(f"<{len(data) // 2}H", data)) == expected.codes.reshape(-1).tolist()
        np.testing.assert_array_equal(np.load(f"a-bin/{split}_labels.npy"), expected.labels)
    about = json.loads(Path("a-bin/about.json").read_text())
    assert about["vocab_size"] == cache.description.codebook_size
    views, height, width = about["views_height_width"]
    assert len(data) == 30 * 2 * views * height * width


def test_webdataset(cache):
    files = export("webdataset")["files"]
    for split, shards in (("train", 4), ("test", 1)):
        names = [f"{split}-{index:06d}.tar" for index in range(shards)]
        assert [name for name in files if name.startswith(split)] == names
        expected = cache.read_split(split)
        row = 0
        for name in names:
            with tarfile.open(f"a-webdataset/{name}") as archive:
                members = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
                assert {member.mtime for member in archive.getmembers()} == {0}
            if cache.description.label_kind == "none":
                assert all(member.endswith(".codes.npy") for member in members)
            keys = list(dict.fromkeys(member.split(".")[0] for member in members))
            for key in keys:
                assert key == f"{split}-{row:09d}"
                codes = np.load(io.BytesIO(members[f"{key}.codes.npy"]), allow_pickle=False)
                np.testing.assert_array_equal(codes, expected.codes[row])
                if cache.description.label_kind == "class":
                    assert int(members[f"{key}.cls"]) == expected.labels[row]
                elif cache.description.label_kind == "bits":
                    labels = np.load(io.BytesIO(members[f"{key}.labels.npy"]), allow_pickle=False)
                    np.testing.assert_array_equal(labels, expected.labels[row])
                row += 1
        assert row == len(expected.codes)


@pytest.mark.parametrize("form", ["npy", "npz", "bin", "webdataset"])
def test_equal_exports_are_equal_and_nothing_is_replaced_unless_asked_for(here, form):
    write_cache(Path("a.zarr"), description())
    export(form, "--out", f"x{'.npz' if form == 'npz' else ''}")
    before = files_of(here)
    out = "x.npz" if form == "npz" else "x"
    words = ["cache", "export", "a.zarr", "--format", form, "--out", out]
    assert_refused(run_here(*words, "-q"), 2, f"{out} exists", "--overwrite")
    export(form, "--out", out, "--dry-run", "--overwrite")
    assert files_of(here) == before
    export(form, "--out", out, "--overwrite")
    assert files_of(here) == before


def test_a_folder_that_holds_other_files_is_refused_even_with_overwrite(here):
    write_cache(Path("a.zarr"), description())
    export("webdataset")
    Path("a-webdataset/train-000004.tar").write_bytes(b"of a larger cache")
    before = files_of(here)
    words = ["cache", "export", "a.zarr", "--format", "webdataset"]
    assert_refused(run_here(*words, "--overwrite"), 3, "train-000004.tar")
    assert files_of(here) == before
    assert_refused(run_here(*words, "--out", "a.zarr"), 2, "a.zarr exists")
    assert_refused(run_here(*words, "--out", "a.zarr", "--overwrite"), 3, "a.zarr holds")
    assert files_of(here) == before


def test_one_split_and_what_cannot_be(here):
    write_cache(Path("a.zarr"), description())
    assert export("bin", "--split", "test")["files"] == ["about.json", "test.bin", "test_labels.npy"]
    assert_refused(run_here("cache", "export", "a.zarr", "--split", "val"), 3, "no split 'val'", "train, test")
    assert_refused(run_here("cache", "export", "b.zarr"), 4, "b.zarr")
    assert_refused(run_here("cache", "export", "a.zarr", "--format", "npz", "--out", "x"), 2, "out", ".npz")
    assert_refused(run_here("cache", "export", "a.zarr", "--format", "npy", "--out", "x.npz"), 2, "out", ".npz")


def test_a_damaged_shard_leaves_no_file_that_looks_whole(here):
    write_cache(Path("a.zarr"), description())
    (Path("a.zarr") / "test/codes/c/0/0/0/0").write_bytes(b"x")
    assert_refused(run_here("cache", "export", "a.zarr"), 3, "test/codes/c/0/0/0/0")
    assert [path.name for path in Path().iterdir()] == ["a.zarr"]
    assert_refused(run_here("cache", "export", "a.zarr", "--format", "npz"), 3, "test/codes/c/0/0/0/0")
    assert not list(Path().glob("*.npz*"))
    assert not list(Path().glob(".*.npz*"))
