"""Signals and kill -9: what was done is kept, and the same command ends where an undisturbed one ends."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, TINY_VQGAN, description, files_of, run_here, write_cache
from tests.forked import fork_command
from vqgpt.gpt.training import GPTTraining

LONG_GPT = [*TINY_GPT, "--n-epochs", "30", "--sample-and-save-freq", "3", "--dropout-t", "0.2", "--batch-size", "10"]
STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]  # and exit codes
LONG_VQGAN = [*TINY_VQGAN, "--size", "8", "--limit", "100", "--batch-size", "20"]
LONG_VQGAN += ["--n-epochs", "4", "--sample-and-save-freq", "1", "--dropout", "0.1"]


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def saved_step(unfinished: Path) -> int:
    """The step of a state, 0 while there is none that is whole."""
    try:
        return torch.load(unfinished, weights_only=True)["state"]["step"]
    except (OSError, RuntimeError):
        return 0


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_rates(records: list[dict]) -> list[dict]:
    timed = ("_per_second", "_seconds")
    return [{name: value for name, value in record.items() if not name.endswith(timed)} for record in records]


def assert_same_training(one: Path, other: Path, name: str) -> None:
    first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
    for key, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][key]), key
    assert first["figures"] == second["figures"]
    assert without_rates(lines_of(one / "metrics.jsonl")) == without_rates(lines_of(other / "metrics.jsonl"))


def assert_resumes(command: list[str], *names: str) -> None:
    """A training of a GPT that is stopped after its fourth step, and goes on, ends as one that is not."""
    healthy, steps = GPTTraining.passes, []

    def stopped(self, *images):
        steps.append(None)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGTERM)
        return healthy(self, *images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTraining, "passes", stopped)
        outcome = run_here(*command, "--out", "s/gpt.pt")
    assert outcome.code == 143, outcome.err
    assert saved_step(Path("s/gpt.unfinished.pt")) == 4
    for folder in ("s", "whole"):
        outcome = run_here(*command, "--out", f"{folder}/gpt.pt")
        assert outcome.code == 0, outcome.err
    for name in names:
        assert_same_training(Path("s"), Path("whole"), name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a token cache, and a GPT that was trained on it without a break: look, do not touch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_cache(folder / "a.zarr", description())
    outcome = run_here(*training_on(folder), "--out", folder / "gpt.pt")
    assert outcome.code == 0, outcome.err
    return folder


def training_on(folder: Path) -> list[str]:
    return ["train", "--cache", str(folder / "a.zarr"), *LONG_GPT]


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_gpt_training_that_is_stopped_continues_bit_for_bit(here, undisturbed, number, code):
    command = [*training_on(undisturbed), "--out", "stopped/gpt.pt"]
    process = fork_command(*command, cwd=here)
    wait_for(lambda: saved_step(Path("stopped/gpt.unfinished.pt")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    if code > 0:
        assert "run the same command again" in err
    assert not Path("stopped/gpt.pt").exists()
    outcome = run_here(*command)
    assert outcome.code == 0, outcome.err
    assert "continuing after step" in outcome.err
    assert_same_training(Path("stopped"), undisturbed, "gpt.pt")
    assert not Path("stopped/gpt.unfinished.pt").exists()


def test_a_vqgan_training_that_is_killed_continues_bit_for_bit(here):
    command = ["vqgan", "train", "--dataset", "digits", *LONG_VQGAN, "--out"]
    process = fork_command(*command, "stopped/vqgan.pt", cwd=here)
    wait_for(lambda: saved_step(Path("stopped/vqgan.unfinished.pt")), process)
    process.kill()
    process.communicate(timeout=60)
    for folder in ("stopped", "whole"):
        outcome = run_here(*command, f"{folder}/vqgan.pt")
        assert outcome.code == 0, outcome.err
        assert ("continuing after step" in outcome.err) == (folder == "stopped")
    assert_same_training(Path("stopped"), Path("whole"), "vqgan.pt")


def test_other_settings_do_not_continue_an_unfinished_training(here, undisturbed):
    command = [*training_on(undisturbed), "--out", "s/gpt.pt"]
    process = fork_command(*command, cwd=here)
    wait_for(lambda: saved_step(Path("s/gpt.unfinished.pt")), process)
    process.kill()
    process.communicate(timeout=60)
    outcome = run_here(*command, "--lr", "0.1")
    assert outcome.code == 3
    assert "lr: 0.001 there, 0.1 here" in outcome.err
    assert "--overwrite" in outcome.err
    assert Path("s/gpt.unfinished.pt").exists()
    assert run_here(*command, "--lr", "0.1", "--overwrite").code == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_tokenization_that_is_stopped_ends_in_the_same_bytes(pipeline, number):
    command = ["tokenize", "--dataset", "digits", "--limit", "150", "--batch-size", "4", "--cache"]
    assert run_here(*command, "whole.zarr").code == 0
    for delay in (0.0, 0.1):
        process = fork_command(*command, "stopped.zarr", cwd=pipeline)
        wait_for(lambda: Path("stopped.zarr/codebook").exists(), process)
        time.sleep(delay)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, 143, 0)  # -SIGTERM: still importing
    assert run_here(*command, "stopped.zarr").code == 0
    assert files_of(Path("stopped.zarr")) == files_of(Path("whole.zarr"))


def test_a_loss_that_is_not_finite_stops_before_the_step(pipeline):
    outcome = run_here("train", *TINY_GPT, "--lr", "1e30", "--warmup", "0", "--grad-clip", "0", "--out", "x/gpt.pt")
    assert outcome.code == 6
    assert "rows" in outcome.err
    assert "saved" not in outcome.err  # nothing was
    assert not Path("x/gpt.pt").exists()
