"""Fine-tuning that makes images likelier by their own class than by others, so that samples need no guidance."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.test_draws import draws
from tests.test_gpt import tiny_gpt
from tests.test_interruption import assert_resumes
from vqgpt.gpt.contrast import Contrast, log_probabilities
from vqgpt.gpt.options import GPTTrainingOptions
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining
from vqgpt.training.schedule import Schedule

CLASS = [*TINY_GPT, "--condition", "class"]


def changed(model):
    """The network a little later."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


@torch.no_grad()
def test_the_loss_is_that_of_the_paper():
    model = tiny_gpt(condition="class")
    contrast = Contrast(model, scale=0.1, weight=7.0)
    before = tiny_gpt(condition="class")
    changed(model)
    codes, labels, others = torch.randint(16, (4, 12)), torch.tensor([0, 2, -1, 1]), torch.tensor([1, 0, 2, 2])
    cells, views = model.cells, torch.zeros(4, dtype=torch.int64)

    def gain(label):
        after, earlier = (log_probabilities(network, codes, label, cells, views) for network in (model, before))
        return 0.1 * (after - earlier)

    own, other = gain(labels).sigmoid().log(), (-gain(others)).sigmoid().log()
    other[2] = 0  # which has no label
    expected = -(own + 7 * other).mean() / 7
    torch.testing.assert_close(contrast.loss(codes, labels, others, cells, views), expected)


@torch.no_grad()
def test_log_probabilities_are_sums_over_the_tokens():
    model, codes, labels = tiny_gpt(condition="class"), torch.randint(16, (2, 12)), torch.tensor([1, -1])
    log_p = model.predictions(codes, labels, model.cells).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    found = log_probabilities(model, codes, labels, model.cells, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(found, log_p.sum(dim=1))


def test_the_other_label_is_any_but_the_own():
    steps = draws(finetune="cca", num_classes=4).label_shifts
    assert steps.unique().tolist() == [1, 2, 3]
    assert draws().label_shifts is None


def test_it_tells_classes_apart_more_than_before():
    """Two classes that share half of their images."""
    model = tiny_gpt(condition="class", grid=(2, 2), codebook_size=4, num_classes=2, dropout_t=0.5)
    labels = torch.arange(64) % 2
    grids = torch.where(torch.rand(64, 1, 2, 2) < 0.5, 0, 2 + labels[:, None, None, None])
    data = TokenGrids(codes=grids.to(torch.uint8), labels=labels)

    def trained(steps, **options):
        schedule = Schedule(seed=0, num_rows=64, batch_size=64, n_epochs=steps)
        all_options = GPTTrainingOptions(batch_size=64, n_epochs=steps, warmup=0, **options)
        training = GPTTraining(model, data, data, all_options, schedule, "fp32")
        for step in schedule.steps(0):
            training.take_step(step)

    @torch.no_grad()
    def advantage():
        codes = data.codes[:, 0].flatten(1).long()
        views = torch.zeros(64, dtype=torch.int64)
        own, other = (
            log_probabilities(model.eval(), codes, label, model.cells, views) for label in (labels, 1 - labels)
        )
        return (own - other).mean().item()

    trained(20, lr=3e-3)
    before = advantage()
    trained(20, lr=1e-3, finetune="cca", cca_scale=0.5, cca_weight=1.0)
    assert advantage() > before + 1


def test_it_resumes_bit_for_bit(here):
    write_cache(Path("a.zarr"), description())
    assert run_here("train", "--cache", "a.zarr", *CLASS, "--out", "start.pt").code == 0
    command = ["train", "--cache", "a.zarr", *CLASS, "--checkpoint-gpt", "start.pt", "--finetune", "cca"]
    assert_resumes([*command, "--batch-size", "20", "--sample-and-save-freq", "1"], "gpt.pt")


def test_the_other_label_is_told_apart_from_the_own_and_hidden_ones_have_none(monkeypatch):
    model = tiny_gpt(condition="class", num_classes=3, grid=(2, 2))
    labels = torch.arange(60) % 3
    data = TokenGrids(codes=torch.zeros(60, 1, 2, 2, dtype=torch.uint8), labels=labels)
    schedule, seen = Schedule(seed=0, num_rows=60, batch_size=60, n_epochs=1), []
    options = GPTTrainingOptions(batch_size=60, finetune="cca", label_dropout=0.3)
    training = GPTTraining(model, data, data, options, schedule, "fp32")
    loss = Contrast.loss
    monkeypatch.setattr(Contrast, "loss", lambda self, *batch: seen.append(batch) or loss(self, *batch))
    step = next(schedule.steps(0))
    training.take_step(step)
    own, others = (torch.cat([batch[place] for batch in seen]) for place in (1, 2))
    assert 5 < (own < 0).sum() < 30
    assert (own[own >= 0] == labels[step.rows][own >= 0]).all()
    assert (others != labels[step.rows]).all()
    assert others.unique().tolist() == [0, 1, 2]


def test_it_starts_from_a_gpt_of_the_same_tokens_and_classes(here):
    write_cache(Path("a.zarr"), description())
    write_cache(Path("b.zarr"), description(class_names=("b", "a")))
    write_cache(Path("c.zarr"), description(tokenizer_sha256="u" * 64))
    assert run_here("train", "--cache", "a.zarr", *CLASS, "--out", "start.pt").code == 0
    command = ["train", *CLASS, "--checkpoint-gpt", "start.pt", "--finetune", "cca", "--out", "x.pt", "-q", "--cache"]
    assert_refused(run_here(*command, "b.zarr"), 3, "start.pt", "classes")
    assert_refused(run_here(*command, "c.zarr"), 3, "c.zarr", "VQ-GAN")


def test_its_options_are_its_own(here):
    write_cache(Path("a.zarr"), description())
    for flag in ("--cca-scale", "--cca-weight"):
        outcome = run_here("train", "--cache", "a.zarr", *CLASS, flag, "3", "--out", "x.pt", "-q")
        assert_refused(outcome, 2, flag[2:].replace("-", "_"), "--finetune cca")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--condition", "class"], ["--checkpoint-gpt"]),
        (["--checkpoint-gpt", "none.pt"], ["--condition class"]),
        (["--condition", "class", "--token-noise", "1"], ["token_noise", "--finetune cca"]),
        (["--condition", "class", "--compile", "on"], ["compile", "--finetune cca"]),
        (["--condition", "class", "--patience", "2"], ["patience", "--finetune cca"]),
        (["--condition", "class", "--cca-scale", "0"], ["cca_scale", "positive"]),
    ],
)
def test_what_it_does_not_go_with(here, arguments, words):
    write_cache(Path("a.zarr"), description())
    command = ["train", "--cache", "a.zarr", *TINY_GPT, "--finetune", "cca", "--out", "x.pt"]
    assert_refused(run_here(*command, *arguments, "-q"), 2, *words)
