"""`vqgpt sample` as users meet it: classes, guidance, completion of prompts, and large requests."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import OTHER_VQGAN, TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from tests.forked import fork_command
from tests.test_score import save_gpt
from vqgpt.api.render import read_mask
from vqgpt.errors import InputError, UsageError
from vqgpt.gpt.labels import is_prefix, keep_mask
from vqgpt.gpt.order import scan_order
from vqgpt.tokens import TokenCache, find_faults, read_manifest

ROW = "cache:train/17"


def sample(*arguments, out="x.zarr"):
    """Sample tokens; the cache, opened, and what was said."""
    outcome = run_here("sample", "--tokens-only", "--out", out, "--overwrite", *arguments)
    assert outcome.code == 0, outcome.err
    return TokenCache(Path(out)).read_split("samples"), outcome.err


def write_prompt(path, cache="cache/digits.zarr", row=17):
    """A picture of a row's codes, as the VQ-GAN decodes them."""
    outcome = run_here("render", cache, "--format", "png", "--out", f"{path}.all", "--limit", str(row + 1))
    assert outcome.code == 0, outcome.err
    Image.open(f"{path}.all/{row:06d}.png").save(path)


def test_a_row_of_the_cache_is_completed_in_variants(pipeline):
    source = TokenCache(Path("cache/digits.zarr")).read_split("train")
    tokens, said = sample("--prompt", ROW, "cache:digits:train/5", "--num-samples", "6")
    for number, row in enumerate([17, 5] * 3):
        assert (tokens.codes[number, 0, :4] == source.codes[row, 0, :4]).all()
        assert tokens.labels[number] == source.labels[row]
    assert (tokens.codes[0, 0] != tokens.codes[2, 0]).any()
    assert "come after sampled ones" not in said
    assert (tokens.log_prob < 0).all()


def test_kept_rows_change_nothing_of_what_they_are(pipeline):
    """Completing what was sampled, from the rows that it starts with, gives the same image again."""
    first, _ = sample("--num-samples", "3", "--class", "4", out="first.zarr")
    again, _ = sample("--prompt", "cache:first.zarr:samples/0", "--keep", "3", "--num-samples", "1")
    assert (first.codes[0] == again.codes[0]).all()
    assert again.labels.tolist() == [4]


def test_prompts_and_classes_are_combined(pipeline):
    tokens, _ = sample("--prompt", ROW, "cache:train/5", "--class", "1", "7", "--num-samples", "8", "--keep", "2 rows")
    assert tokens.labels.tolist() == [1, 1, 7, 7] * 2


def test_what_the_scan_order_cannot_serve_is_said(pipeline):
    source = TokenCache(Path("cache/digits.zarr")).read_split("train")
    tokens, said = sample("--prompt", ROW, "--keep", "left-half", "--num-samples", "2")
    assert "come after sampled ones" in said
    assert (tokens.codes[:, 0, :, :4] == source.codes[17, 0, :, :4]).all()


@pytest.mark.parametrize("side", [8, 16])
def test_a_mask_keeps_what_is_white(pipeline, side):
    pixels = np.zeros((side, side), np.uint8)
    pixels[: side // 4] = 255
    if side == 16:
        pixels[4, 1:] = 255  # parts of codes
    Image.fromarray(pixels).save("mask.png")
    source = TokenCache(Path("cache/digits.zarr")).read_split("train")
    tokens, _ = sample("--prompt", ROW, "--keep", "mask.png", "--num-samples", "1", "--temperature", "0")
    by_rows, _ = sample("--prompt", ROW, "--keep", "2", "--num-samples", "1", "--temperature", "0")
    assert (tokens.codes == by_rows.codes).all()
    assert (tokens.codes[0, 0, :2] == source.codes[17, 0, :2]).all()


def test_an_image_is_completed_by_its_codes(pipeline):
    write_prompt("prompt.png")
    tokens, _ = sample("--prompt", "prompt.png", "--num-samples", "2", "--class", "3")
    assert tokens.labels.tolist() == [3, 3]
    assert run_here("cache", "verify", "x.zarr").code == 0
    one_image, _ = sample("--prompt", "prompt.png", "--num-samples", "1")
    assert one_image.labels.tolist() == [-1]
    assert (one_image.codes[0, 0, :4] == tokens.codes[0, 0, :4]).all()


def test_a_completion_is_repaired_without_its_prompt(pipeline):
    write_prompt("prompt.png")
    sample("--prompt", "prompt.png", ROW, "--class", "1", "2", "--num-samples", "6")
    before = files_of(Path("x.zarr"))
    Path("prompt.png").unlink()
    Path("x.zarr/samples/codes/c/0/0/0/0").unlink()
    assert run_here("cache", "verify", "--repair", "x.zarr").code == 0
    assert files_of(Path("x.zarr")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--class", "elephant"], 2, ["elephant"]),
        (["--class", "3x"], 2, ["3x"]),
        (["--top-k", "0"], 2, ["top_k"]),
        (["--top-p", "0"], 2, ["top_p"]),
        (["--min-p", "1.5"], 2, ["min_p"]),
        (["--temperature", "-1"], 2, ["temperature"]),
        (["--cfg-scale", "-1"], 2, ["cfg_scale"]),
        (["--cfg-schedule", "cosine"], 2, ["cosine", "power-cosine"]),
        (["--keep", "top-half"], 2, ["keep", "--prompt"]),
        (["--prompt", "cache:17"], 2, ["cache:17", "cache:train/17"]),
        (["--prompt", "cache:train/99999"], 2, ["99999"]),
        (["--prompt", "cache:dev/1"], 3, ["dev", "train"]),
        (["--prompt", "cache:other.zarr:train/1"], 3, ["another VQ-GAN", "tttttttttttt"]),
        (["--cache", "other.zarr"], 3, ["another VQ-GAN", "tttttttttttt"]),
        (["--n-head", "4"], 2, ["2 attention heads, not 4", "--n-head"]),
        (["--prompt", "cache:nowhere.zarr:train/1"], 4, ["nowhere.zarr"]),
        (["--prompt", "missing.png"], 4, ["missing.png"]),
        (["--prompt", "broken.png"], 3, ["broken.png"]),
        (["--prompt", "small.png"], 3, ["small.png", "7 x 5", "16 x 16"]),
        (["--prompt", ROW, "--keep", "small.png"], 3, ["small.png", "7 x 5", "8 x 8", "16 x 16"]),
        (["--prompt", ROW, "--keep", "bottom-half"], 4, ["--keep bottom-half", "top-half"]),
        (["--prompt", ROW, "--keep", "0"], 2, ["none"]),
        (["--prompt", ROW, "--keep", "8"], 2, ["all"]),
    ],
)
def test_what_cannot_be_is_refused(pipeline, arguments, code, words):
    write_cache(Path("other.zarr"), description())
    Image.new("L", (7, 5), 255).save("small.png")
    Path("broken.png").write_bytes(b"\x89PNG and nothing else")
    assert_refused(run_here("sample", "--tokens-only", "--out", "x.zarr", *arguments), code, *words)
    assert not Path("x.zarr").exists()


def test_an_image_and_another_vqgan_are_refused(pipeline):
    Image.new("L", (16, 16)).save("prompt.png")
    assert run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--out", "other.pt").code == 0
    refused = run_here("sample", "--prompt", "prompt.png", "--checkpoint-vae", "other.pt", "--out", "x.zarr")
    assert_refused(refused, 3, "another VQ-GAN", "other.pt")


def test_guidance_needs_a_gpt_that_knows_images_without_a_label(pipeline):
    for flags, words in (
        ([], "without classes"),
        (["--condition", "class", "--label-dropout", "0"], "label-dropout 0"),
    ):
        assert run_here("train", "--out", "g.pt", "--overwrite", *flags, *TINY_GPT).code == 0
        refused = run_here("sample", "--checkpoint-gpt", "g.pt", "--cfg-scale", "2", "--tokens-only", "--out", "x.zarr")
        assert_refused(refused, 2, words)


def test_a_gpt_that_knows_no_image_without_a_label_is_told_one(pipeline):
    assert run_here("train", "--out", "g.pt", "--condition", "class", "--label-dropout", "0", *TINY_GPT).code == 0
    Image.new("L", (16, 16)).save("prompt.png")
    of_it = ["--checkpoint-gpt", "g.pt", "--num-samples", "2"]
    for flags in (["--class", "3", "none"], ["--prompt", "prompt.png"]):
        refused = run_here("sample", "--tokens-only", "--out", "x.zarr", *of_it, *flags)
        assert_refused(refused, 2, "label-dropout 0", "--class")
    assert sample(*of_it, "--prompt", "prompt.png", "--class", "3")[0].labels.tolist() == [3, 3]


def test_a_huge_request_is_planned_in_little_memory(pipeline):
    outcome = run_here("sample", "--num-samples", str(10**12), "--out", "x.zarr", "--dry-run", "--json")
    assert outcome.json["images"] == 10**12


def test_all_classes_come_in_equal_shares(pipeline):
    tokens, _ = sample("--class", "all", "--num-samples", "30", "--cfg-scale", "2", "--top-p", "0.9")
    assert np.bincount(tokens.labels).tolist() == [3] * 10


def test_a_killed_request_is_continued_to_the_same_bytes(pipeline):
    """Several shards; the process is killed once one is committed."""
    command = ["sample", "--tokens-only", "--num-samples", "2500", "--out", "many.zarr"]
    process = fork_command(*command, cwd=pipeline)
    while process.poll() is None:
        if Path("many.zarr/zarr.json").exists() and read_manifest(Path("many.zarr")).shards["samples"]:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate()
    assert not read_manifest(Path("many.zarr")).complete
    outcome = run_here(*command)
    assert outcome.code == 0, outcome.err
    assert find_faults(Path("many.zarr")) == []
    sample("--num-samples", "2500", out="whole.zarr")
    assert files_of(Path("many.zarr")) == files_of(Path("whole.zarr"))


def test_prefixes_of_scan_orders():
    kept = np.full((1, 3, 3), -1)
    kept[0, 0] = 1
    kept[0, 1, 2] = 1
    assert is_prefix(kept, scan_order("s-pattern", (3, 3)).numpy())
    assert not is_prefix(kept, scan_order("raster", (3, 3)).numpy())


def test_masks_of_the_grid_and_of_the_image(tmp_path):
    what = description(grid=(4, 3), image_size=(16, 12))
    assert keep_mask("top-half", what, read_mask)[:, 0].tolist() == [True, True, False, False]
    assert keep_mask("left-half", what, read_mask)[0].tolist() == [True, False, False]
    assert keep_mask("3-rows", what, read_mask).sum() == 9
    Image.new("L", (12, 16), 127).save(tmp_path / "dark.png")
    with pytest.raises(UsageError, match="none"):
        keep_mask(str(tmp_path / "dark.png"), what, read_mask)
    Image.new("L", (16, 12), 255).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match="turned"):
        keep_mask(str(tmp_path / "turned.png"), what, read_mask)


def test_a_row_of_other_classes_has_no_label_for_the_gpt(here):
    save_gpt(description(), condition="class")
    write_cache(Path("same.zarr"), description())
    write_cache(Path("other.zarr"), description(class_names=("cat", "dog")))
    words = ["--checkpoint-gpt", "g.pt", "--keep", "2", "--num-samples", "2"]
    tokens, _ = sample(*words, "--prompt", "cache:same.zarr:train/5", "cache:other.zarr:train/5")
    assert tokens.labels[0] >= 0
    assert tokens.labels[1] == -1


def test_a_sampled_row_of_bits_is_completed_with_what_was_told(here):
    """The labels of the cache do not tell bits that are off from those that were not told; `classes` does."""
    save_gpt(description(label_kind="bits"), condition="bits")
    words = ["--checkpoint-gpt", "g.pt", "--num-samples", "2"]
    first, _ = sample(*words, "--class", "none", "b", out="first.zarr")
    again, _ = sample(*words, "--prompt", "cache:first.zarr:samples/0", "cache:first.zarr:samples/1", "--keep", "2")
    assert (again.codes == first.codes).all()
    assert (again.log_prob == first.log_prob).all()
    assert read_manifest(Path("x.zarr")).description.sampling["classes"] == [[0, 0], [-1, 1]]
