"""--shard: the steps of several processes that have a part of the network each are those of one that has it all."""

import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, description, run_here, torchrun, write_cache
from tests.forked import run_ranks
from tests.test_gpt_training import new_model, new_training, trained
from tests.test_interruption import saved_step, wait_for

SETTINGS = {
    "plain": {},
    "all": {"grad_accum": 4, "ema": 0.9, "token_dropout": 0.1, "grad_clip": 0.05},
    "bf16": {"precision": "bf16", "model": lambda: new_model(arch="llama", order="hilbert")},
    "muon": {"optimizer": "muon"},
}
LARGEST_DIFFERENCE = {"plain": 5e-4, "all": 5e-4, "bf16": 5e-3, "muon": 5e-3}  # Muon computes in bfloat16


def start(name, **changes):
    """22 rows in batches of 10: the last batch of an epoch has 2, fewer than three processes."""
    settings = {"rows": 22, "batch_size": 10, "max_steps": 5, **SETTINGS[name], **changes}
    model = settings.pop("model", new_model)()
    return new_training(model=model, **settings)


def take_steps(training, numbers):
    for step in training.schedule.steps(0):
        if step.index in numbers:
            training.take_step(step)


RANKS = """
import sys
import torch
from tests.test_sharding import SETTINGS, start, take_steps
from tests.test_gpt_training import read_figures
from vqgpt.__main__ import leave_at_once
from vqgpt.runtime.device import process_group, rank
from vqgpt.training.weights import whole

with process_group(torch.device("cpu")):
    results = {}
    for name in SETTINGS:
        training = start(name, shard=True)
        parts = sum(parameter.to_local().numel() for parameter in training.optimizer.parameters)
        assert parts < 0.6 * sum(parameter.numel() for parameter in training.optimizer.parameters)
        read = [read_figures([(step, training.take_step(step))]) for step in training.schedule.steps(0)]
        result = {figure: [values[figure][0] for values in read] for figure in ("loss", "gradient_norm")}
        results[name] = {**result, "weights": training.result_weights(), "held_out": training.validate()}
    saving = start("all", shard=True)
    take_steps(saving, range(2))
    continued = start("all", shard=True)
    continued.load_state_dict(torch.load("of one.pt", weights_only=True))
    take_steps(continued, range(2, 5))
    overflowing = start("plain", shard=True, precision="fp16")
    before = whole([parameter.detach() for parameter in overflowing.optimizer.parameters])
    overflowing.scaler._init_scale = 2.0**126
    take_steps(overflowing, range(1))
    after = whole([parameter.detach() for parameter in overflowing.optimizer.parameters])
    results["skipped"] = all(map(torch.equal, before, after)) and overflowing.scaler.get_scale() == 2.0**125
    results["continued"] = continued.result_weights()
    state = saving.state_dict()
    if rank() == 0:
        torch.save(results, sys.argv[1])
        torch.save(state, "of several.pt")
leave_at_once(0)
"""


@pytest.fixture(scope="module")
def expected():
    """What one process comes to."""
    results = {}
    for name in SETTINGS:
        training = start(name)
        losses, _ = trained(training)
        results[name] = {"loss": losses, "weights": training.result_weights(), "held_out": training.validate()}
    return results


def assert_close(weights, expected, largest):
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=largest, rtol=0, msg=name)


@pytest.mark.parametrize("count", [2, 3])
def test_two_and_three_processes_with_a_part_each_take_the_steps_of_one(here, expected, count):
    half = start("all")
    take_steps(half, range(2))
    torch.save(half.state_dict(), "of one.pt")
    Path("ranks.py").write_text(RANKS)
    result = run_ranks(count, "ranks.py", "results.pt")
    assert result.returncode == 0, result.stderr
    results = torch.load("results.pt", weights_only=True)
    for name in SETTINGS:
        assert results[name]["loss"] == pytest.approx(expected[name]["loss"], rel=1e-5 if name == "plain" else 1e-3)
        assert_close(results[name]["weights"], expected[name]["weights"], LARGEST_DIFFERENCE[name])
        assert results[name]["held_out"] == pytest.approx(expected[name]["held_out"], rel=1e-3)
    assert min(results["all"]["gradient_norm"]) > 0.05  # every step was clipped
    assert_close(results["continued"], expected["all"]["weights"], LARGEST_DIFFERENCE["all"])
    assert results["skipped"]

    continued = start("all")
    continued.load_state_dict(torch.load("of several.pt", weights_only=True))
    take_steps(continued, range(2, 5))
    assert_close(continued.result_weights(), expected["all"]["weights"], LARGEST_DIFFERENCE["all"])


def test_a_training_in_parts_stops_saves_and_continues_in_one_process(here):
    write_cache(Path("a.zarr"), description())
    flags = ["train", "--cache", "a.zarr", *TINY_GPT, "--n-epochs", "200", "--ema", "0.5", "--out", "s/gpt.pt"]
    command = [*torchrun(2), "-m", "vqgpt", *flags, "--shard"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: saved_step(Path("s/gpt.unfinished.pt")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "steps are saved in s/gpt.unfinished.pt" in err
    outcome = run_here(*flags)
    assert outcome.code == 0, outcome.err
    assert "continuing after step" in outcome.err
    assert Path("s/gpt.samples.npy").exists()


def test_one_process_has_nothing_to_cut(here):
    assert_refused(run_here("train", "--shard"), 2, "--shard", "torchrun")
