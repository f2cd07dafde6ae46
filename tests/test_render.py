"""`vqgpt render`: every format has the decoder's images, in passes, and a folder that was cut short is continued."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import OTHER_VQGAN, assert_refused, files_of, run_here
from tests.forked import fork_command
from vqgpt.api import render as rendering
from vqgpt.api.options import RenderConfig
from vqgpt.options.definition import resolve
from vqgpt.progress import silent
from vqgpt.storage.write_lock import WriteLock
from vqgpt.tokens import CacheWriter, Split, TokenCache
from vqgpt.tokens.reader import parts_of
from vqgpt.vqgan import coding
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import decode_in_passes

DIGITS = "cache/digits.zarr"
VQGAN = Path("runs/digits/vqgan.pt")


def render(*words):
    outcome = run_here("render", *map(str, words), "--json")
    assert outcome.code == 0, outcome.err
    return outcome


def images_of(cache, split, rows, view=0) -> np.ndarray:
    """What the decoder makes of rows, (n, H, W)."""
    model = load_vqgan(VQGAN, "digits", torch.device("cpu"))
    codes = TokenCache(Path(cache)).read_split(split).codes[rows, view]
    return decode_in_passes(model, codes, "fp32", silent)[:, 0]


def read_png(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def small_shards(path, rows=1000, **changes):
    """A cache of the digits' first training rows, in shards of 64."""
    source = TokenCache(Path(DIGITS))
    tokens = source.read_split("train")
    what = replace(source.description, shard_rows=64, splits=(Split(name="train", rows=rows),), **changes)
    writer = CacheWriter.create_or_resume(Path(path), what, source.codebook(), {"vqgpt": "test"})
    for shard in writer.missing():
        here = slice(shard.start, shard.stop)
        codes = np.repeat(tokens.codes[here], len(what.views), axis=1)
        codes[:, 1:] = codes[:, 1:, :, ::-1]
        writer.write(shard, codes, tokens.labels[here], tokens.source_index[here])
    return Path(path)


def nearly_equal(found, expected):
    """Passes of other sizes may round a pixel the other way."""
    assert found.shape == expected.shape
    return np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_a_folder_has_every_row(pipeline):
    result = render(DIGITS, "--split", "test", "--out", "folder").json
    expected = images_of(DIGITS, "test", slice(None))
    names = sorted(path.name for path in Path("folder").glob("*.png"))
    assert names == [f"{row:06d}.png" for row in range(len(expected))]
    assert result["images"] == len(expected)
    assert nearly_equal(np.stack([read_png(f"folder/{name}") for name in names]), expected)
    with Image.open("folder/000000.png") as picture:
        assert json.loads(picture.text["vqgpt"])["cache_digest"] == TokenCache(Path(DIGITS)).digest


def test_a_tree_has_a_folder_per_class(pipeline):
    render(DIGITS, "--out", "tree", "--format", "tree", "--rows", "5:60")
    labels = TokenCache(Path(DIGITS)).read_split("train").labels
    expected = {f"tree/{labels[row]}/{row:06d}.png" for row in range(5, 60)}
    assert {str(path) for path in Path("tree").rglob("*.png")} == expected
    outcome = run_here("tokenize", "--dataset", "folder", "--data-root", "tree", "--checkpoint-vae", VQGAN, "--dry-run")
    assert outcome.code == 0, outcome.err


def test_an_npz_is_one_array_in_three_channels(pipeline):
    small_shards("s.zarr", 150)
    render("s.zarr", "--out", "all.npz")
    with np.load("all.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["arr_0"]
        found = arrays["arr_0"]
    assert (found.shape, found.dtype) == ((150, 16, 16, 3), np.uint8)
    assert (found == found[..., :1]).all()
    assert nearly_equal(found[..., 0], images_of("s.zarr", "train", slice(None)))
    render("s.zarr", "--format", "npz")
    assert Path("s-images.npz").read_bytes() == Path("all.npz").read_bytes()
    before = files_of(pipeline)
    assert_refused(run_here("render", "s.zarr", "--format", "npz", "-q"), 2, "s-images.npz exists")
    assert files_of(pipeline) == before


def test_rows_and_views_are_chosen(pipeline):
    small_shards("v.zarr", 200, views=("identity", "hflip"))
    for number, (rows, expected) in enumerate({"60:70": (60, 70), "190:": (190, 200), ":3": (0, 3)}.items()):
        render("v.zarr", "--out", f"f{number}", "--rows", rows, "--view", "hflip")
        names = sorted(Path(f"f{number}").glob("*.png"))
        assert [int(path.stem) for path in names] == list(range(*expected))
        decoded = images_of("v.zarr", "train", slice(*expected), 1)
        assert nearly_equal(np.stack([read_png(name) for name in names]), decoded)
    render("v.zarr", "--out", "few", "--rows", "10:100", "--limit", "4")
    assert sorted(int(path.stem) for path in Path("few").glob("*.png")) == [10, 11, 12, 13]
    assert_refused(run_here("render", "v.zarr", "--view", "hflop", "-q"), 2, "hflop", "did you mean 'hflip'")
    assert_refused(run_here("render", "v.zarr", "--rows", "200:", "-q"), 3, "none of the 200 rows")
    for wrong in ("5", "a:b", "1:2:3", "-1:"):
        assert_refused(run_here("render", "v.zarr", f"--rows={wrong}", "-q"), 2, "rows", "START:STOP")


@pytest.mark.parametrize(("words", "shown"), [([], 100), (["--limit", "130"], 130), (["--rows", "3:10"], 7)])
def test_a_sheet_says_what_it_leaves_out(pipeline, words, shown):
    outcome = render(DIGITS, "--out", "s.png", *words)
    assert outcome.json["images"] == shown
    assert ("shows the first 100 of 1433" in outcome.err) == (not words)
    assert read_png("s.png").shape[0] == -(-shown // 10) * (64 + 14 + 4) + 4


def test_no_sheet_is_endless(pipeline):
    outcome = run_here("render", DIGITS, "--out", "s.png", "--limit", "0", "--dry-run", "--json")
    assert outcome.json["images"] == 1000
    assert "first 1000 of 1433" in outcome.err


def test_parts_cover_the_rows_within_shards(pipeline):
    cache = TokenCache(small_shards("s.zarr", 200))
    parts = list(parts_of(cache, "train", 0, range(50, 190), 30))
    assert [row for part in parts for row in part.rows] == list(range(50, 190))
    assert all(len(part.rows) == len(part.codes) == len(part.labels) <= 30 for part in parts)
    codes = np.concatenate([part.codes for part in parts])
    np.testing.assert_array_equal(codes, cache.read_split("train").codes[50:190, 0])


@pytest.mark.parametrize("form", ["png", "tree"])
def test_a_folder_that_was_cut_short_is_continued(pipeline, form):
    small_shards("s.zarr", 150)
    words = ["s.zarr", "--format", form]
    render(*words, "--out", "whole")
    render(*words, "--out", "part")
    pictures = sorted(Path("part").rglob("*.png"))
    kept = pictures[3]
    for picture in [*pictures[:3], *pictures[75:]]:
        picture.unlink()
    kept.write_bytes(b"kept")
    (pictures[0].parent / ".000000.png.partial").write_bytes(b"half")
    Path("part/about.json").rename("part/.unfinished.json")
    assert_refused(run_here("render", *words, "--out", "part", "--limit", "9", "-q"), 2, "part exists")
    render(*words, "--out", "part")
    assert kept.read_bytes() == b"kept"
    whole, part = (
        {name: read_png(Path(folder) / name) for name in files_of(Path(folder)) if name.endswith(".png")}
        for folder in ("whole", "part")
        if not kept.write_bytes(Path("whole", kept.relative_to("part")).read_bytes()) or True
    )
    assert whole.keys() == part.keys()
    assert all(np.array_equal(whole[name], part[name]) for name in whole)
    assert "nothing to do" in render(*words, "--out", "part").err
    assert not list(Path("part").rglob(".*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_same_command_continues_after_a_signal(pipeline, number):
    small_shards("s.zarr", 600)
    words = ["render", "s.zarr", "--out", "f"]
    process = fork_command(*words, cwd=pipeline)
    deadline = time.monotonic() + 100
    while len(list(Path("f").glob("0*.png"))) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    there = {path: path.stat().st_mtime_ns for path in Path("f").glob("0*.png")}
    if process.returncode:
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        assert number == signal.SIGKILL or "the pictures that are done are in f" in err
        assert len(there) < 600
        assert not Path("f/about.json").exists()
    for path in there:
        read_png(path)
    assert run_here(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert sorted(os.listdir("f")) == [*(f"{row:06d}.png" for row in range(600)), "about.json"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("out", ["all.npz", "sheet.png"])
def test_a_signal_leaves_nothing_of_a_file_that_is_not_whole(pipeline, monkeypatch, out, number, code):
    healthy, passes = coding.decode_codes, []

    def signalled_in_the_second_pass(*arguments):
        passes.append(arguments)
        if len(passes) == 2:
            signal.raise_signal(number)
        return healthy(*arguments)

    for module in (rendering, coding):
        monkeypatch.setattr(module, "images_per_pass", lambda *_: 50)
    monkeypatch.setattr(coding, "decode_codes", signalled_in_the_second_pass)
    before, handler = set(Path().iterdir()), signal.getsignal(signal.SIGTERM)
    outcome = run_here("render", DIGITS, "--out", out, "--limit", "200", "-q")
    assert_refused(outcome, code, f"interrupted by {number.name} before it was done", "same command again")
    assert len(passes) == 2
    assert set(Path().iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_only_what_was_rendered_is_replaced(pipeline):
    render(DIGITS, "--out", "f", "--format", "tree", "--limit", "20")
    assert_refused(run_here("render", DIGITS, "--out", "f", "--limit", "5", "-q"), 2, "f exists", "--overwrite")
    before = files_of(pipeline)
    render(DIGITS, "--out", "f", "--limit", "5", "--overwrite", "--dry-run")
    assert files_of(pipeline) == before
    render(DIGITS, "--out", "f", "--limit", "5", "--overwrite")
    assert sorted(os.listdir("f")) == [*(f"{row:06d}.png" for row in range(5)), "about.json"]
    Path("f/mine.txt").write_text("mine")
    assert_refused(run_here("render", DIGITS, "--out", "f", "--overwrite", "-q"), 3, "mine.txt")
    Path("f/mine.txt").unlink()
    Path("f/mine/empty").mkdir(parents=True)
    assert_refused(run_here("render", DIGITS, "--out", "f", "--overwrite", "-q"), 3, "f/mine/empty")
    assert len(list(Path("f").glob("*.png"))) == 5
    Path("other").mkdir()
    Path("other/000000.png").write_text("mine")
    assert_refused(run_here("render", DIGITS, "--out", "other", "--overwrite", "-q"), 3, "other/000000.png")
    assert Path("other/000000.png").read_text() == "mine"
    Path("file").write_text("mine")
    assert_refused(run_here("render", DIGITS, "--out", "file", "--overwrite", "-q"), 2, "file is a file")


@pytest.mark.parametrize("out", ["f", "f.npz", "f.png"])
def test_one_run_at_a_time_writes_a_result(pipeline, out):
    with WriteLock((pipeline / out).resolve()) as lock:
        lock.take()
        assert_refused(run_here("render", DIGITS, "--out", out, "-q"), 3, out, "is being written by process")
    assert not Path(out).exists()
    render(DIGITS, "--out", out, "--limit", "3")


def test_another_vqgan_is_refused(pipeline):
    assert run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--out", "o.pt").code == 0
    for form in ("sheet", "png", "npz"):
        words = ["render", DIGITS, "--format", form, "--checkpoint-vae", "o.pt", "-q"]
        assert_refused(run_here(*words), 3, "another VQ-GAN", "--checkpoint-vae")
    words = ["sample", "--num-samples", "2", "--checkpoint-vae", "o.pt", "--out", "s.zarr", "-q"]
    assert_refused(run_here(*words), 3, "another VQ-GAN")
    assert not Path("s.zarr").exists()


def test_what_a_format_cannot_hold_is_refused(pipeline):
    small_shards("n.zarr", 10, label_kind="none")
    assert_refused(run_here("render", "n.zarr", "--format", "tree", "-q"), 2, "no classes", "--format png")
    for words in (["--out", "x.png", "--format", "npz"], ["--out", "x.npz", "--format", "png"], ["--out", "x.zarr"]):
        assert_refused(run_here("render", DIGITS, *words, "-q"), 2, "out")
    assert_refused(run_here("render", DIGITS, "--format", "npz", "--show", "-q"), 2, "--show")


def test_formats_follow_from_names():
    def form(**values):
        return resolve(RenderConfig, {"cache": Path("a/b.zarr"), **values})

    assert (form().form, form().result) == ("sheet", Path("a/b.png"))
    assert (form(out=Path("x.npz")).form, form(out=Path("folder")).form) == ("npz", "png")
    assert form(format="png").result == Path("a/b-png")
    assert form(format="tree").result == Path("a/b-tree")
