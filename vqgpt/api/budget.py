"""The plan of `vqgpt run --budget`: a recipe with trainings so long, and networks so wide, that it takes a given time.

    a recipe, what an image costs here, seconds  ->  the recipe scaled

All trainings become longer or shorter by one factor, so they keep their shares of the time. Where that is far from 1,
widths follow: a network of twice the width costs four times as much per image, and is worth it when it also sees four
times as many (Hoffmann et al. 2022: parameters and data grow alike), so they double with every factor of 16.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from vqgpt.api.estimates import Costs, gpt_schedule, known_images, measured, stage_seconds, vqgan_schedule
from vqgpt.api.options import RunConfig, TokenizeConfig, TrainConfig, VQGANTrainConfig
from vqgpt.api.run import EVALUATION, NETWORKS, REPORT, SHARE_FOR_EVALUATION, stages_of
from vqgpt.errors import UsageError
from vqgpt.options.definition import Command
from vqgpt.progress import Notice, Report
from vqgpt.training.schedule import Schedule

Recipe = dict[str, Any]
Tables = dict[str, dict[str, Any]]

TIME_PER_DOUBLING = 16  # of the widths
WIDTHS_OF_VQGAN = (16, 256)
WIDTHS_OF_GPT = (32, 1024)
SHARE_FOR_TOKENIZING = 0.1  # of the time, at most
FEWEST_STEPS = 20  # of a training
ROUNDS = 4  # of finding a factor
LEAST_FACTOR = 1e-3
START_SECONDS = 3.0  # until the first stage begins
TOLERANCE = 0.25  # of the time


def planned(
    config: RunConfig, recipe: Recipe, source: str, commands: Mapping[str, Command], report: Report
) -> tuple[Recipe, dict[str, float]]:
    """The recipe read from `source`, scaled to the budget of a run, and the seconds of its stages.

    Raises UsageError if the images are not here or the time is too short, and what timing a stage raises.
    """
    assert config.budget_seconds is not None
    whole = replace(config, until=REPORT)  # a plan is of the whole run, wherever this one ends

    def configs(recipe: Recipe) -> dict[str, Any]:
        return {stage.command.table: stage.config for stage in stages_of(whole, recipe, source, commands)}

    stages = configs(recipe)
    rows, num_classes = known_images(stages)
    if not rows:
        raise UsageError(
            "--budget needs the number of images, and they are not here", "give --data-root, the images of your own"
        )
    report(Notice(text="timing a step of each stage, to plan the run"))
    budget = Budget(
        seconds=config.budget_seconds,
        rows=rows,
        share_for_evaluation=SHARE_FOR_EVALUATION if EVALUATION in stages else 0.0,
        configs=configs,
        costs=lambda configs: measured(configs, rows, num_classes),
    )
    return budget.plan(recipe)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The time of a run, in seconds, and how to tell what a recipe takes of it.

    `configs` resolves a recipe into the configurations of its stages, `costs` measures them; `rows` are the images by
    split, `share_for_evaluation` is what an evaluation takes of the time of the stages before it.
    """

    seconds: float
    rows: Mapping[str, int]
    share_for_evaluation: float
    configs: Callable[[Recipe], Mapping[str, Any]]
    costs: Callable[[Mapping[str, Any]], Costs]

    def plan(self, recipe: Recipe) -> tuple[Recipe, dict[str, float]]:
        """The recipe scaled, and the seconds of its stages. Raises UsageError if the time is too short for any."""
        costs = self.costs(self.configs(recipe))
        doublings = round(math.log(self.factor(recipe, costs), TIME_PER_DOUBLING))
        if wider := self.of_other_widths(recipe, doublings):
            recipe, costs = wider, self.costs(self.configs(wider))
        recipe = self.tokenized_in_time(recipe, costs)
        factor = self.factor(recipe, costs)
        recipe = self.scaled(recipe, factor)
        seconds = stage_seconds(self.configs(recipe), costs, self.rows)
        least = self.total(seconds)
        if least > (1 + TOLERANCE) * self.seconds:
            enough = f"{math.ceil(least)}s" if least < 120 else f"{math.ceil(least / 60)}m"
            raise UsageError(
                f"--budget is too short: the run takes at least {enough} here, with trainings of {FEWEST_STEPS} steps",
                f"give --budget {enough} or more",
            )
        return recipe, seconds

    def of_other_widths(self, recipe: Recipe, doublings: int) -> Recipe | None:
        """The recipe with widths doubled so often, or as often as its networks can be; None if they stay."""
        for number in range(doublings, 0, -1 if doublings > 0 else 1):
            wider = merged(recipe, scaled_widths(self.configs(recipe), number))
            with suppress(UsageError):
                self.configs(wider)
                return wider
        return None

    def total(self, seconds: Mapping[str, float]) -> float:
        """Seconds of a run whose stages take so long."""
        return START_SECONDS + (1 + self.share_for_evaluation) * sum(seconds.values())

    def factor(self, recipe: Recipe, costs: Costs) -> float:
        """How many times as long its trainings may be, or nearly no time if the other stages take all of it."""
        factor = 1.0
        for _ in range(ROUNDS):  # one would do if steps and validations were not whole numbers
            seconds = stage_seconds(self.configs(self.scaled(recipe, factor)), costs, self.rows)
            trainings = sum(seconds.get(table, 0.0) for table in NETWORKS)
            left = (self.seconds - self.total(seconds)) / (1 + self.share_for_evaluation) + trainings
            factor *= max(left / trainings, LEAST_FACTOR) if trainings else 1.0
        return factor

    def scaled(self, recipe: Recipe, factor: float) -> Recipe:
        """The recipe with its trainings `factor` times as long, but no shorter than `FEWEST_STEPS`."""
        configs = self.configs(recipe)
        vqgan: VQGANTrainConfig | None = configs.get("vqgan-train")
        tokenize: TokenizeConfig | None = configs.get("tokenize")
        train: TrainConfig | None = configs.get("train")
        changes: Tables = {}
        if vqgan:
            schedule = vqgan_schedule(vqgan, self.rows)
            changes["vqgan-train"] = scaled_length(schedule, vqgan.training.sample_and_save_freq, factor)
            if vqgan.training.disc_weight:
                changes["vqgan-train"] |= {
                    "warmup": round(vqgan.training.warmup * factor),
                    "disc_start": round(vqgan.training.disc_start * factor),
                }
            steps, batch = changes["vqgan-train"]["max_steps"], schedule.batch_size
            if steps < schedule.steps_per_epoch:  # images that are never shown need not be read
                changes["vqgan-train"]["limit"] = min(schedule.num_rows, steps * batch)
        if train:
            schedule = gpt_schedule(train, self.rows, tokenize)
            changes["train"] = scaled_length(schedule, train.training.sample_and_save_freq, factor)
            share = changes["train"]["max_steps"] / schedule.num_steps
            changes["train"]["warmup"] = round(train.training.warmup * share, 3)
        return merged(recipe, changes)

    def tokenized_in_time(self, recipe: Recipe, costs: Costs) -> Recipe:
        """The recipe with a limit of images to tokenize, where all of them would take too long."""
        seconds = stage_seconds(self.configs(recipe), costs, self.rows).get("tokenize", 0.0)
        share = SHARE_FOR_TOKENIZING * self.seconds / seconds if seconds else 1.0
        if share >= 1:
            return recipe
        limit = self.configs(recipe)["tokenize"].limit
        rows = {name: min(count, limit or count) for name, count in self.rows.items()}
        return merged(recipe, {"tokenize": {"limit": limit_for(share, rows)}})


def scaled_length(schedule: Schedule, every_epochs: int, factor: float) -> dict[str, Any]:
    """The options of a training `factor` times as long, with as many validations."""
    steps = max(min(FEWEST_STEPS, schedule.num_steps), round(schedule.num_steps * factor))
    epochs = math.ceil(steps / schedule.steps_per_epoch)
    every = max(1, round(every_epochs * steps / schedule.num_steps))
    return {"n_epochs": epochs, "max_steps": steps, "sample_and_save_freq": every}


def limit_for(share: float, rows: Mapping[str, int]) -> int:
    """How many images of each split, at most, are this share of all."""
    counts = sorted(rows.values())
    left = share * sum(counts)
    while left / len(counts) > counts[0]:  # a small split is whole
        left -= counts.pop(0)
    return max(1, int(left / len(counts)))


def scaled_widths(configs: Mapping[str, Any], doublings: int) -> Tables:
    """Networks whose widths are doubled so many times, or halved where that is below 0; rates of the GPT go against."""
    vqgan: VQGANTrainConfig | None = configs.get("vqgan-train")
    train: TrainConfig | None = configs.get("train")
    changes: Tables = {}
    if vqgan and vqgan.checkpoint_vae is None:
        channels, latents = vqgan.model.channels, vqgan.model.z_channels
        by = _within(channels, doublings, WIDTHS_OF_VQGAN)
        changes["vqgan-train"] = {"channels": int(channels * by), "z_channels": max(1, int(latents * by))}
    if train and train.checkpoint_gpt is None:
        width, heads = train.model.embed_dim_t, train.model.n_head
        by = _within(width, doublings, WIDTHS_OF_GPT)
        heads = max(1, int(heads * by))
        changes["train"] = {"embed_dim_t": int(width * by), "n_head": heads, "lr": train.training.lr / by}
    return changes


def merged(recipe: Recipe, changes: Tables) -> Recipe:
    """The recipe with these keys in its tables."""
    return {**recipe, **{table: {**recipe.get(table, {}), **values} for table, values in changes.items()}}


def _within(width: int, doublings: int, widths: tuple[int, int]) -> float:
    """The power of two nearest to so many doublings that keeps a width within these, and whole."""
    step, by = (2.0 if doublings > 0 else 0.5), 1.0
    for _ in range(abs(doublings)):
        wider = width * by * step
        if not widths[0] <= wider <= widths[1] or wider % 8:
            break
        by *= step
    return by
