"""Whole trainings of the VQ-GAN: stopped and continued, with a damaged state, on several processes."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_refused, files_of, run_here
from tests.forked import fork_command, run_ranks
from tests.test_interruption import STOPS, assert_same_training, lines_of, saved_step, wait_for

SMALL = ["--size", "8", "--channels", "32", "--z-channels", "8", "--ch-mult", "1", "1", "--num-res-blocks", "1"]
SMALL += ["--n-embed", "16", "--embed-dim", "4", "--lr", "1e-3", "--attn-resolutions", "0"]
SMALL += ["--limit", "95", "--batch-size", "16", "--n-epochs", "1"]
LONG = [*SMALL, "--n-epochs", "4", "--sample-and-save-freq", "1", "--dropout", "0.1"]
LONG += ["--ema", "0.9", "--disc-start", "8", "--warmup", "1", "--lr-schedule", "cosine"]
COMMAND = ["vqgan", "train", "--dataset", "digits", *LONG, "--out"]
STEPS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a training that nothing disturbed: look, do not touch."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run_here(*COMMAND, str(folder / "vqgan.pt"))
    assert outcome.code == 0, outcome.err
    assert f"the discriminator starts at step 8 of {STEPS}" in outcome.err
    return folder


def start_and_stop(number, when, folder):
    process = fork_command(*COMMAND, "stopped/vqgan.pt", cwd=folder)
    wait_for(lambda: when(Path("stopped")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_generator_and_discriminator_continue_bit_for_bit(here, whole, number, code):
    returned, err = start_and_stop(number, lambda folder: len(lines_of(folder / "metrics.jsonl")) >= 2, here)
    assert returned == code
    if code > 0:
        assert "run the same command again" in err
        assert STEPS / 2 <= saved_step(Path("stopped/vqgan.unfinished.pt")) < STEPS
    outcome = run_here(*COMMAND, "stopped/vqgan.pt")
    assert outcome.code == 0, outcome.err
    assert_same_training(Path("stopped"), whole, "vqgan.pt")
    assert_same_training(Path("stopped"), whole, "vqgan.best.pt")
    names = {"vqgan.pt", "vqgan.best.pt", "vqgan.png", "metrics.jsonl"}
    assert {path.name for path in Path("stopped").iterdir()} == names


def test_a_damaged_state_is_named_and_the_one_before_it_is_used(here, whole):
    start_and_stop(signal.SIGKILL, lambda folder: len(lines_of(folder / "metrics.jsonl")) >= 3, here)
    newest = Path("stopped/vqgan.unfinished.pt")
    if not newest.exists():  # killed between the two renames
        shutil.copy("stopped/vqgan.unfinished.previous.pt", newest)
    newest.write_bytes(newest.read_bytes()[:5000])
    outcome = run_here(*COMMAND, "stopped/vqgan.pt")
    assert outcome.code == 0, outcome.err
    assert "stopped/vqgan.unfinished.pt is" in outcome.err
    assert "continuing from stopped/vqgan.unfinished.previous.pt" in outcome.err
    assert_same_training(Path("stopped"), whole, "vqgan.pt")


def test_metrics_go_to_tensorboard_where_that_is_asked_for(here):
    pytest.importorskip("tensorboard")
    outcome = run_here("vqgan", "train", "--dataset", "digits", *SMALL, "--tensorboard", "--out", "x/vqgan.pt")
    assert outcome.code == 0, outcome.err
    (events,) = Path("x/tensorboard/vqgan").iterdir()
    assert b"psnr_db" in events.read_bytes()


def test_two_damaged_states_are_refused(here):
    Path("x").mkdir()
    for name in ("unfinished", "unfinished.previous"):
        Path(f"x/vqgan.{name}.pt").write_bytes(b"damaged")
    assert_refused(run_here(*COMMAND, "x/vqgan.pt", "-q"), 3, "x/vqgan.unfinished.pt", "--overwrite")
    assert Path("x/vqgan.unfinished.pt").read_bytes() == b"damaged"


def test_the_best_is_the_best_and_the_last_is_the_last(whole):
    records = lines_of(whole / "metrics.jsonl")
    best, last = (torch.load(whole / name, weights_only=True)["figures"] for name in ("vqgan.best.pt", "vqgan.pt"))
    assert best["psnr_db"] == max(record["psnr_db"] for record in records)
    assert last["psnr_db"] == records[-1]["psnr_db"]
    assert records[-1]["step"] == STEPS
    assert all(0 < record["epoch_used_codes"] <= 16 for record in records)
    assert "discriminator_loss" in records[-1]
    assert "discriminator_loss" not in records[0]


def test_the_best_of_another_training_is_not_replaced_unasked(here):
    Path("x").mkdir()
    Path("x/vqgan.best.pt").write_text("mine")
    assert_refused(run_here(*COMMAND, "x/vqgan.pt", "-q"), 2, "x/vqgan.best.pt", "--overwrite")
    assert Path("x/vqgan.best.pt").read_text() == "mine"


def train_on_ranks(processes, out, *more):
    train = ["-m", "vqgpt", "vqgan", "train", "--dataset", "digits", *SMALL, *more, "--out", out, "--json"]
    result = run_ranks(processes, *train)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # the main process alone prints


def test_two_processes_train_one_model(here):
    """Gradients and codebook statistics are those of the whole batch: the result is that of one process, but for
    rounding. (Batch normalisation sees a rank's part only, so that the discriminator stays out of the comparison.)"""
    steps = ["--batch-size", "80", "--n-epochs", "2", "--lr", "1e-4", "--codebook-decay", "0.5", "--revive-below", "0"]
    steps += ["--disc-weight", "0", "--grad-clip", "0"]
    figures = {count: train_on_ranks(count, f"{count}/vqgan.pt", *steps) for count in (1, 2)}
    one, two = (torch.load(f"{count}/vqgan.pt", weights_only=True)["model"] for count in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-3, msg=name)
    torch.testing.assert_close(two["quantize.embedding.weight"], one["quantize.embedding.weight"], rtol=1e-3, atol=1e-3)
    assert figures[2]["psnr_db"] == pytest.approx(figures[1]["psnr_db"], abs=0.05)
    for alone, together in zip(*(lines_of(Path(f"{count}/metrics.jsonl")) for count in (1, 2)), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-4)
        assert together["epoch_perplexity"] == pytest.approx(alone["epoch_perplexity"], rel=0.02)


RANKS_AGREE = """
import sys
import torch
from vqgpt.__main__ import leave_at_once
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.runtime.device import largest_over_ranks, process_group, rank
from tests.test_vqgan_training import start_training

with process_group(torch.device("cpu")):
    # 41 images in batches of 8: the last batch of an epoch has 1 image for 2 ranks
    options = {"revive_below": 0.9} if len(sys.argv) == 1 else {"train": sys.argv[1]}
    training = start_training(images=41, disc_start=2, warmup=0, disc_weight=0.8, ema=0.5, **options)
    for step in training.schedule.steps(0):
        training.take_step(step)
    parts = [training.model, training.averaged, training.discriminator]
    state = {"epoch": training.epoch_counts, **(training.codebook.state_dict() if training.codebook else {})}
    for index, part in enumerate(parts):
        state |= {f"{index}.{name}": value for name, value in part.named_parameters()}
    digest = sum(value.double().abs().sum().item() for value in state.values())
    exact = hash(tuple(value.detach().numpy().tobytes() for value in state.values())) % 2**31
    assert largest_over_ranks(exact) == exact == -largest_over_ranks(-exact), (rank(), digest)
    assert training.epoch_counts.sum() == 2 * 41 * 64, training.epoch_counts.sum()
    print("agreed", rank())
leave_at_once(0)
"""


@pytest.mark.parametrize("arguments", [[], ["decoder"]])
def test_two_processes_have_the_same_networks_and_codebook_after_every_kind_of_step(here, arguments):
    """With a discriminator, revival, a moving average, and batches of fewer rows than ranks: equal to the last bit."""
    Path("agree.py").write_text(RANKS_AGREE)
    result = run_ranks(2, "agree.py", *arguments, PYTHONHASHSEED="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("agreed") == 2


@pytest.mark.parametrize("command", [["sample"], ["vqgan", "reconstruct"]])
def test_commands_of_one_process_refuse_several(here, monkeypatch, command):
    for name, text in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, text)
    assert_refused(run_here(*command), 2, "2 processes", "torchrun")


def test_remap_and_double_z_and_l2_codes_train_and_tokenize(here):
    import numpy as np

    np.save("used.npy", np.array([3, 0, 11, 7, 5]))
    flags = [*SMALL, "--remap", "used.npy", "--double-z", "--l2-codes"]
    outcome = run_here("vqgan", "train", "--dataset", "digits", *flags, "--json")
    assert outcome.code == 0, outcome.err
    assert 1 < outcome.json["used_codes"] <= 5
    outcome = run_here("tokenize", "--dataset", "digits", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["codebook_size"] == 5
    outcome = run_here("vqgan", "info", "runs/digits/vqgan.pt", "--json")
    assert outcome.json["lookup"] == "cosine"
    assert outcome.json["double_z"] is True
    assert outcome.json["codebook_size"] == 5


def test_tokenize_takes_a_remap_and_render_wants_the_same(pipeline):
    import numpy as np

    np.save("used.npy", np.arange(0, 16, 2))
    command = ["tokenize", "--dataset", "digits", "--remap", "used.npy", "--cache", "few.zarr", "--json"]
    outcome = run_here(*command)
    assert outcome.code == 0, outcome.err
    assert outcome.json["codebook_size"] == 8
    assert_refused(run_here("render", "few.zarr", "--out", "x.png"), 3, "another VQ-GAN", "--remap")
    assert run_here("render", "few.zarr", "--remap", "used.npy", "--out", "x.png").code == 0
    assert_refused(run_here(*command[:-2], "cache/digits.zarr"), 3, "tokenizer_sha256")


def test_a_checkpoint_that_recorded_options_of_before_stays_readable(pipeline):
    path = Path("runs/digits/vqgan.pt")
    content = torch.load(path, weights_only=True)
    content["configuration"]["model"] |= {"sane_index_shape": True, "colorize_nlabels": None}
    torch.save(content, path)
    plain = run_here("vqgan", "info", "runs/digits/vqgan.pt", "--json")
    assert plain.code == 0, plain.err
    for words in (["tokenize", "--dataset", "digits", "--cache", "again.zarr"], ["export", "vqgan.safetensors"]):
        flags = ["--checkpoint-vae", str(path), "--to", "safetensors"] if words[0] == "export" else []
        outcome = run_here(*words, *flags)
        assert outcome.code == 0, outcome.err
    assert files_of(Path("again.zarr")) == files_of(Path("cache/digits.zarr"))


def test_help_of_the_training_names_its_groups(here):
    out = run_here("vqgan", "train", "--help").out
    for words in ("Codebook", "Loss", "--disc-start", "--perceptual-weight"):
        assert re.search(words, out)
