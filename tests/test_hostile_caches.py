"""Caches made to harm: digests that hold, claims that do not. Refused with a message, before anything is allocated."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from vqgpt.api.options import SourceOptions
from vqgpt.api.sources import sample_config
from vqgpt.errors import InputError
from vqgpt.storage.files import canonical_json, sha256
from vqgpt.tokens import CacheWriter, TokenCache, find_faults, reader
from vqgpt.tokens.arrays import encode_shard

SHARD = "train/codes/c/0/0/0/0"
METADATA = "train/codes/zarr.json"


def load(path: Path) -> dict:
    return json.loads((path / "zarr.json").read_text())["attributes"]["vqgpt"]


def sign(path: Path, manifest: dict) -> None:
    """Write a manifest with a digest that holds, as a hostile author would."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    attributes = {"vqgpt": {**body, "digest": sha256(canonical_json(body))}}
    (path / "zarr.json").write_bytes(canonical_json({"zarr_format": 3, "node_type": "group", "attributes": attributes}))


def replace_file(path: Path, key: str, data: bytes) -> None:
    """Put other bytes in place of a file, and make the manifest agree."""
    (path / key).write_bytes(data)
    manifest = load(path)
    split, array, _, index, *_ = [*key.split("/"), "", "", ""]
    entry = manifest["files"].get(key) or manifest["shards"][split][index][array]
    entry.update(bytes=len(data), sha256=sha256(data))
    sign(path, manifest)


def assert_refused_cheaply(path: Path, words: str = ".") -> None:
    """Reading and verifying both refuse, and neither allocates much."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words):
            TokenCache(path).read_split("train")
        with contextlib.suppress(InputError):
            assert find_faults(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "c.zarr", description((40, 5)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("splits", [{"name": "train", "rows": 10**15}]),
        ("splits", [{"name": "train", "rows": 10**12}, {"name": "test", "rows": 5}]),
        ("splits", [{"name": "train", "rows": 40}, {"name": "train", "rows": 5}]),
        ("splits", [{"name": "../../etc", "rows": 1}]),
        ("splits", [{"name": "codebook", "rows": 1}]),
        ("splits", [{"name": "x" * 300, "rows": 1}]),
        *(("dataset", name) for name in ("", "..", "../x", "/tmp/x", "a/b", "a\\b", "-rf", ".x", "x\n", "x" * 300)),
        ("grid", [10**9, 10**9]),
        ("grid", [0, 3]),
        ("codebook_size", 10**12),
        ("code_dimension", 10**12),
        ("shard_rows", -1),
        ("shard_rows", 10**12),
        ("views", []),
        ("image_size", "16"),
        ("limit", 0),
    ],
)
def test_impossible_descriptions(cache, field, value):
    manifest = load(cache)
    manifest["description"][field] = value
    sign(cache, manifest)
    assert_refused_cheaply(cache)


def shard(manifest):
    return manifest["shards"]["train"]["0"]


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"].update({"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
        lambda manifest: manifest["files"].update({"/etc/passwd": manifest["files"].pop("train/zarr.json")}),
        lambda manifest: manifest["shards"]["train"].update({"7": manifest["shards"]["train"].pop("0")}),
        lambda manifest: manifest["shards"]["train"].update({"-1": manifest["shards"]["train"].pop("0")}),
        lambda manifest: manifest["shards"]["train"].update({"../0": manifest["shards"]["train"].pop("0")}),
        lambda manifest: shard(manifest).update(rows=31),
        lambda manifest: shard(manifest).update(max_code=16),
        lambda manifest: shard(manifest)["codes"].update(bytes=10**12),
        lambda manifest: shard(manifest)["codes"].update(sha256="../../../../etc/passwd"),
        lambda manifest: manifest["statistics"]["train"].update(histogram=[1]),
        lambda manifest: manifest["shards"].update(other={}),
        lambda manifest: manifest.update(status="complete!"),
        lambda manifest: manifest.pop("shards"),
    ],
)
def test_impossible_manifests(cache, change):
    manifest = load(cache)
    change(manifest)
    sign(cache, manifest)
    assert_refused_cheaply(cache)


def test_a_name_that_leads_elsewhere_writes_nothing_there(cache, monkeypatch):
    folder = cache.parent / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    manifest = load(cache)
    for name in ("../../x", str(cache.parent / "x")):
        manifest["description"]["dataset"] = name
        sign(cache, manifest)
        before = files_of(cache.parent)
        for command in (
            ["train", "--cache", str(cache), *TINY_GPT, "-q"],
            ["score", str(cache)],
            ["render", str(cache)],
            ["cache", "info", str(cache)],
            ["cache", "preview", str(cache)],
            ["cache", "verify", str(cache), "--repair"],
        ):
            assert_refused(run_here(*command), 3, "c.zarr", "a name of a dataset that cannot be")
        assert files_of(cache.parent) == before


def test_a_repair_reads_no_path_that_a_manifest_names(cache):
    sampling = {
        "temperature": 0.5,
        "seed": 3,
        "classes": [-1],
        "cache": "s3://a/b.zarr",
        "n_head": 2,
        "keep": "/etc/passwd",
    }
    what = description(
        (40, 5), origin="sampled", sampling={**sampling, "prompt": ["~/x"], "out": "/tmp/x", "show": True}
    )
    again = sample_config(cache, what, SourceOptions(), None)
    assert (again.sampling.temperature, again.run.seed, again.out) == (0.5, 3, cache)
    assert (again.cache, again.n_head, again.keep, again.prompt, again.show) == (None, None, None, (), False)


def test_numbers_that_json_does_not_have(cache):
    root = cache / "zarr.json"
    root.write_text(root.read_text().replace('"limit": null', '"limit": NaN'))
    assert_refused_cheaply(cache, "damaged")
    root.write_text("[" * 100_000)
    assert_refused_cheaply(cache, "not a token cache")


def test_a_root_document_of_a_terabyte_is_not_read(cache):
    with open(cache / "zarr.json", "r+b") as file:
        file.truncate(2**40)  # which takes no room on disk
    assert_refused_cheaply(cache, "too large")


def message_of(read) -> str:
    """The message that reading ends with, or ""."""
    try:
        read()
    except InputError as error:
        return f"{error.message}: {error.hint}"
    return ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["codecs"][0]["configuration"]["codecs"].append({"name": "pickle"}), "pickle"),
        (
            lambda document: document["codecs"][0]["configuration"]["codecs"].__setitem__(
                1, {"name": "numcodecs.lzma"}
            ),
            "numcodecs.lzma",
        ),
        (lambda document: document.update(codecs=[{"name": "bytes"}]), "no array's metadata"),
        (lambda document: document["codecs"][0].update(name=[]), "no array's metadata"),
        (lambda document: document["chunk_key_encoding"].update(configuration=None), "no array's metadata"),
        (lambda document: document.update(shape=[10**12, 1, 4, 3]), "contradicts"),
        (lambda document: document.update(data_type="int64"), "contradicts"),
        (lambda document: document["chunk_grid"]["configuration"].update(chunk_shape=[10**9, 1, 4, 3]), "contradicts"),
        (lambda document: document.update(storage_transformers=[{"name": "x"}]), "contradicts"),
    ],
)
def test_metadata_that_would_harm_another_reader(cache, change, words):
    document = json.loads((cache / METADATA).read_text())
    change(document)
    replace_file(cache, METADATA, json.dumps(document).encode())
    assert_refused_cheaply(cache, f"{METADATA} .*{words}")
    assert [fault for fault in find_faults(cache) if METADATA in fault and words in fault]


def shard_of_frame(frame: bytes, chunks: int = 1) -> bytes:
    """A shard file whose chunks all are one frame."""
    index = np.array([[0, len(frame) + 4]] * chunks, "<u8").tobytes()
    return frame + bytes(4) + index + bytes(4)


def blosc_header(content: int, length: int) -> bytes:
    return bytes([2, 1, 0x24, 1]) + struct.pack("<III", content, 2**18, length)


BOMB = blosc_header(2**32 - 1, 60) + bytes(44)


@pytest.mark.parametrize(
    "data",
    [
        shard_of_frame(BOMB),
        shard_of_frame(BOMB[:20]),
        shard_of_frame(blosc_header(32 * 12, 2**31) + bytes(44)),
        shard_of_frame(blosc_header(32 * 12, 60) + bytes(44)),
        shard_of_frame(blosc_header(32 * 12, 16)),
        shard_of_frame(blosc_header(32 * 12, 60).replace(b"\x24", b"\x84") + bytes(44)),
        shard_of_frame(blosc.compress(bytes(10), b"lz4", 5, blosc.BITSHUFFLE)),  # sound, and too short
        shard_of_frame(b"no frame at all"),
        shard_of_frame(b""),
        np.array([[2**63, 2**63]], "<u8").tobytes() + bytes(4),
        np.array([[2**64 - 1, 2**64 - 1]], "<u8").tobytes() + bytes(4),
        np.array([[0, 10**12]], "<u8").tobytes() + bytes(4),
        b"",
        bytes(300),
    ],
)
def test_decompression_bombs_and_rubbish_in_a_shard(cache, data):
    replace_file(cache, SHARD, data)
    assert_refused_cheaply(cache, f"{SHARD} does not decode")


@pytest.mark.parametrize("codebook_size", [16, 1024])
def test_any_bytes_in_a_shard_are_an_error_with_a_message(tmp_path, codebook_size):
    cache = write_cache(tmp_path / "c.zarr", description((40, 5), codebook_size=codebook_size))
    good = (cache / SHARD).read_bytes()

    @settings(max_examples=100, deadline=None)
    @given(start=st.integers(0, len(good)), cut=st.integers(0, 20), noise=st.binary(max_size=20))
    def check(start, cut, noise):
        replace_file(cache, SHARD, good[:start] + noise + good[start + cut :])
        message = message_of(lambda: TokenCache(cache).read_split("train"))
        assert message == "" or SHARD in message

    check()


def test_a_split_that_is_all_compression_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SMALL_SPLIT", 2**20)
    monkeypatch.setattr(reader, "LARGEST_RATIO", 10)
    what = description((4096, 1), grid=(64, 64), shard_rows=4096)
    writer = CacheWriter.create_or_resume(tmp_path / "c.zarr", what, np.zeros((16, 2), np.float32), {})
    for shard in writer.missing():
        rows = shard.stop - shard.start
        writer.write(shard, np.zeros((rows, 1, 64, 64), np.uint8), np.zeros(rows, np.int64), np.zeros(rows, np.int64))
    assert_refused_cheaply(tmp_path / "c.zarr", "train claims .* bytes of rows in")
    monkeypatch.undo()
    assert TokenCache(tmp_path / "c.zarr").read_split("train").codes.shape == (4096, 1, 64, 64)


@pytest.mark.parametrize("codes", [16, 255])
def test_codes_beyond_the_codebook(cache, codes):
    layout = description((40, 5)).layouts("train")["codes"]
    replace_file(cache, SHARD, encode_shard(layout, np.full((32, 1, 4, 3), codes, np.uint8)))
    assert_refused_cheaply(cache, f"holds codes up to {codes}")


def test_labels_outside_the_classes(cache):
    layout = description((40, 5)).layouts("train")["labels"]
    replace_file(cache, "train/labels/c/0", encode_shard(layout, np.full(32, 2)))
    assert_refused_cheaply(cache, "train/labels/c/0 holds labels outside -1..1")


def test_statistics_that_are_not_those_of_the_codes(cache):
    manifest = load(cache)
    manifest["statistics"]["train"]["histogram"][0] += 1
    sign(cache, manifest)
    assert find_faults(cache) == ["the statistics of train are not those of its codes"]


def test_the_commands_refuse_with_one_line(cache):
    replace_file(cache, SHARD, shard_of_frame(BOMB))
    for command in (
        ["cache", "verify", str(cache)],
        ["train", "--cache", str(cache), "--out", str(cache.parent / "x.pt")],
    ):
        assert_refused(run_here(*command), 3, SHARD, "does not decode")
