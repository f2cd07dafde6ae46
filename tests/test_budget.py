"""`vqgpt run --budget`: a recipe scaled to the time that there is."""

import itertools
import math
import time
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.conftest import assert_refused, files_of, run_here
from vqgpt.api.budget import TOLERANCE, Budget, limit_for, scaled_length
from vqgpt.api.estimates import Costs, gpt_schedule, vqgan_schedule
from vqgpt.api.options import RunConfig
from vqgpt.api.run import stages_of
from vqgpt.commands import all_commands
from vqgpt.errors import UsageError
from vqgpt.options.definition import resolve
from vqgpt.options.recipe import load_recipe, recipe_toml, recipes
from vqgpt.training.schedule import Schedule

TINY = """dataset = "digits"
[vqgan-train]
size = 16
channels = 16
z_channels = 8
ch_mult = [1, 1]
num_res_blocks = 1
n_embed = 16
embed_dim = 4
attn_resolutions = [0]
disc_weight = 0
n_epochs = 10
[train]
condition = "class"
n_layer = 1
n_head = 2
embed_dim_t = 32
n_epochs = 20
warmup = 2
[sample]
num_samples = 4
"""


def configs_of(recipe):
    config = resolve(RunConfig, {})
    return {stage.command.table: stage.config for stage in stages_of(config, recipe, "a test", all_commands())}


def costs_of(configs, vqgan_step=1e-3, encoding=2e-4, gpt_step=2e-3, sampling=1e-3):
    """What an image costs on a machine where the work of a network grows with the square of its width."""
    vqgan, gpt = configs["vqgan-train"].model.channels / 32, configs["train"].model.embed_dim_t / 128
    return Costs(
        vqgan_step=vqgan_step * vqgan**2,
        encoding=encoding * vqgan**2,
        gpt_step=gpt_step * gpt**2,
        sampling=sampling * gpt**2,
    )


def budget(seconds, rows, costs=costs_of):
    return Budget(seconds=seconds, rows=rows, share_for_evaluation=0.1, configs=configs_of, costs=costs)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["digits", "mnist", "cifar10", "imagenet", "celeba"]),
    seconds=st.floats(60, 1e6),
    train_rows=st.integers(100, 1_300_000),
    speed=st.floats(1e-3, 10),
)
def test_a_plan_takes_the_time_that_there_is_or_says_how_much_it_needs(name, seconds, train_rows, speed):
    recipe = load_recipe(recipes()[name])
    costs = partial(costs_of, vqgan_step=1e-3 * speed, encoding=2e-4 * speed, gpt_step=2e-3 * speed)
    plans = budget(seconds, {"train": train_rows, "test": train_rows // 10 + 1}, costs)
    try:
        plan, expected = plans.plan(recipe)
    except UsageError as error:
        event("too short")
        needed = resolve(RunConfig, {"budget": error.hint.split()[2]}).budget_seconds
        if needed <= (1 + TOLERANCE) * seconds:
            raise
        return
    assert abs(plans.total(expected) / seconds - 1) <= TOLERANCE
    assert tomllib.loads(recipe_toml(plan)) == plan
    assert expected.get("tokenize", 0.0) <= 0.11 * seconds


@pytest.mark.parametrize("hours", [0.05, 0.4, 1, 4, 40])
def test_longer_runs_have_longer_trainings_then_wider_networks_and_the_same_share_for_each(hours):
    recipe, rows = load_recipe(recipes()["mnist"]), {"train": 60_000, "test": 10_000}
    plan, _ = budget(3600 * hours, rows).plan(recipe)
    before, after = configs_of(recipe), configs_of(plan)
    width, channels = after["train"].model.embed_dim_t, after["vqgan-train"].model.channels
    assert (width / 128, channels / 32) == ({0.05: 0.5, 4: 2, 40: 4}.get(hours, 1),) * 2
    assert width // after["train"].model.n_head == 128 // before["train"].model.n_head
    assert after["train"].training.lr == pytest.approx(2e-2 * 128 / width)
    steps = [gpt_schedule(each["train"], rows, None).num_steps for each in (before, after)]
    images = [vqgan_schedule(each["vqgan-train"], rows).num_images for each in (before, after)]
    assert steps[1] / steps[0] == pytest.approx(images[1] / images[0], rel=0.05)
    warmups = [each["train"].training.warmup for each in (before, after)]
    assert warmups[1] / warmups[0] == pytest.approx(steps[1] / steps[0], rel=0.05)


def test_a_limit_of_the_recipe_is_not_raised():
    recipe = load_recipe(recipes()["imagenet"]) | {"tokenize": {"limit": 100_000}}
    plan, _ = budget(100, {"train": 1_281_167, "val": 50_000}).plan(recipe)
    assert plan["tokenize"]["limit"] < 100_000


def test_networks_are_no_narrower_than_they_can_be():
    recipe = {
        "dataset": "mnist",
        "vqgan-train": {"channels": 64, "norm_groups": 32},
        "train": {"n_head": 7, "embed_dim_t": 112},
    }
    plan, _ = budget(150, {"train": 60_000, "test": 10_000}).plan(recipe)
    assert plan["train"].get("embed_dim_t", 112) % plan["train"].get("n_head", 7) == 0
    assert plan["vqgan-train"]["channels"] >= 32


def test_what_takes_too_long_to_tokenize_is_tokenized_in_part_and_unseen_images_are_not_read():
    rows = {"train": 1_281_167, "val": 50_000}
    plan, expected = budget(600, rows).plan(load_recipe(recipes()["imagenet"]))
    assert 50_000 < plan["tokenize"]["limit"] < 1_281_167
    assert expected["tokenize"] == pytest.approx(60, rel=0.01)
    assert plan["vqgan-train"]["limit"] <= plan["vqgan-train"]["max_steps"] * plan["vqgan-train"]["batch_size"]


def test_a_time_that_is_too_short_is_told_with_one_that_is_not():
    rows, recipe = {"train": 60_000, "test": 10_000}, load_recipe(recipes()["mnist"])

    def slow_samples(configs):
        return replace(costs_of(configs), sampling=1.0)

    with pytest.raises(UsageError, match="at least") as caught:
        budget(30, rows, slow_samples).plan(recipe)
    enough = resolve(RunConfig, {"budget": caught.value.hint.split()[2]}).budget_seconds
    budget(enough, rows, slow_samples).plan(recipe)


@settings(deadline=None)
@given(
    rows=st.integers(1, 10_000),
    batch=st.integers(1, 300),
    epochs=st.integers(1, 200),
    every=st.integers(1, 50),
    log_factor=st.floats(-8, 8),
)
def test_a_longer_training_is_validated_as_often(rows, batch, epochs, every, log_factor):
    schedule = Schedule(seed=0, num_rows=rows, batch_size=batch, n_epochs=epochs)
    options = scaled_length(schedule, every, math.exp(log_factor))
    after = Schedule(
        seed=0, num_rows=rows, batch_size=batch, n_epochs=options["n_epochs"], max_steps=options["max_steps"]
    )
    assert after.num_steps == options["max_steps"] >= min(20, schedule.num_steps)
    assert after.num_steps > (options["n_epochs"] - 1) * after.steps_per_epoch  # no epoch is empty
    often, before = (
        math.ceil(n / e) for n, e in ((options["n_epochs"], options["sample_and_save_freq"]), (epochs, every))
    )
    assert min(before, options["n_epochs"]) / 2 - 1 <= often <= 2 * before + 1
    seen = sum(len(step.rows) for step in after.steps(0)) if after.num_steps < 1000 else after.num_images
    assert after.num_images == seen


def test_a_run_by_a_fake_clock_saves_its_plan_and_goes_on_with_it(here, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 10)  # every step takes 0.1 s
    Path("tiny.toml").write_text(TINY)
    run = ("run", "--recipe", "tiny.toml", "--json")
    before = files_of(here)
    outcome = run_here(*run, "--budget", "40s", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert files_of(here) == before
    assert "the plan for 40s:" in outcome.err
    assert 40 * 0.75 <= sum(stage["seconds"] for stage in outcome.json["stages"].values()) <= 40 * 1.25

    outcome = run_here(*run, "--budget", "45s", "--until", "tokenize")
    assert outcome.code == 0, outcome.err
    saved = Path("runs/digits/budget-45s.toml")
    text = saved.read_text()
    assert "45s" in text.splitlines()[0]
    again = run_here(*run, "--budget", "45s", "--until", "tokenize")
    assert [stage["state"] for stage in again.json["stages"].values()] == ["up to date"] * 3
    assert saved.read_text() == text
    assert again.json["recipe"] == str(saved)
    alone = run_here("run", "--recipe", saved, "--json", "--until", "tokenize")
    assert [stage["state"] for stage in alone.json["stages"].values()] == ["up to date"] * 3

    Path("tiny.toml").write_text(TINY.replace("n_embed = 16", "n_embed = 8"))
    assert_refused(run_here(*run, "--budget", "45s"), 2, "budget-45s.toml", "another recipe", "--overwrite")
    Path("tiny.toml").write_text(TINY)
    assert_refused(run_here(*run, "--budget", "45s", "--no-evaluate"), 2, "budget-45s.toml", "other options")
    assert run_here(*run, "--budget", "45s", "--until", "train", "--dry-run").code == 0


@pytest.mark.parametrize("given", ["", "30", "m", "-3m", "0s", "3 parsecs", "1e3s", "nan", "1h30m"])
def test_times_that_are_none(here, given):
    outcome = run_here("run", "--recipe", "digits", "--budget", given, "--dry-run")
    assert_refused(outcome, 2, "budget", "30m")
    assert files_of(here) == {}


def test_a_budget_without_images(here):
    Path("own.toml").write_text(TINY.replace('"digits"', '"folder"\ndata_root = "nowhere"'))
    assert_refused(run_here("run", "--recipe", "own.toml", "--budget", "1m"), 2, "--budget", "--data-root")


def test_the_vqgan_stops_after_so_many_steps_and_goes_on_from_there(here):
    Path("tiny.toml").write_text(TINY)
    train = ("vqgan", "train", "--recipe", "tiny.toml", "--json")
    outcome = run_here(*train, "--max-steps", 30, "--out", "a.pt")
    assert outcome.code == 0, outcome.err
    lines = Path("metrics.jsonl").read_text().splitlines()
    assert '"step": 30' in lines[-1]
    assert_refused(run_here(*train, "--max-steps", 0), 2, "max_steps", "positive")


@given(
    rows=st.dictionaries(st.sampled_from(["train", "val", "test"]), st.integers(1, 10**6), min_size=1),
    share=st.floats(0, 0.99),
)
def test_a_limit_leaves_its_share_of_the_images(rows, share):
    limit = limit_for(share, rows)
    left = sum(min(count, limit) for count in rows.values())
    assert share * sum(rows.values()) - len(rows) <= left <= max(share * sum(rows.values()), len(rows))
