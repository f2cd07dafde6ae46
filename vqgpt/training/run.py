"""What one training is (`Job`), and the files that it writes (`TrainingFiles`).

While a training runs, `NAME.unfinished.pt` beside the result holds all that is needed to continue, and
`NAME.unfinished.previous.pt`, `.previous.2.pt` and so on what it held before, in case the newest turns out damaged.
It is written before anything else, and deleted last: what lies beside it is this training's own. `NAME.best.pt` is the
finished form of the best validation so far; the result itself is that of the last epoch. The same command continues,
and nothing is replaced unless `overwrite` asks for it. One run at a time writes a result; of several ranks, the main.
"""

import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import differences
from vqgpt.options.definition import LoggingOptions
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import main_first, of_main, rank
from vqgpt.storage.checkpoint import load_checkpoint, save_checkpoint
from vqgpt.storage.files import append_line, check_writable, open_regular, place_of, write_atomically
from vqgpt.storage.write_lock import WriteLock
from vqgpt.training.schedule import Schedule, Step

START_ANEW = "give --overwrite to start anew, or another --out"
BEGUN = {"step": 0, "ended": False}  # the state before the first step, which needs none


class Training(Protocol):
    """A network in training. `state_dict` holds all that the next step depends on, but for the step's own number.

    `read_every`: steps after which the figures are read from the device, which may work ahead until then.
    """

    schedule: Schedule
    read_every: int

    def take_step(self, step: Step) -> Mapping[str, float | Tensor]:
        """Learn from the rows of a step; returns its `loss`, its `gradient_norm` and other figures.

        Where one of the two is not finite, no weight moves, neither now nor later. With nothing moved, raises CutShort
        where a signal comes before it is done, and InputError, MissingDataError or ResourceError where its data cannot
        be read.
        """

    def epoch_figures(self) -> dict[str, float]:
        """The figures of the epoch that ends, beside the mean loss."""

    def validate(self) -> dict[str, float]:
        """The figures on the held-out data."""

    def state_dict(self) -> dict[str, Any]:
        """The state, for `load_state_dict`."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state. Raises StateMisfitError, and changes nothing, if it does not belong to this training."""


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """One training: a network in training, and what is kept of it, where. The result is a checkpoint of this `kind`.

    `identity` is what must be equal for a training to be continued: its options, its seed, and its data's digest.
    `configuration` is the command's, resolved. Every `every_epochs` there is a validation, which draws the `pictures`,
    and a state is saved; `keep_last` of them are kept. With a `patience` the training ends after so many validations
    without a better score.
    """

    kind: ClassVar[str]
    judged_by: ClassVar[str]  # the figure of a validation by which the best is kept
    lower_is_better: ClassVar[bool] = False

    training: Training
    result: Path
    pictures: Sequence[Path]
    identity: dict[str, Any]
    configuration: dict[str, Any]
    logging: LoggingOptions
    overwrite: bool
    report: Report
    every_epochs: int
    patience: int = 0
    keep_last: int = 2

    def validate(self) -> dict[str, float]:
        """The figures on the held-out data; draws the pictures, where the training itself does not."""
        return self.training.validate()

    @abstractmethod
    def content(self, figures: dict[str, float]) -> dict[str, Any]:
        """The finished checkpoint as the training stands, with the figures of its last validation."""


def check_result(result: Path, overwrite: bool) -> Path:
    """The place of a result, behind all links. Raises UsageError if none can be written there, or one is there to stay.

    One that was only just written, beside its last state, is the business of `TrainingFiles`.
    """
    place = place_of(result)
    if place.suffix != ".pt" or (place.exists() and not place.is_file()):
        leads = f", it leads to {place}" if place != result else ""
        raise UsageError(f"{result} cannot be a checkpoint{leads}", "give --out a file name that ends in .pt")
    if not place.with_suffix(".unfinished.pt").exists():
        _check_absent(result, overwrite)
    return place


def _check_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file", "move it elsewhere, or give another --out")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "give --overwrite to replace it, or another --out")


class TrainingFiles:
    """The files of a job; a context, within which no other run may write them. `state` is the one to continue from."""

    def __init__(self, job: Job) -> None:
        self.job = job
        names = ["unfinished", "unfinished.previous", *(f"unfinished.previous.{n}" for n in range(2, job.keep_last))]
        self.states = [job.result.with_suffix(f".{name}.pt") for name in names[: job.keep_last]]  # from the newest back
        self.unfinished = self.states[0]
        self.best = job.result.with_suffix(".best.pt")
        self.metrics = job.result.with_name("metrics.jsonl")
        self.line_key = {"stage": job.kind, "checkpoint": job.result.name}  # which lines of the metrics are this job's
        self.lock = WriteLock(job.result, elsewhere="give another --out")
        self.writes = rank() == 0
        self.state: dict[str, Any] | None = None
        self.finished = False

    def __enter__(self) -> "TrainingFiles":
        """Find the state to continue from.

        Raises UsageError if something is there that this training did not write and may not replace, InputError if
        another training is unfinished there, or in progress, or if a rank finds another state than the main process.
        """
        check_result(self.job.result, self.job.overwrite)
        try:
            with main_first():
                if self.writes:
                    check_writable(self.job.result.parent)
                    self.lock.take()
                state = self._load_state()
                if self.writes:
                    self._begin(state)
            step = state["step"] if state else 0
            if step != of_main(step):
                raise InputError(
                    f"the processes of this run do not find the same state in {self.unfinished}",
                    "give an --out on a disk that all of them share",
                )
        except BaseException:
            self.lock.release()
            raise
        self.state = state if step else None
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.release()
        if self.finished and self.writes:  # by this one state a killed training knows that the result is its own
            self.unfinished.unlink(missing_ok=True)

    def _load_state(self) -> dict[str, Any] | None:
        """The newest state that can be read and belongs to this training, None if there is none to continue."""
        damage = None
        for path in self.states:
            if not path.exists():
                continue
            try:
                content = load_checkpoint(path, f"{self.job.kind} training", START_ANEW)
            except InputError as error:
                damage = damage or error
                continue
            identity, state = content["identity"], content["state"]
            if identity != self.job.identity:
                if self.job.overwrite or not state["step"]:
                    return None
                different = differences(self.job.identity, identity)
                remedy = START_ANEW
                if identity == {**self.job.identity, "precision": identity.get("precision")}:
                    remedy = f"give --precision {identity['precision']} to continue it; {START_ANEW}"
                raise InputError(f"{path} belongs to a training with other settings ({different})", remedy)
            if damage and not state["step"]:
                break  # to start from the beginning is for the user to decide
            if damage:
                self.job.report(Notice(text=f"{damage.message}; continuing from {path}, the state before it"))
                if self.writes:
                    os.replace(path, self.unfinished)
            return dict(state)
        if damage and not self.job.overwrite:
            raise damage
        return None

    def _begin(self, state: dict[str, Any] | None) -> None:
        """Make sure that what lies there is this training's own, or to be replaced."""
        if not (state and state.get("ended")):
            _check_absent(self.job.result, self.job.overwrite)
        if state is None:
            for path in (self.best, *self.job.pictures):
                _check_absent(path, self.job.overwrite)
            self._forget_states()
            self.save(BEGUN)
        self._keep_metrics_up_to(state["step"] if state else 0)

    def begin_anew(self, misfit: str) -> None:
        """Give up a state of another training, if `overwrite` asks for it. Raises InputError if it does not."""
        if not self.job.overwrite:
            raise InputError(f"{self.unfinished} does not belong to this training: {misfit}", START_ANEW)
        self.state = None
        if self.writes:
            self._begin(None)

    def save(self, state: dict[str, Any]) -> None:
        """Keep all that is needed to continue: `step` steps are done, and no more come if it has `ended`."""
        if not self.writes:
            return
        for newer, older in reversed(list(itertools.pairwise(self.states))):
            if newer.exists():
                os.replace(newer, older)
        content = {"identity": self.job.identity, "state": state}
        save_checkpoint(self.unfinished, f"{self.job.kind} training", content)

    def keep_best(self, content: dict[str, Any]) -> None:
        """Write the finished form of the best validation so far."""
        if self.writes:
            save_checkpoint(self.best, self.job.kind, content)

    def finish(self, content: dict[str, Any]) -> None:
        """Write the result, and forget the unfinished states, the last of them when the context ends."""
        if self.writes:
            save_checkpoint(self.job.result, self.job.kind, content)
            self._forget_states(keep=1)
        self.finished = True

    def _forget_states(self, keep: int = 0) -> None:
        """Delete the unfinished states, the oldest first, so that what is left can always be continued."""
        for path in reversed(self.states[keep:]):
            path.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the metrics: `record` must have a `step`."""
        if self.writes:
            with WriteLock(self.metrics) as lock:
                lock.wait()
                append_line(self.metrics, json.dumps({**self.line_key, **record}))

    def _keep_metrics_up_to(self, step: int) -> None:
        """Drop this job's lines that a continued or repeated training will write again."""
        with WriteLock(self.metrics) as lock:
            lock.wait()  # other trainings may write their lines meanwhile
            if not self.metrics.exists():
                return
            with open_regular(self.metrics) as file:
                *lines, _ = file.read().split(b"\n")  # after the last one, what a crash tore
            kept = [line for line in lines if not self._will_be_written_again(line, step)]
            if kept != lines:
                write_atomically(self.metrics, b"".join(line + b"\n" for line in kept))

    def _will_be_written_again(self, line: bytes, step: int) -> bool:
        try:
            record = json.loads(line)
            return bool(self.line_key.items() <= record.items() and record["step"] > step)
        except (ValueError, AttributeError, KeyError, TypeError):
            return False  # not ours, or torn by a crash
