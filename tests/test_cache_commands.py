"""`vqgpt cache ...` and what `vqgpt tokenize` tells: repair, figures in the manifest, --limit, --dry-run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY_VQGAN, assert_refused, description, files_of, run_here, write_cache
from tests.test_score import save_gpt
from vqgpt.api.filling import fill_cache
from vqgpt.progress import Notice
from vqgpt.tokens import TokenCache, read_manifest
from vqgpt.tokens.arrays import codebook_rank

DIGITS = Path("cache/digits.zarr")
SAMPLES = Path("runs/digits/samples.zarr")
DAMAGES = {
    "train/codes/c/0/0/0/0": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "test/labels/c/0": lambda file: file.unlink(),
    "test/codes/zarr.json": lambda file: file.write_text("{}"),
    "codebook/c/0/0": lambda file: file.write_bytes(file.read_bytes()[:-1]),
}


def test_repair_makes_just_what_is_damaged_again(pipeline):
    before = files_of(pipeline)
    for key, damage in DAMAGES.items():
        damage(DIGITS / key)
    kept = (DIGITS / "train/labels/zarr.json").stat().st_mtime_ns
    outcome = run_here("cache", "verify", str(DIGITS))
    assert_refused(outcome, 3, *DAMAGES, f"vqgpt cache verify --repair {DIGITS}")
    outcome = run_here("cache", "verify", "--repair", str(DIGITS))
    assert outcome.code == 0, outcome.err
    assert "every file is as it was written" in outcome.out
    assert files_of(pipeline) == before
    assert (DIGITS / "train/labels/zarr.json").stat().st_mtime_ns == kept


def test_repair_encodes_only_the_shards_that_are_damaged(pipeline, monkeypatch):
    from vqgpt.api import tokenize

    (DIGITS / "test/codes/c/0/0/0/0").write_bytes(b"x")
    encoded = []
    encode = tokenize.encode_images
    monkeypatch.setattr(tokenize, "encode_images", lambda *args: encoded.append(len(args[1])) or encode(*args))
    assert run_here("cache", "verify", "--repair", str(DIGITS), "--batch-size", "100").code == 0
    assert sum(encoded) == read_manifest(DIGITS).description.splits[1].rows


def test_repair_of_sampled_tokens(pipeline):
    before = files_of(pipeline)
    (SAMPLES / "samples/codes/c/0/0/0/0").unlink()
    outcome = run_here("cache", "verify", "--repair", str(SAMPLES))
    assert outcome.code == 0, outcome.err
    assert files_of(pipeline) == before


def test_repair_of_samples_of_classes_that_are_named_by_numbers(here):
    """Where folders are 1, 10 and 2, number 1 is the class 10."""
    save_gpt(description(class_names=("1", "10", "2")), condition="class")
    words = ["--checkpoint-gpt", "g.pt", "--tokens-only", "--num-samples", "6", "--out", "s.zarr"]
    assert run_here("sample", *words, "--class", "2", "10", "name:1").code == 0
    before = files_of(Path("s.zarr"))
    assert TokenCache(Path("s.zarr")).read_split("samples").labels.tolist() == [2, 1, 0, 2, 1, 0]
    Path("s.zarr/samples/codes/c/0/0/0/0").unlink()
    outcome = run_here("cache", "verify", "--repair", "s.zarr", "--checkpoint-gpt", "g.pt")
    assert outcome.code == 0, outcome.err
    assert files_of(Path("s.zarr")) == before


def test_repair_with_another_vqgan_is_refused_with_both_sides(pipeline):
    assert run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--seed", "1", "--out", "o.pt").code == 0
    (DIGITS / "test/codes/c/0/0/0/0").write_bytes(b"x")
    before = files_of(pipeline)
    outcome = run_here("cache", "verify", "--repair", str(DIGITS), "--checkpoint-vae", "o.pt")
    assert_refused(
        outcome, 3, "tokenizer_sha256", "there,", "here", f"vqgpt tokenize --dataset digits --cache {DIGITS}"
    )
    assert files_of(pipeline) == before
    shutil.move("runs/digits/vqgan.pt", "moved.pt")
    assert_refused(run_here("cache", "verify", "--repair", str(DIGITS)), 4, "runs/digits/vqgan.pt")
    assert run_here("cache", "verify", "--repair", str(DIGITS), "--checkpoint-vae", "moved.pt").code == 0


def test_repair_leaves_the_files_of_others(pipeline):
    (DIGITS / "notes.txt").write_text("mine")
    (DIGITS / "test/codes/c/0/0/0/0").write_bytes(b"x")
    outcome = run_here("cache", "verify", "--repair", str(DIGITS), "-q")
    assert_refused(outcome, 3, "notes.txt does not belong to this cache", "elsewhere")
    assert (DIGITS / "notes.txt").read_text() == "mine"


def test_the_manifest_tells_how_each_split_uses_the_codebook(finished_pipeline):
    cache = TokenCache(finished_pipeline / DIGITS)
    for split in ("train", "test"):
        codes = cache.read_split(split).codes
        statistics = cache.manifest.statistics[split]
        assert list(statistics.histogram) == np.bincount(codes.reshape(-1), minlength=16).tolist()
        assert statistics.used_codes == len(np.unique(codes))
        shares = np.array(statistics.histogram)[np.unique(codes)] / codes.size
        assert statistics.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-3)
    outcome = run_here("cache", "info", str(finished_pipeline / DIGITS), "--json")
    assert outcome.json["test_perplexity"] == statistics.perplexity
    attributes = json.loads((finished_pipeline / DIGITS / "zarr.json").read_text())["attributes"]["vqgpt"]
    assert attributes["statistics"]["test"]["histogram"] == list(statistics.histogram)


def fill(path, what, codes, codebook=None):
    """Fill a cache with one code after the other; returns what was reported."""
    events = []

    def codes_of(shard):
        yield (np.resize(codes, (shard.stop - shard.start, 1, *what.grid)),)

    def labels_of(shard):
        rows = np.arange(shard.start, shard.stop)
        return np.zeros(len(rows), np.int64), rows

    if codebook is None:
        codebook = np.zeros((what.codebook_size, what.code_dimension), np.float32)
    fill_cache(path, what, codebook, False, "tokenize", codes_of, labels_of, events.append)
    return events


@pytest.mark.parametrize(("used", "warns"), [(9, True), (10, False)])
def test_a_tokenizer_that_uses_under_a_tenth_of_its_codes_gets_a_warning(tmp_path, used, warns):
    what = description(codebook_size=100)
    events = fill(tmp_path / "c.zarr", what, np.arange(used))
    warnings = [event.text for event in events if isinstance(event, Notice) and "warning" in event.text]
    assert len(warnings) == warns
    if warns:
        assert f"only {used} of 100 codes" in warnings[0]
    progress = [event for event in events if not isinstance(event, Notice)]
    assert progress[-1].done == progress[-1].total == 130
    assert progress[-1].values == {"shard": 5, "of": 5, "used_codes": used}


@pytest.mark.parametrize(("across", "warns"), [(0.01, True), (0.5, False)])
def test_a_tokenizer_whose_codes_lie_on_a_line_gets_a_warning(tmp_path, across, warns):
    what = description(codebook_size=100)
    random = np.random.default_rng(0)
    spread = np.array([1.0] + [across] * (what.code_dimension - 1))
    codebook = (random.normal(size=(100, what.code_dimension)) * spread).astype(np.float32)
    events = fill(tmp_path / "c.zarr", what, np.arange(60), codebook)
    texts = [event.text for event in events if isinstance(event, Notice) and "warning" in event.text]
    assert len(texts) == warns
    assert all("the 60 codes in use lie on a line (rank 1.0" in text for text in texts)
    info = run_here("cache", "info", str(tmp_path / "c.zarr"), "--json").json
    rank = codebook_rank(codebook, np.arange(100) < 60)
    assert info["train_codebook_rank"] == pytest.approx(rank, rel=0.1)


def test_few_tokens_and_sampled_ones_get_no_warning(tmp_path):
    for name, what in (
        ("few", description((1, 1), codebook_size=100)),
        ("s", description(codebook_size=100, origin="sampled")),
    ):
        events = fill(tmp_path / f"{name}.zarr", what, np.array([0]))
        assert not [event for event in events if isinstance(event, Notice)]


def test_limit_takes_images_from_all_over_and_is_recorded(pipeline):
    whole = TokenCache(DIGITS)
    assert run_here("tokenize", "--dataset", "digits", "--limit", "7", "--cache", "few.zarr").code == 0
    few = TokenCache(Path("few.zarr"))
    assert few.description.limit == 7
    for split in ("train", "test"):
        tokens = few.read_split(split)
        assert len(tokens.codes) == 7
        everything = whole.read_split(split)
        rows = [row * len(everything.codes) // 7 for row in range(7)]
        np.testing.assert_array_equal(tokens.labels, everything.labels[rows])
        np.testing.assert_array_equal(tokens.source_index, everything.source_index[rows])
    assert run_here("cache", "info", "few.zarr", "--json").json["limit"] == 7
    assert_refused(run_here("tokenize", "--dataset", "digits", "--cache", "few.zarr"), 3, "limit: 7 there, None here")
    (Path("few.zarr") / "test/codes/c/0/0/0/0").write_bytes(b"x")
    assert run_here("cache", "verify", "--repair", "few.zarr").code == 0
    assert_refused(run_here("tokenize", "--dataset", "digits", "--limit", "0"), 2, "limit")


def test_a_dry_run_says_rows_bytes_and_time(pipeline):
    before = files_of(pipeline)
    plan = run_here("tokenize", "--dataset", "digits", "--limit", "100", "--dry-run", "--json").json
    assert plan["rows"] == 200
    assert plan["bytes"] == 200 * 64
    assert plan["seconds"] == pytest.approx(200 / plan["images_per_second"])
    assert files_of(pipeline) == before


def test_an_unfinished_cache_is_told_how_to_continue(here):
    write_cache(Path("a.zarr"), description(), only_first=1)
    assert_refused(run_here("cache", "verify", "a.zarr"), 3, "not finished", "vqgpt tokenize --dataset digits")
