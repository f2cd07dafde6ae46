"""The commands as users meet them: flags in both spellings, precedence, files, errors and exit codes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from vqgpt.cli.app import COMMANDS
from vqgpt.cli.console import Screen
from vqgpt.data.table import DATASETS
from vqgpt.options.definition import options_of
from vqgpt.progress import Progress
from vqgpt.tokens import TokenCache

DRY_VQGAN = ["vqgan", "train", "--dataset", "digits", "--size", "16", "--dry-run"]


def test_help_needs_no_torch_and_names_every_command():
    code = (
        "import sys; from vqgpt.cli.app import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("tokenize", "train", "sample", "render", "doctor", "vqgan", "cache"):
        assert re.search(rf"^│ {command} ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "command", [["vqgan", "train"], ["tokenize"], ["train"], ["sample"], ["render"], ["cache", "info"]]
)
def test_options_stand_in_named_groups(command):
    out = run_here(*command, "--help").out
    groups = {option.group for option in options_of(COMMANDS["-".join(command)].config) if not option.is_argument}
    for group in {*groups, "Common"}:
        assert f"─ {group} ─" in out


def test_both_spellings_and_lists_are_understood(here):
    flags = ["--ch_mult", "1", "2", "2", "--z_channels=16", "--attn_resolutions", "8", "4", "--num_res_blocks", "1"]
    outcome = run_here(*DRY_VQGAN, *flags, "--double_z")
    assert outcome.code == 0, outcome.err
    assert "ch_mult=1 2 2" in outcome.err
    assert "z_channels=16" in outcome.err
    assert "attn_resolutions=8 4" in outcome.err
    assert "double_z=yes" in outcome.err


def test_betas_take_two_numbers(here):
    write_cache(Path("cache/a.zarr"), description())
    outcome = run_here("train", "--betas", "0.8", "0.99", "--dry-run", *TINY_GPT)
    assert outcome.code == 0, outcome.err
    assert "betas=0.8 0.99" in outcome.err


def test_a_value_that_is_not_one_of_a_choice_is_named(here):
    assert_refused(run_here("train", "--condition", "foo"), 2, "Invalid value for '--condition': 'foo' is not one of")


def test_flag_wins_over_environment_over_recipe_over_default(here, monkeypatch):
    Path("r.toml").write_text('dataset = "digits"\nsize = 16\n[vqgan-train]\nn_embed = 32\nlr = 0.5\nbatch_size = 7\n')
    monkeypatch.setenv("VQGPT_VQGAN_TRAIN_N_EMBED", "64")
    monkeypatch.setenv("VQGPT_VQGAN_TRAIN_LR", "0.25")
    monkeypatch.setenv("VQGPT_VQGAN_TRAIN_CH_MULT", "1 2")
    err = run_here("vqgan", "train", "--recipe", "r.toml", "--lr", "0.125", "--dry-run").err
    for text in ("n_embed=64", "lr=0.125", "batch_size=7", "ch_mult=1 2 ", "n_epochs=100", "dataset=digits"):
        assert text in err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("batchsize = 3", ["batchsize", "batch_size"]),
        ("[train]\nn_layers = 3", ["n_layers", "[train]", "n_layer"]),
        ("[trian]\nn_layer = 3", ["trian", "train"]),
        ("[vqgan-train]\nlr = true", ["lr", "float"]),
        ('[vqgan-train]\nch_mult = "1 2"', ["ch_mult", "a list of int"]),
        ('[vqgan-train]\ncodebook = "emma"', ["emma", "ema"]),
        ("[vqgan-train]\nchannels = 33", ["channels", "multiple of 2"]),
        ("n_layer = = 3", ["r.toml", "TOML"]),
    ],
)
def test_a_recipe_with_a_mistake_names_it(here, recipe, words):
    Path("r.toml").write_text(recipe)
    assert_refused(run_here("vqgan", "train", "--recipe", "r.toml", "--dry-run"), 2, *words)


def test_every_recipe_that_comes_with_vqgpt_fits_every_command(here):
    recipes = sorted((Path(__file__).parent.parent / "pipelines").glob("*.toml"))
    assert {recipe.stem for recipe in recipes} == set(DATASETS) - {"folder"} | {"emoji"}
    Path("own/faces").mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (64, 64)).save(f"own/faces/{number}.png")
    for recipe in recipes:
        own = recipe.stem not in DATASETS
        outcome = run_here(
            "vqgan", "train", "--recipe", recipe.stem, "--dry-run", *(["--data-root", "own"] if own else [])
        )
        assert outcome.code == 0, outcome.err
        assert f"dataset={'folder' if own else recipe.stem}" in outcome.err


def test_a_dry_run_writes_nothing(here):
    assert run_here(*DRY_VQGAN).code == 0
    write_cache(Path("cache/a.zarr"), description())
    before = files_of(here)
    assert run_here("train", "--dry-run").code == 0
    assert files_of(here) == before


def test_a_dry_run_of_each_stage_downloads_and_writes_nothing(pipeline):
    before = files_of(pipeline)
    tokenize = ["tokenize", "--dataset", "mnist", "--checkpoint-vae", "runs/digits/vqgan.pt", "--data-root", "images"]
    for command in (tokenize, ["sample", "--tokens-only"]):
        outcome = run_here(*command, "--dry-run")
        assert outcome.code == 0, outcome.err
    assert files_of(pipeline) == before


def test_json_is_one_object_on_stdout(pipeline):
    for command in (
        ["cache", "info", "cache/digits.zarr"],
        ["cache", "list"],
        ["doctor"],
        ["render", "runs/digits/samples.zarr", "--out", "x.png"],
    ):
        outcome = run_here(*command, "--json")
        assert outcome.code == 0, outcome.err
        assert isinstance(outcome.json, dict)


def test_the_pipeline_leaves_what_it_promises(finished_pipeline):
    run = finished_pipeline / "runs/digits"
    names = {
        "vqgan.pt",
        "vqgan.best.pt",
        "vqgan.png",
        "gpt.pt",
        "gpt.best.pt",
        "gpt.samples.png",
        "metrics.jsonl",
        "samples.png",
        "samples.zarr",
    }
    assert names == {path.name for path in run.iterdir()}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["vqgan", "gpt", "gpt"]
    assert records[0]["psnr_db"] > 5
    assert records[-1]["held_out_bits_per_token"] < 4.1
    gpt = torch.load(run / "gpt.pt", weights_only=True)
    assert gpt["configuration"]["model"]["n_layer"] == 1
    assert gpt["cache_digest"] == TokenCache(finished_pipeline / "cache/digits.zarr").digest
    samples = TokenCache(run / "samples.zarr")
    assert samples.read_split("samples").labels.tolist() == [*range(10), *range(10)]
    assert samples.description.sampling["temperature"] == 1.0


def test_the_same_command_gives_the_same_result(pipeline):
    before = (files_of(Path("runs/digits/samples.zarr")), files_of(Path("cache/digits.zarr")))
    gpt = torch.load("runs/digits/gpt.pt", weights_only=True)["model"]
    for command in (
        ["tokenize", "--dataset", "digits", "--cache", "again.zarr"],
        ["train", "--condition", "class", "--cache", "again.zarr", "--out", "again.pt", *TINY_GPT],
        [
            "sample",
            "--checkpoint-gpt",
            "again.pt",
            "--num-samples",
            "20",
            "--out",
            "again-samples.zarr",
            "--tokens-only",
        ],
    ):
        assert run_here(*command).code == 0
    assert (files_of(Path("again-samples.zarr")), files_of(Path("again.zarr"))) == before
    again = torch.load("again.pt", weights_only=True)["model"]
    assert all(torch.equal(again[name], tensor) for name, tensor in gpt.items())


def test_sampling_by_class(pipeline):
    outcome = run_here("sample", "--class", "3", "7", "none", "--num-samples", "5", "--out", "s.zarr", "--tokens-only")
    assert outcome.code == 0, outcome.err
    assert TokenCache(Path("s.zarr")).read_split("samples").labels.tolist() == [3, 7, -1, 3, 7]
    assert not Path("s.png").exists()
    assert_refused(run_here("sample", "--class", "seven", "--out", "t.zarr"), 2, "seven")
    assert_refused(run_here("sample", "--class", "10", "--out", "t.zarr"), 2, "'10'")


def test_sampling_without_a_vqgan_keeps_the_tokens(pipeline):
    Path("runs/digits/vqgan.pt").unlink()
    outcome = run_here("sample", "--num-samples", "2", "--out", "s.zarr")
    assert outcome.code == 0
    assert "no picture: there is no VQ-GAN at runs/digits/vqgan.pt; with the one that made the tokens" in outcome.err
    assert TokenCache(Path("s.zarr")).read_split("samples").codes.shape == (2, 1, 8, 8)


def test_render_makes_a_sheet_or_a_folder(pipeline):
    assert run_here("render", "cache/digits.zarr", "--split", "test", "--limit", "3", "--out", "folder").code == 0
    names = sorted(path.name for path in Path("folder").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "about.json"]
    assert run_here("render", "runs/digits/samples.zarr", "--out", "sheet.png").code == 0
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    assert_refused(run_here("render", "runs/digits/samples.zarr", "--out", "sheet.png"), 2, "sheet.png", "--overwrite")


def test_reconstruct_shows_figures(pipeline):
    outcome = run_here("vqgan", "reconstruct", "--dataset", "digits", "--out", "r.png", "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) >= {"psnr_db", "used_codes", "perplexity", "picture"}


def test_cache_info_and_list_tell_what_is_there(pipeline):
    info = run_here("cache", "info", "cache/digits.zarr", "--json").json
    assert info["grid"] == [8, 8]
    assert info["train_rows"] + info["test_rows"] == 1797
    assert 0 < info["train_entropy_bits_per_token"] <= 4
    assert "complete" in run_here("cache", "list").out
    assert run_here("cache", "list", "--json").json["digits.zarr"]["rows"] == 1797


def test_work_that_is_over_at_once_has_no_rate(capsys):
    screen = Screen(quiet=False, as_json=False)
    for done in (1, 3):
        screen.report(Progress(task="sample", done=done, total=3, unit="images", values={"shard": 1, "of": 1}))
    assert capsys.readouterr().err.split() == ["sample:", "3/3", "images", "shard", "1", "of", "1"]


def test_the_rate_of_a_later_stage_is_its_own(capsys, monkeypatch):
    """As `vqgpt run` checks images before it trains the VQ-GAN, and again before it tokenizes."""
    screen = Screen(quiet=False, as_json=False)
    for seconds, done in ((0.0, 0), (20.0, 100), (1000.0, 0), (1020.0, 100)):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: seconds)
        screen.report(Progress(task="check", done=done, total=100, unit="images"))
    assert capsys.readouterr().err.split() == ["check:", "100/100", "images", "5.0", "images/s", "eta", "0", "s"] * 2


def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert run_here("datasets").code == 0
    assert os.environ.pop("GOMP_SPINCOUNT") == "3000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert run_here("datasets").code == 0
    assert "GOMP_SPINCOUNT" not in os.environ
