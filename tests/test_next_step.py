"""The line that says what to do next, on a terminal; and the one that says which recipe is better than the defaults."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import TINY_GPT, run_here
from tests.test_run import RECIPE
from vqgpt.cli.app import COMMANDS
from vqgpt.cli.running import next_line


@pytest.mark.parametrize(
    ("table", "given", "result", "line"),
    [
        ("vqgan-train", {"recipe": "digits", "lr": 1.0}, {}, "vqgpt tokenize --recipe digits"),
        (
            "vqgan-train",
            {"dataset": "folder", "data_root": "my photos", "out": "a.pt", "val_split": 0.2},
            {"checkpoint": "a.pt"},
            "vqgpt tokenize --dataset folder --data-root 'my photos' --val-split 0.2 --checkpoint-vae a.pt",
        ),
        ("vqgan-reconstruct", {"recipe": "digits"}, {}, "vqgpt tokenize --recipe digits"),
        ("tokenize", {"recipe": "digits"}, {"cache": "cache/digits.zarr"}, "vqgpt train --recipe digits"),
        ("tokenize", {}, {"cache": "cache/mnist.zarr"}, "vqgpt train --cache cache/mnist.zarr"),
        ("train", {"dataset": "digits"}, {"checkpoint": "runs/digits/gpt.pt"}, "vqgpt sample --dataset digits"),
        ("train", {}, {"checkpoint": "runs/a/gpt.pt"}, "vqgpt sample --checkpoint-gpt runs/a/gpt.pt"),
        ("sample", {"recipe": "digits"}, {"cache": "runs/digits/s.zarr"}, "vqgpt evaluate samples runs/digits/s.zarr"),
        ("run", {"recipe": "digits", "until": "tokenize"}, {}, "vqgpt run --recipe digits"),
        ("run", {"recipe": "digits"}, {}, ""),
        ("doctor", {}, {}, ""),
    ],
)
def test_what_comes_after_a_command(table, given, result, line):
    assert next_line(COMMANDS[table], given, result, COMMANDS) == line


def test_it_is_said_last_and_on_a_terminal_only(pipeline, monkeypatch):
    sample = ["sample", "--num-samples", "2", "--out", "a.zarr", "--overwrite"]
    assert "next:" not in run_here(*sample).err
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: True))
    assert run_here(*sample).err.endswith("next: vqgpt evaluate samples a.zarr\n")
    for flag in ("--json", "--quiet", "--dry-run"):
        assert "next:" not in run_here(*sample, flag).err


def test_a_training_with_the_default_rate_names_a_recipe(pipeline):
    train = ["train", *TINY_GPT[:-2], "--out", "a.pt", "--dry-run"]
    assert "--recipe digits is better" in run_here(*train).err
    assert "is better" not in run_here(*train, "--lr", "1e-3").err
    assert "is better" not in run_here(*train, "--recipe", "digits").err
    Path("cache/digits.zarr").rename("cache/mine.zarr")
    assert "is better" not in run_here(*train).err  # there is no recipe of that name
    vqgan = run_here("vqgan", "train", "--dataset", "mnist", "--dry-run")
    assert "--recipe mnist is better" in vqgan.err


def test_a_network_that_a_recipe_chose_gets_no_advice_though_it_leaves_the_rate_alone(here):
    Path("r.toml").write_text(RECIPE.replace("lr = 1e-3\n", "", 1))
    outcome = run_here("run", "--recipe", "r.toml", "--until", "vqgan-train")
    assert outcome.code == 0, outcome.err
    assert "is better" not in outcome.err
