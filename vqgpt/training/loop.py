"""The loop of both trainings: steps, metrics, validation, saving, stopping.

What a step is, and what is validated, belongs to the network: see `Training`.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from torch import Tensor

from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.device import cut_short_when_alone, largest_over_ranks, of_main, world_size
from vqgpt.runtime.process import CutShort, StopRequest
from vqgpt.training.run import TrainingRun
from vqgpt.training.schedule import Schedule, Step, check_finite
from vqgpt.training.weights import StateMisfitError

CHECKED = {"loss": "loss", "gradient_norm": "norm of the gradient"}


class Training(Protocol):
    """A network in training. `state_dict` holds all that the next step depends on, but for the step's own number.

    `read_every`: steps after which the figures are read from the device, which may work ahead until then.
    """

    read_every: int

    def take_step(self, step: Step) -> Mapping[str, float | Tensor]:
        """Learn from the rows of a step; returns its `loss`, its `gradient_norm` and other figures.

        Where one of the two is not finite, no weight moves, neither now nor later. Raises CutShort, with nothing moved,
        where a signal comes before it is done.
        """
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
        """Go back to a state. Raises StateMisfitError, and changes nothing, if it does not belong to this training."""
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
    patience: int = 0,
    show: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train to the end of the schedule, from where `run` was interrupted; validate and save every `every_epochs`.

    With a `patience` it ends after so many validations without a better score. `show` is called at each validation.

    `content(figures)` is the finished checkpoint as the training stands; the one of the highest `score(figures)` is
    kept beside the last one. Returns the figures of the last validation. Raises NonFiniteError, InputError if the state
    to continue from belongs to another training and may not be replaced, and InterruptedRun once the state is saved.

    Several ranks go the same way at every branch: each is taken on what all of them know, and never on what one rank
    alone has heard or computed.
    """
    first_step, best, worse = 0, -math.inf, 0
    losses: list[float] = []  # of the epoch in progress
    held_out: dict[str, float] = {}

    def out_of_patience() -> bool:
        return bool(patience) and worse >= patience

    def save(done: int, unvalidated: dict[str, Any] | None = None) -> None:
        ended = (done == schedule.num_steps or out_of_patience()) and not unvalidated
        state = {"step": done, "losses": losses, "best": best, "worse": worse, "unvalidated": unvalidated}
        run.save({**state, "ended": ended, "training": training.state_dict()})

    def leave(done: int, unvalidated: dict[str, Any] | None = None) -> NoReturn:
        save(done, unvalidated)
        of_main(done)  # torchrun ends the others as soon as one has left: none does before the main process has saved
        steps = f"{done} of {schedule.num_steps} steps"
        saved = f"{steps} are saved in {run.unfinished}" if run.writes else f"the main process has saved {steps}"
        raise stop.as_error(saved)

    def validate(record: dict[str, Any]) -> None:
        """What ends an epoch with this record. A signal leaves it to the next run."""
        nonlocal held_out, best, worse
        try:
            with cut_short_when_alone(stop):
                held_out = of_main(training.validate())
                show()
        except CutShort:
            leave(record["step"], record)
        run.log(record | held_out)
        worse += 1
        if score(held_out) > best:
            best, worse = score(held_out), 0
            run.keep_best(content(held_out))
        save(record["step"])

    if run.state:
        try:
            if run.state["step"] > schedule.num_steps:
                raise StateMisfitError(f"it has done {run.state['step']} steps of {schedule.num_steps}")
            training.load_state_dict(run.state["training"])
        except StateMisfitError as error:
            run.begin_anew(str(error))
    if run.state:
        first_step, losses = run.state["step"], run.state["losses"]
        best, worse = run.state["best"], run.state["worse"]  # validations since the best one
        report(Notice(text=f"continuing after step {first_step} of {schedule.num_steps}"))
        if run.state.get("unvalidated"):
            validate(run.state["unvalidated"])

    unread: list[tuple[Step, Mapping[str, float | Tensor]]] = []
    rows, start = 0, time.monotonic()
    for step in () if out_of_patience() else schedule.steps(first_step):
        try:
            unread.append((step, training.take_step(step)))
        except CutShort:
            losses += read_figures(unread).get("loss", [])
            leave(step.index)
        rows += len(step.rows)
        leaving = stop and world_size() == 1  # several ranks agree on it when all of them read
        if not (step.ends_epoch or leaving or len(unread) >= training.read_every):
            continue
        figures = read_figures(unread)
        losses += figures["loss"]
        last = {name: values[-1] for name, values in figures.items()}
        unread = []
        done, total = step.index + 1, schedule.num_steps
        report(Progress(task=run.kind, done=done, total=total, unit="steps", values={"loss": last["loss"], **held_out}))
        if step.ends_epoch:
            record = {
                "step": done,
                "epoch": step.epoch + 1,
                "images": schedule.images_after(step),
                **last,
                **training.epoch_figures(),
                "loss": sum(losses) / len(losses),
                "images_per_second": rows / (time.monotonic() - start),
            }
            losses = []
            if schedule.is_checkpoint(step, every_epochs):
                validate(record)
                if out_of_patience() and done < total:
                    report(Notice(text=f"stopped after step {done}: no better validation in the last {worse}"))
                    break
            else:
                run.log(record)
            rows, start = 0, time.monotonic()
        heard = largest_over_ranks(stop.number)
        if heard and done < total:
            stop.hear(heard)
            leave(done)
    held_out = held_out or of_main(training.validate())
    run.finish(content(held_out))
    return held_out


def read_figures(unread: list[tuple[Step, Mapping[str, float | Tensor]]]) -> dict[str, list[float]]:
    """The figures of some steps, read from the device. Raises NonFiniteError for the first that is not finite."""
    figures: dict[str, list[float]] = {}
    for step, values in unread:
        for name, value in values.items():
            figures.setdefault(name, []).append(float(value))
        for name, meaning in CHECKED.items():
            check_finite(figures[name][-1], meaning, step)
    return figures
