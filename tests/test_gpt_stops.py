"""What ends or upsets a training of the GPT, and its rarer settings: each does what it says, and loses nothing."""

import math
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.test_gpt_training import new_model, new_training, trained
from tests.test_interruption import assert_same_training, lines_of, saved_step
from vqgpt.api import train as train_gpt
from vqgpt.gpt import training as gpt_training
from vqgpt.gpt.model import GPT
from vqgpt.gpt.training import GPTTraining
from vqgpt.runtime.device import deterministic
from vqgpt.training.loop import read_figures

COMMAND = ["train", "--cache", "a.zarr", *TINY_GPT, "--sample-and-save-freq", "1", "--out"]


@pytest.fixture
def cache(here):
    """A folder with a token cache of 100 rows."""
    write_cache(Path("a.zarr"), description())
    return here


def test_a_signal_within_a_step_gives_it_up_and_takes_it_again(cache, monkeypatch):
    command = [*COMMAND[:-1], "--n-epochs", "4", "--grad-accum", "4", "--dropout-t", "0.2", "--ema", "0.5", "--out"]
    healthy, asked = GPTTraining.masks, []

    def masks(self, step, first, end):
        if step == 2 and first == 50:
            asked.append(signal.raise_signal(signal.SIGTERM))
        return healthy(self, step, first, end)

    with monkeypatch.context() as patch:
        patch.setattr(GPTTraining, "masks", masks)
        outcome = run_here(*command, "s/gpt.pt")
    assert_refused(outcome, 143, "interrupted by SIGTERM; 2 of 4 steps are saved in s/gpt.unfinished.pt")
    assert not asked  # the signal was heard there and then
    for folder in ("s", "whole"):
        assert run_here(*command, f"{folder}/gpt.pt").code == 0
    assert_same_training(Path("s"), Path("whole"), "gpt.pt")


@pytest.mark.parametrize("work", ["held_out_figures", "sample_codes"])
def test_a_signal_cuts_a_validation_short(cache, monkeypatch, work):
    """The next run makes it up: figures, best and last are those of a training that was not stopped."""
    command = [*COMMAND[:-1], "--n-epochs", "4", "--sample-and-save-freq", "2", "--out"]
    module = gpt_training if work == "held_out_figures" else train_gpt
    healthy, asked = getattr(module, work), []

    def interrupted(*arguments):
        asked.append(signal.raise_signal(signal.SIGTERM))
        return healthy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, work, interrupted)
        outcome = run_here(*command, "s/gpt.pt")
    assert_refused(outcome, 143, "interrupted by SIGTERM; 2 of 4 steps are saved in s/gpt.unfinished.pt")
    assert not asked  # the signal was heard there and then
    assert len(lines_of(Path("s/metrics.jsonl"))) == 1
    for folder in ("s", "whole"):
        assert run_here(*command, f"{folder}/gpt.pt").code == 0
    for name in ("gpt.pt", "gpt.best.pt"):
        assert_same_training(Path("s"), Path("whole"), name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fp16_leaves_out_the_steps_whose_gradients_overflow(here, optimizer):
    training = new_training(precision="fp16", batch_size=1, optimizer=optimizer)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    norms = []
    for step in training.schedule.steps(0):
        figures = read_figures([(step, training.take_step(step))])
        norms += figures["gradient_norm"]
        if len(norms) == 1:
            assert norms == [0.0]
            assert training.scaler.get_scale() == 2.0**29
            assert all(map(torch.equal, before, training.model.parameters()))
    assert norms[-1] > 0
    assert not any(map(torch.equal, before, training.model.parameters()))


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_where_one_gradient_overflows_nothing_moves(wrong, grad_clip):
    training = new_training(precision="fp16", optimizer="muon", grad_clip=grad_clip)
    optimizer, scaler = training.optimizer, torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.zeros(()))  # which makes its tensors
    for parameter in optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    training.model.transformer["wte"].weight.grad[0, 0] = wrong
    before = [parameter.detach().clone() for parameter in optimizer.parameters]
    assert optimizer.step(1e-2, torch.zeros(()), scaler) == 0
    assert all(map(torch.equal, before, optimizer.parameters))
    assert scaler.get_scale() == 1.0
    for parameter in optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.step(1e-2, torch.zeros(()), scaler) > 0
    assert all(parameter.isfinite().all() for parameter in optimizer.parameters)
    assert not any(map(torch.equal, before, optimizer.parameters))


def test_after_a_loss_that_is_not_finite_the_last_state_is_intact(cache, monkeypatch):
    healthy = GPT.loss

    def spoilt(self, codes, *others):
        loss = healthy(self, codes, *others)
        return loss * math.nan if self.training and saved_step(Path("s/gpt.unfinished.pt")) else loss

    with monkeypatch.context() as patch:
        patch.setattr(GPT, "loss", spoilt)
        outcome = run_here(*COMMAND, "s/gpt.pt", "-q")
    assert_refused(outcome, 6, "the loss is nan at step 1 (epoch 1; rows ", "--lr")
    assert sorted(map(int, outcome.err.split("rows ")[1].split(")")[0].split(", "))) == list(range(100))
    for folder in ("s", "whole"):
        assert run_here(*COMMAND, f"{folder}/gpt.pt").code == 0
    assert_same_training(Path("s"), Path("whole"), "gpt.pt")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_samples(cache, precision):
    outcome = run_here(*COMMAND, "x/gpt.pt", "--precision", precision, "--arch", "llama", "--n-epochs", "3")
    assert outcome.code == 0, outcome.err
    losses = [record["loss"] for record in lines_of(Path("x/metrics.jsonl"))]
    assert losses[-1] < losses[0]
    assert Path("x/gpt.samples.npy").exists()


def test_the_last_epoch_is_saved_whatever_the_frequency(cache):
    outcome = run_here(*COMMAND[:-3], "--sample-and-save-freq", "2", "--n-epochs", "3", "--out", "x/gpt.pt", "--json")
    assert outcome.code == 0, outcome.err
    records = lines_of(Path("x/metrics.jsonl"))
    assert ["held_out_bits_per_token" in record for record in records] == [False, True, True]
    figures = torch.load("x/gpt.pt", weights_only=True)["figures"]
    assert outcome.json["held_out_nats_per_token"] == figures["held_out_nats_per_token"]
    assert figures["held_out_nats_per_token"] == records[-1]["held_out_nats_per_token"]
    assert figures["held_out_bits_per_token"] == pytest.approx(figures["held_out_nats_per_token"] / math.log(2))


def test_the_metrics_have_a_name_and_a_unit_each(cache):
    assert run_here(*COMMAND, "x/gpt.pt", "--batch-size", "30").code == 0
    first, last = lines_of(Path("x/metrics.jsonl"))
    held_out = {"held_out_nats_per_token", "held_out_bits_per_token"}
    speed = {"tokens_per_second", "images_per_second", "waiting_seconds"}
    assert set(first) == {
        "stage",
        "checkpoint",
        "step",
        "epoch",
        "images",
        "loss",
        "gradient_norm",
        "learning_rate",
    } | (speed | held_out)
    assert (first["step"], first["images"], last["step"], last["images"]) == (4, 100, 8, 200)
    assert first["tokens_per_second"] == pytest.approx(12 * first["images_per_second"], rel=0.5)


def test_deterministic_operations_are_asked_for_and_no_longer_than_wanted(cache, monkeypatch):
    """But in drawing samples, on which no weight depends, and which has an operation that is refused on CUDA."""
    masks, draw_samples, asked = GPTTraining.masks, train_gpt.sample_codes, {"step": set(), "samples": set()}

    def seen(name, function):
        def wrapper(*arguments):
            asked[name].add(torch.are_deterministic_algorithms_enabled())
            return function(*arguments)

        return wrapper

    monkeypatch.setattr(GPTTraining, "masks", seen("step", masks))
    monkeypatch.setattr(train_gpt, "sample_codes", seen("samples", draw_samples))
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()
    for folder in ("one", "two"):
        assert run_here(*COMMAND, f"{folder}/gpt.pt", "--deterministic").code == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert asked == {"step": {True}, "samples": {False}}
    assert_same_training(Path("one"), Path("two"), "gpt.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch gives up
def test_a_network_that_cannot_be_compiled_is_an_error_that_says_so(cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert_refused(run_here(*COMMAND, "a/gpt.pt", "--compile", "on"), 2, "cannot be compiled here", "--compile off")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch gives up
def test_a_compiled_network_takes_the_same_steps(here):
    models = [new_model(dropout_t=0.0) for _ in range(2)]
    plain, compiled = (
        new_training(model=model, compile=compile, max_steps=2, lr=1e-3)
        for model, compile in zip(models, ("off", "on"), strict=True)
    )
    losses, weights = trained(plain)
    theirs, their_weights = trained(compiled)
    assert theirs == pytest.approx(losses, rel=1e-5)
    for one, other in zip(weights, their_weights, strict=True):
        torch.testing.assert_close(one, other, atol=5e-4, rtol=0)
