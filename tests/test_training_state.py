"""An unfinished training of the right settings whose state is another's, or was made by hand: refused by name."""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.forked import fork_command
from tests.test_interruption import saved_step, wait_for
from tests.test_vqgan_runs import SMALL

EVERY_EPOCH = ["--sample-and-save-freq", "1", "--n-epochs", "300", "-q"]
TRAININGS = {
    "gpt": ["train", "--cache", "a.zarr", *TINY_GPT, "--optimizer", "muon", "--ema", "0.9", *EVERY_EPOCH],
    "vqgan": ["vqgan", "train", "--dataset", "digits", *SMALL, "--ema", "0.9", "--disc-start", "1", "--warmup", "0"],
}
TRAININGS["vqgan"] += EVERY_EPOCH


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder in which both trainings were stopped after some steps: look, do not touch."""
    folder = tmp_path_factory.mktemp("stopped")
    write_cache(folder / "a.zarr", description())
    for kind, command in TRAININGS.items():
        process = fork_command(*command, "--out", f"{kind}.pt", cwd=folder)
        wait_for(lambda kind=kind: saved_step(folder / f"{kind}.unfinished.pt") > 1, process)
        process.send_signal(signal.SIGTERM)
        assert "are saved in" in process.communicate(timeout=60)[1]
    return folder


def first_of(place):
    return next(iter(place))


def wrong_shape(place, name):
    place[name] = torch.zeros(*place[name].shape, 2)


CHANGES = {
    "nothing of it": lambda training: training.clear(),
    "no model": lambda training: training.pop("model"),
    "a model that is none": lambda training: training.update(model=3),
    "a weight that is gone": lambda training: training["model"].pop(first_of(training["model"])),
    "a weight too many": lambda training: training["model"].update(more=torch.zeros(2)),
    "a weight of another shape": lambda training: wrong_shape(training["model"], first_of(training["model"])),
    "a weight that is a number": lambda training: training["model"].update({first_of(training["model"]): 1.0}),
    "a weight of whole numbers": lambda training: training["model"].update(
        {name: value.long() for name, value in training["model"].items()}
    ),
    "an average that is gone": lambda training: training.pop("averaged"),
    "an average of another shape": lambda training: wrong_shape(training["averaged"], first_of(training["averaged"])),
    "something more": lambda training: training.update(more=1),
    "no optimizer": lambda training: training.pop("optimizer"),
    "an optimizer that is none": lambda training: training.update(optimizer=[]),
}
MOMENTS = {
    "no state": lambda part: part.pop("state"),
    "another parameter": lambda part: part["state"].update({999: part["state"][0]}),
    "a moment that is gone": lambda part: part["state"][0].pop(first_of(part["state"][0])),
    "all moments of one": lambda part: part["state"].update({0: {}}),
    "a moment too many": lambda part: part["state"][0].update(more=torch.zeros(())),
    "a moment of another shape": lambda part: wrong_shape(part["state"][0], list(part["state"][0])[-1]),
    "steps of many parameters": lambda part: part["state"][0].update(step=torch.zeros(3)),
}
OF_GPT = {
    "parts": lambda training: training["optimizer"].pop("parts"),
    "one part": lambda training: training["optimizer"]["parts"].pop(),
    "a part that is none": lambda training: training["optimizer"].update(parts=[1, 2]),
    "a scaler": lambda training: training["scaler"].update(scale=2.0),
}
OF_VQGAN = {
    "counts": lambda training: training.update(epoch_counts=torch.zeros(1, dtype=torch.int64)),
    "a codebook": lambda training: training["codebook"].update(counts=torch.zeros(1)),
    "moments": lambda training: training.update(epoch_moments=torch.zeros(1)),
    "a discriminator": lambda training: training.pop("discriminator"),
    "its optimizer": lambda training: training.pop("discriminator_optimizer"),
}
OPTIMIZERS = {  # how to find what torch calls the state of an optimiser, in that of a training
    ("gpt", "muon"): lambda training: training["optimizer"]["parts"][1],
    ("gpt", "adamw"): lambda training: training["optimizer"]["parts"][0],
    ("vqgan", "adam"): lambda training: training["optimizer"],
    ("vqgan", "muon"): lambda training: training["muon"],
    ("vqgan", "the discriminator's"): lambda training: training["discriminator_optimizer"],
}
ALL = {f"{kind}, {name}": (kind, change) for kind in TRAININGS for name, change in CHANGES.items()}
ALL |= {f"gpt, {name}": ("gpt", change) for name, change in OF_GPT.items()}
ALL |= {f"vqgan, {name}": ("vqgan", change) for name, change in OF_VQGAN.items()}
ALL |= {
    f"{kind}, {optimizer}: {name}": (kind, lambda training, change=change, find=find: change(find(training)))
    for (kind, optimizer), find in OPTIMIZERS.items()
    for name, change in MOMENTS.items()
}


@pytest.fixture
def unfinished(stopped, here):
    """What reads and changes one of the states, and what runs its command again."""
    (here / "a.zarr").symlink_to(stopped / "a.zarr")

    def change_state(kind, change, part="state"):
        state = torch.load(stopped / f"{kind}.unfinished.pt", weights_only=True)
        change(state["state"] if part == "state" else state["identity"])
        torch.save(state, f"{kind}.unfinished.pt")
        return run_here(*TRAININGS[kind], "--out", f"{kind}.pt")

    return change_state


@pytest.mark.parametrize(("kind", "change"), ALL.values(), ids=ALL)
def test_a_state_that_does_not_fit_is_refused_by_name(unfinished, kind, change):
    outcome = unfinished(kind, lambda state: change(state["training"]))
    assert_refused(
        outcome, 3, f"{kind}.unfinished.pt does not belong to this training", "give --overwrite to start anew"
    )
    assert Path(f"{kind}.unfinished.pt").exists()


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_in_another_precision_is_named_with_what_continues_it(unfinished, kind):
    outcome = unfinished(kind, lambda identity: identity.update(precision="fp16"), part="identity")
    assert_refused(outcome, 3, "precision", "give --precision fp16 to continue it", "--overwrite")
    outcome = unfinished(kind, lambda identity: identity.update(precision="fp16", seed=9), part="identity")
    assert_refused(outcome, 3, "seed", "--overwrite")
    assert "to continue it" not in outcome.err


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_step_beyond_the_last_is_not_of_this_training(unfinished, kind):
    outcome = unfinished(kind, lambda state: state.update(step=10**6, unvalidated=None))
    assert_refused(outcome, 3, f"{kind}.unfinished.pt does not belong to this training", "1000000 steps of")
    assert not Path(f"{kind}.pt").exists()


def first_loss(metrics, kind):
    lines = map(json.loads, metrics.read_text().splitlines())
    return next(line["loss"] for line in lines if line["stage"] == kind)


@pytest.mark.parametrize("optimizer", [("gpt", "muon"), ("vqgan", "the discriminator's")])
def test_overwrite_starts_anew_with_nothing_of_a_state_that_does_not_fit(unfinished, stopped, here, optimizer):
    kind, _ = optimizer  # the last of its optimisers, so that all else could be loaded
    outcome = unfinished(kind, lambda state: MOMENTS["a moment that is gone"](OPTIMIZERS[optimizer](state["training"])))
    assert outcome.code == 3
    process = fork_command(*TRAININGS[kind], "--out", f"{kind}.pt", "--overwrite", cwd=here)
    wait_for(lambda: Path("metrics.jsonl").exists() and Path("metrics.jsonl").read_text().count("\n"), process)
    process.send_signal(signal.SIGTERM)
    assert "are saved in" in process.communicate(timeout=60)[1]
    assert first_loss(Path("metrics.jsonl"), kind) == first_loss(stopped / "metrics.jsonl", kind)
