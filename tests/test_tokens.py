"""The token cache: round trips, resuming, and noticing every damage."""

import json
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import description, files_of, rows_of, write_cache
from vqgpt.errors import InputError
from vqgpt.storage.files import canonical_json, sha256
from vqgpt.tokens import CacheWriter, Split, TokenCache, find_faults
from vqgpt.tokens.arrays import code_dtype, code_statistics, default_chunk_rows, default_shard_rows
from vqgpt.tokens.writer import ShardRows

CODEBOOK = np.zeros((16, 2), np.float32)


def whole_split(what, name, seed=0):
    rows = next(split.rows for split in what.splits if split.name == name)
    shards = [
        ShardRows(split=name, index=i, start=start, stop=min(start + what.shard_rows, rows))
        for i, start in enumerate(range(0, rows, what.shard_rows))
    ]
    return np.concatenate([rows_of(shard, what, seed)[0] for shard in shards])


def read_everything(path):
    cache = TokenCache(path)
    cache.codebook()
    for split in cache.split_names:
        cache.read_split(split)


@pytest.mark.parametrize("rows", [(0, 1), (31, 32), (33, 64), (100, 65)])
def test_rows_come_back_as_they_were_written(tmp_path, rows):
    what = description(rows)
    cache = TokenCache(write_cache(tmp_path / "c.zarr", what))
    for split in what.splits:
        tokens = cache.read_split(split.name)
        assert tokens.codes.shape == (split.rows, 1, 4, 3)
        assert tokens.codes.dtype == np.uint8
        np.testing.assert_array_equal(tokens.source_index, np.arange(split.rows))
        if split.rows:
            np.testing.assert_array_equal(tokens.codes, whole_split(what, split.name))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 10),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    views=st.integers(1, 3),
    codebook_size=st.sampled_from([2, 256, 257, 65536]),
    shard_rows=st.sampled_from([1, 3, 8]),
)
def test_any_shape_makes_a_round_trip(tmp_path_factory, rows, grid, views, codebook_size, shard_rows):
    what = description((rows, 1), grid=grid, views=("v",) * views, codebook_size=codebook_size, shard_rows=shard_rows)
    cache = TokenCache(write_cache(tmp_path_factory.mktemp("c") / "c.zarr", what))
    codes = cache.read_split("train").codes
    assert codes.dtype == (np.uint8 if codebook_size <= 256 else np.uint16)
    if rows:
        np.testing.assert_array_equal(codes, whole_split(what, "train"))


def test_multi_label_bits_are_kept(tmp_path):
    what = description(label_kind="bits", class_names=("a", "b", "c"))
    labels = TokenCache(write_cache(tmp_path / "c.zarr", what)).read_split("train").labels
    assert labels.shape == (100, 3)
    assert labels.dtype == np.uint8


def cache_with_log_prob(path, log_prob):
    what = description((40, 1), origin="sampled", sampling={"log_prob": True})
    writer = CacheWriter.create_or_resume(path, what, CODEBOOK, {})
    for shard in writer.missing():
        rows = slice(shard.start, shard.stop)
        writer.write(shard, *rows_of(shard, what), np.full(40, log_prob, np.float32)[rows])
    return path


def test_sampled_rows_keep_their_log_probabilities(tmp_path):
    path = cache_with_log_prob(tmp_path / "c.zarr", -1.5)
    assert find_faults(path) == []
    tokens = TokenCache(path).read_split("train", [1])
    assert tokens.log_prob.tolist() == [-1.5] * 8
    file = path / "train/log_prob/c/1"
    file.write_bytes(file.read_bytes()[::-1])
    assert any("train/log_prob/c/1" in fault for fault in find_faults(path))
    with pytest.raises(InputError, match="train/log_prob/c/1"):
        TokenCache(path).read_split("train")


@pytest.mark.parametrize("log_prob", [0.5, np.nan, -np.inf])
def test_what_is_no_log_probability_is_refused(tmp_path, log_prob):
    path = cache_with_log_prob(tmp_path / "c.zarr", log_prob)
    assert any("log_prob" in fault for fault in find_faults(path))
    with pytest.raises(InputError, match="log_prob"):
        TokenCache(path).read_split("train")


def test_an_interrupted_cache_continues_to_the_same_bytes(tmp_path):
    what = description()
    whole = write_cache(tmp_path / "whole.zarr", what)
    partial = write_cache(tmp_path / "partial.zarr", what, only_first=2)
    with pytest.raises(InputError, match="not finished"):
        TokenCache(partial)
    (partial / "train" / "codes" / "c" / ".0.partial").write_bytes(b"left by a killed process")
    write_cache(partial, what)
    assert files_of(partial) == files_of(whole)


def test_writing_a_finished_cache_again_changes_nothing(tmp_path):
    path = write_cache(tmp_path / "c.zarr", description())
    times = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    write_cache(path, description())
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == times


@pytest.mark.parametrize(
    "name", ["train/codes/c/1/0/0/0", "test/labels/c/0", "train/source_index/c/0", "codebook/c/0/0"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "zero", "delete"])
def test_a_damaged_file_is_named_and_made_again(tmp_path, name, damage):
    path = write_cache(tmp_path / "c.zarr", description())
    before = files_of(path)
    file = path / name
    data = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"flip": flipped, "truncate": data[:middle], "zero": bytes(len(data))}[damage])
    assert [fault for fault in find_faults(path) if name in fault]
    with pytest.raises(InputError, match=name):
        read_everything(path)
    write_cache(path, description())
    assert files_of(path) == before


def test_swapped_and_foreign_shards_are_noticed(tmp_path):
    path = write_cache(tmp_path / "c.zarr", description())
    first, second = path / "train/codes/c/0/0/0/0", path / "train/codes/c/1/0/0/0"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert sum("train/codes/c" in fault for fault in find_faults(path)) == 2
    first.write_bytes(one)
    second.write_bytes(two)
    (path / "train/codes/c/9").mkdir()
    (path / "train/codes/c/9/stranger").write_bytes(b"x")
    assert find_faults(path) == ["train/codes/c/9/stranger does not belong to this cache"]


def test_every_flipped_bit_of_every_file_is_noticed_by_reading_and_by_verifying(tmp_path):
    path = write_cache(tmp_path / "c.zarr", description(splits=(Split(name="train", rows=5),)))
    generator = np.random.default_rng(0)
    for file in [file for file in path.rglob("*") if file.is_file()]:
        original = file.read_bytes()
        bits = 8 * len(original)
        for position in generator.choice(bits, min(bits, 40), replace=False):
            byte, bit = divmod(int(position), 8)
            file.write_bytes(original[:byte] + bytes([original[byte] ^ 1 << bit]) + original[byte + 1 :])
            with pytest.raises(InputError):
                read_everything(path)
            try:
                noticed = bool(find_faults(path))
            except InputError:
                noticed = True
            assert noticed, f"{file} byte {byte} bit {bit}"
        file.write_bytes(original)
    read_everything(path)
    assert find_faults(path) == []


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"tokenizer_sha256": "u" * 64}, "tokenizer_sha256"),
        ({"source_sha256": "u" * 64}, "source_sha256"),
        ({"precision": "bf16"}, "precision: fp32 there, bf16 here"),
    ],
)
def test_other_work_is_refused_and_nothing_is_touched(tmp_path, change, shown):
    path = write_cache(tmp_path / "c.zarr", description())
    before = files_of(path)
    with pytest.raises(InputError, match=shown):
        CacheWriter.create_or_resume(path, description(**change), CODEBOOK, {})
    assert files_of(path) == before


def test_overwrite_replaces_a_finished_cache_but_continues_an_unfinished_one(tmp_path):
    path = write_cache(tmp_path / "c.zarr", description(), only_first=3)
    writer = CacheWriter.create_or_resume(path, description(), CODEBOOK, {}, overwrite=True)
    assert len(list(writer.missing())) == 2
    write_cache(path, description())
    writer = CacheWriter.create_or_resume(path, description(), CODEBOOK, {}, overwrite=True)
    assert len(list(writer.missing())) == 5


def test_a_cache_whose_manifest_is_damaged_is_replaced_only_when_asked(tmp_path):
    path = write_cache(tmp_path / "c.zarr", description())
    whole = files_of(path)
    (path / "zarr.json").write_bytes(whole["zarr.json"][:-9])
    with pytest.raises(InputError, match="damaged"):
        CacheWriter.create_or_resume(path, description(), CODEBOOK, {})
    CacheWriter.create_or_resume(path, description(), CODEBOOK, {}, overwrite=True)
    write_cache(path, description())
    assert set(files_of(path)) == set(whole)
    assert find_faults(path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_was_killed_before_its_first_commit_is_begun_again(tmp_path, overwrite):
    whole = write_cache(tmp_path / "whole.zarr", description())
    path = write_cache(tmp_path / "c.zarr", description())
    (path / "zarr.json").unlink()
    (path / "train/codes/c/0/0/0/0").write_bytes(b"of another time")
    CacheWriter.create_or_resume(path, description(), CODEBOOK, {}, overwrite=overwrite)
    (path / "zarr.json").unlink()
    write_cache(path, description())
    assert files_of(path) == files_of(whole)


@pytest.mark.parametrize("name", ["train/n01440764/1.JPEG", "val/a.png", "codebook/notes.txt", "zarr.json.bak"])
def test_a_folder_of_images_is_never_taken_for_the_rest_of_a_cache(tmp_path, name):
    file = tmp_path / "data.zarr" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a token cache"):
            CacheWriter.create_or_resume(tmp_path / "data.zarr", description(), CODEBOOK, {}, overwrite=overwrite)
    assert file.read_text() == "mine"


def test_a_folder_that_is_not_a_cache_is_never_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a token cache"):
        CacheWriter.create_or_resume(tmp_path, description(), CODEBOOK, {}, overwrite=True)
    with pytest.raises(InputError):
        CacheWriter.create_or_resume(tmp_path, description(), CODEBOOK, {})
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a token cache"):
            CacheWriter.create_or_resume(tmp_path, description(), CODEBOOK, {}, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_codes_beyond_the_codebook_are_refused_at_the_write(tmp_path):
    what = description()
    writer = CacheWriter.create_or_resume(tmp_path / "c.zarr", what, CODEBOOK, {})
    shard = next(writer.missing())
    codes, labels, source_index = rows_of(shard, what)
    for wrong in (16, 300, -1):
        codes[0, 0, 0, 0] = wrong
        with pytest.raises(ValueError, match="not all in"):
            writer.write(shard, codes, labels, source_index)
    assert next(writer.missing()) == shard


def signed(document: dict) -> bytes:
    """A root document with a digest that holds, as a hostile author would make it."""
    body = {key: value for key, value in document["attributes"]["vqgpt"].items() if key != "digest"}
    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"vqgpt": {**body, "digest": sha256(canonical_json(body))}},
        }
    )


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    path = write_cache(tmp_path / "c.zarr", description())
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["vqgpt"] |= {"format_version": 2, "something_new": True}
    (path / "zarr.json").write_bytes(signed(document))
    with pytest.raises(InputError, match="format version 2"):
        TokenCache(path)


def test_zarr_reads_it_without_a_warning(tmp_path):
    what = description()
    path = write_cache(tmp_path / "c.zarr", what)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        assert sorted(name for name, _ in group.members()) == ["codebook", "test", "train"]
        assert sorted(name for name, _ in group["train"].members()) == ["codes", "labels", "source_index"]
        np.testing.assert_array_equal(group["train/codes"][:], whole_split(what, "train"))


@pytest.mark.parametrize("codebook_size", [16, 1024])
def test_tensorstore_reads_it(tmp_path, codebook_size):
    tensorstore = pytest.importorskip("tensorstore")
    what = description(codebook_size=codebook_size)
    path = write_cache(tmp_path / "c.zarr", what)
    for array, expected in (("train/codes", whole_split(what, "train")), ("train/source_index", np.arange(100))):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / array)}}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), expected)


def test_statistics_of_a_known_distribution():
    codes = np.array([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4, dtype=np.uint8).reshape(2, 1, 2, 4)
    statistics = code_statistics(codes, 16)
    assert statistics.used_codes == 4
    assert statistics.perplexity == pytest.approx(4)
    assert statistics.entropy_bits_per_token == pytest.approx(2)


@given(row_bytes=st.integers(1, 2**22))
def test_shards_are_whole_chunks_of_bounded_size(row_bytes):
    shard_rows = default_shard_rows(row_bytes)
    chunk_rows = default_chunk_rows(row_bytes, shard_rows)
    assert 1 <= chunk_rows <= shard_rows <= 16384
    assert shard_rows % chunk_rows == 0
    assert shard_rows * row_bytes <= 2**25 or shard_rows == 1


def test_dtypes_are_the_smallest_that_hold_the_codes():
    assert [code_dtype(size) for size in (2, 256, 257, 65536)] == ["uint8", "uint8", "uint16", "uint16"]
