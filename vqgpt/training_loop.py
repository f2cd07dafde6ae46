"""The loop of both trainings: steps, metrics, validation, saving, stopping.

What a step is, and what is validated, belongs to the network: see `Training`.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from vqgpt.distributed import largest_over_ranks
from vqgpt.interrupt import StopRequest
from vqgpt.progress import Notice, Progress, Report
from vqgpt.schedule import Schedule, Step
from vqgpt.training_run import TrainingRun


class Training(Protocol):
    """A network in training. `state_dict` holds all that the next step depends on, but for the step's own number."""

    def take_step(self, step: Step) -> dict[str, float]:
        """Learn from the rows of a step; returns its `loss` and other figures. Raises NonFiniteError."""
        ...

    def epoch_figures(self) -> dict[str, float]:
        """The figures of the epoch that ends, beside the mean loss."""
        ...

    def validate(self) -> dict[str, float]:
        """The figures on the held-out data."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, for `load_state_dict`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        ...


def run_training(
    training: Training,
    schedule: Schedule,
    every_epochs: int,
    run: TrainingRun,
    content: Callable[[dict[str, float]], dict[str, Any]],
    score: Callable[[dict[str, float]], float],
    report: Report,
    stop: StopRequest,
) -> dict[str, float]:
    """Train to the end of the schedule, from where `run` was interrupted; validate and save every `every_epochs`.

    `content(figures)` is the finished checkpoint as the training stands; the one of the highest `score(figures)` is
    kept beside the last one. Returns the figures of the last validation. Raises NonFiniteError, and InterruptedRun once
    the state is saved.
    """
    first_step, best = 0, -math.inf
    losses: list[float] = []  # of the epoch in progress
    if run.state:
        first_step, losses, best = run.state["step"], run.state["losses"], run.state["best"]
        training.load_state_dict(run.state["training"])
        report(Notice(text=f"continuing after step {first_step} of {schedule.num_steps}"))

    def save(step: Step) -> None:
        run.save({"step": step.index + 1, "losses": losses, "best": best, "training": training.state_dict()})

    held_out: dict[str, float] = {}
    rows, start = 0, time.monotonic()
    for step in schedule.steps(first_step):
        figures = training.take_step(step)
        losses.append(figures["loss"])
        rows += len(step.rows)
        done, total = step.index + 1, schedule.num_steps
        values = {"loss": figures["loss"], **held_out}
        report(Progress(task=run.kind, done=done, total=total, unit="steps", values=values))
        if step.ends_epoch:
            record = {
                "step": done,
                "epoch": step.epoch + 1,
                "images": (step.epoch + 1) * schedule.num_rows,
                **figures,
                **training.epoch_figures(),
                "loss": sum(losses) / len(losses),
                "images_per_second": rows / (time.monotonic() - start),
            }
            losses = []
            if schedule.is_checkpoint(step, every_epochs):
                held_out = training.validate()
                run.log(record | held_out)
                if score(held_out) > best:
                    best = score(held_out)
                    run.keep_best(content(held_out))
                save(step)
            else:
                run.log(record)
            rows, start = 0, time.monotonic()
        stop.hear(largest_over_ranks(stop.number))
        if stop and done < total:
            save(step)
            raise stop.as_error(f"{done} of {total} steps are saved in {run.unfinished}")
    held_out = held_out or training.validate()
    run.finish(content(held_out))
    return held_out
