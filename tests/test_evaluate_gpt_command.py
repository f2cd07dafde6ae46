"""`vqgpt evaluate gpt` as a command: what it keeps, shows, finds by itself, and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import assert_refused, description, files_of, run_here, write_cache
from tests.test_boundary import BLOCK
from tests.test_evaluate_gpt import WORDS, evaluate, save, setup
from tests.test_score import save_gpt
from vqgpt.pictures.heat_map import SMALLEST_CELL, heat_map
from vqgpt.tokens import Split, TokenCache

RECORD, PICTURE = Path("runs/digits/evaluation.json"), Path("runs/digits/calibration.png")


def test_an_evaluation_is_kept_and_made_again_takes_its_own_place(here):
    setup(condition="class")
    first = evaluate("--limit", "20")
    kept = json.loads(RECORD.read_text())
    assert kept == {"gpt": [first]}
    assert first["of"]["cache"] == TokenCache(Path("cache/digits.zarr")).digest
    assert first["of"]["splits"] == ["train", "test"]
    for part in (first["of"]["cache"][:12], first["of"]["gpt"][:12], "20 rows of test", "seed 0", "--limit 20"):
        assert part in first["line"]
    assert first["pictures"] == {"calibration": str(PICTURE)}
    about = Image.open(PICTURE)
    assert json.loads(about.text["vqgpt"])["limit"] == 20
    before = files_of(here)
    command = first["line"].rpartition("vqgpt ")[2].split()
    assert run_here(*command).code == 0
    again = files_of(here)
    assert again[str(RECORD)] == before[str(RECORD)]
    assert before.keys() == again.keys()
    assert evaluate("--limit", "5")["of"]["limit"] == 5
    assert [entry["of"]["limit"] for entry in json.loads(RECORD.read_text())["gpt"]] == [20, 5]


def test_the_screen_shows_tables_and_findings_and_no_grid(here):
    setup(condition="class")
    outcome = run_here(*WORDS)
    assert outcome.code == 0, outcome.err
    for line in ("splits", "baselines", "loss by class", "unigram_by_position", "\nfindings", "\nline\n", str(PICTURE)):
        assert line in outcome.out
    assert "reliability" not in outcome.out
    assert "share right" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) < 400


def test_a_dry_run_writes_nothing(here):
    setup()
    before = files_of(here)
    outcome = run_here(*WORDS, "--dry-run", "--limit", "12", "--json")
    assert outcome.json["rows"] == {"train": 12, "test": 12}
    assert run_here(*WORDS, "--dry-run").code == 0
    assert files_of(here) == before


def test_the_gpt_and_the_cache_of_a_dataset_are_found(pipeline):
    outcome = run_here("evaluate", "gpt", "--json")
    assert outcome.code == 0, outcome.err
    trained = torch.load("runs/digits/gpt.pt", weights_only=True)["figures"]["held_out_bits_per_token"]
    assert outcome.json["splits"]["test"]["bits_per_token"] == pytest.approx(trained, abs=1e-5)
    assert outcome.json["cache"] == "cache/digits.zarr"
    assert set(outcome.json["loss_by_class"]) == set(TokenCache("cache/digits.zarr").description.class_names)
    assert_refused(run_here("evaluate", "gpt", "--dataset", "cifar10", "-q"), 4, "runs/cifar10/gpt.pt")
    wrong = run_here("evaluate", "gpt", "--dataset", "cifar10", "--checkpoint-gpt", "runs/digits/gpt.pt", "-q")
    assert_refused(wrong, 4, "cache/cifar10.zarr")


def test_a_gpt_of_another_cache_is_noted(here):
    setup()
    write_cache(Path("other.zarr"), description(rows=(20, 10)))
    outcome = run_here(*WORDS, "--cache", "other.zarr", "--json")
    assert outcome.code == 0
    assert "was trained on another cache than other.zarr" in outcome.err
    assert outcome.json["splits"]["train"]["rows"] == 20
    assert "another cache" not in run_here(*WORDS).err


def test_a_gpt_of_generativezoo_takes_the_grid_of_the_cache(here):
    model = setup()
    torch.save(model.state_dict(), "zoo.pt")
    words = ["evaluate", "gpt", "--checkpoint-gpt", "zoo.pt", "--n-head", "2"]
    result = run_here(*words, "--json")
    assert result.code == 0, result.err
    assert "does not record which VQ-GAN" in result.err
    expected = evaluate()["splits"]["test"]["bits_per_token"]
    assert result.json["splits"]["test"]["bits_per_token"] == pytest.approx(expected, abs=1e-5)
    assert "--n-head 2" in result.json["line"]


SPLITS = {
    "no held-out split": (Split(name="train", rows=5),),
    "no split 'train'": (Split(name="test", rows=5),),
    "split 'test' is empty": (Split(name="train", rows=5), Split(name="test", rows=0)),
    "split 'train' is empty": (Split(name="train", rows=0), Split(name="test", rows=5)),
}


@pytest.mark.parametrize("words", SPLITS)
def test_a_cache_without_the_rows_is_refused(here, words):
    setup(description(splits=SPLITS[words]))
    assert_refused(run_here(*WORDS, "-q"), 3, "cache/digits.zarr", words)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 32}, ["codes 16", "has 32"]),
        ({"grid": (3, 4)}, ["4 x 3", "3 x 4"]),
        ({"tokenizer_sha256": "u" * 64}, ["t" * 12, "u" * 12]),
    ],
)
def test_a_gpt_of_other_tokens_is_refused_with_both_sides(here, changes, words):
    save_gpt(description())
    write_cache(Path("c.zarr"), description(**changes))
    assert_refused(run_here(*WORDS, "--cache", "c.zarr", "-q"), 3, "g.pt", "c.zarr", *words)
    assert not Path("runs").exists()


def test_mistakes_are_named_and_nothing_of_others_is_replaced(here):
    setup()
    assert_refused(run_here(*WORDS, "--limit", "-1", "-q"), 2, "limit = -1")
    assert_refused(run_here(*WORDS, "--n-head", "4", "-q"), 2, "2 attention heads, not 4")
    assert_refused(run_here(*WORDS, "--cache", "none.zarr", "-q"), 4, "none.zarr")
    PICTURE.parent.mkdir(parents=True)
    PICTURE.write_bytes(b"a picture of mine")
    assert_refused(run_here(*WORDS, "-q"), 2, "calibration.png exists", "--overwrite")
    assert PICTURE.read_bytes() == b"a picture of mine"
    assert run_here(*WORDS, "--overwrite", "-q").code == 0
    assert run_here(*WORDS, "-q").code == 0
    RECORD.write_text("[]")
    assert_refused(run_here(*WORDS, "-q"), 3, "evaluation.json")
    assert RECORD.read_text() == "[]"


def test_predictions_that_are_not_finite_are_refused(here):
    what = description()
    model = setup(what)
    model.transformer["ln_f"].weight.data.fill_(3e38)
    save(model, what)
    assert_refused(run_here(*WORDS, "-q"), 6, "not all finite", "'train'")
    assert not RECORD.exists()
    assert not PICTURE.exists()


def test_without_the_vqgans_code_and_pil_there_is_no_picture(here):
    setup()
    code = f"{BLOCK}\nfrom vqgpt.cli.app import main\nmain({WORDS!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "no picture" in result.stderr
    assert json.loads(RECORD.read_text())["gpt"][0]["pictures"] == {}
    assert not PICTURE.exists()


def test_a_map_has_large_cells_and_its_scale():
    signed = np.array(heat_map(np.array([[-2.0, 0.0, 1.0]]), "title", signed=True)).astype(int)
    lowest, zero, highest = (signed[60, x] for x in (30, 140, 240))
    assert lowest[0] > lowest[2] + 50  # red
    assert zero.min() > 240  # light
    assert highest[2] > highest[0] + 50  # blue
    assert lowest.sum() < highest.sum()  # it is farther from zero
    assert heat_map(np.zeros((2, 100)), "t", signed=True).width >= 100 * SMALLEST_CELL
    rising = np.array(heat_map(np.arange(3.0)[None], "title", signed=False)).astype(int)
    shades = [rising[60, x].sum() for x in (30, 140, 240)]
    assert shades[0] > shades[1] > shades[2]
