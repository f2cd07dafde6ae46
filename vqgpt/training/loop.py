"""The loop of both trainings: steps, metrics, validation, saving, stopping. What is trained, and kept of it: see `Job`.

Several ranks go the same way at every branch: each is taken on what all of them know, and never on what one rank alone
has heard or computed.

Metrics go to the job's files, and to Weights & Biases and TensorBoard, whose packages are extras. Weights & Biases is
used where its package is set up: a thread of its own imports it, connects and sends, so no training waits for a network
or ends with it. Where it sends to, and whether it sends at all (WANDB_MODE), is its own to configure. TensorBoard is
for those who ask for it; its logs lie beside the result, in the folder `tensorboard`.
"""

import importlib.util
import math
import netrc
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from torch import Tensor

from vqgpt.errors import InputError, MissingDataError, ResourceError
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.device import cut_short_when_alone, largest_over_ranks, of_main, rank, world_size
from vqgpt.runtime.process import CutShort, StopRequest, stop_on_signals
from vqgpt.training.run import Job, TrainingFiles
from vqgpt.training.schedule import Step, check_finite
from vqgpt.training.weights import StateMisfitError

UNREADABLE = (InputError, MissingDataError, ResourceError)  # data that is read while the training runs
CHECKED = {"loss": "loss", "gradient_norm": "norm of the gradient"}

Log = Callable[[dict[str, Any]], None]
SECONDS_TO_UPLOAD = 15  # what is left when a training is done
SECONDS_TO_LEAVE = 2  # when it is stopped
Records = queue.SimpleQueue[dict[str, Any] | None]  # None comes last


def train(job: Job) -> dict[str, float]:
    """Train to the end of the job's schedule, from where it was interrupted; returns the last validation's figures.

    Raises NonFiniteError, InterruptedRun once the state is saved, what `TrainingFiles` raises where the files are not
    this job's to write, and MissingDataError if a log that is asked for cannot be written.
    """
    with (
        stop_on_signals(several_senders=world_size() > 1) as stop,
        TrainingFiles(job) as files,
        wandb_log(job.logging.wandb, job.result, job.configuration, job.report) as to_wandb,
        tensorboard_log(job.logging.tensorboard, job.result) as to_tensorboard,
    ):
        return Loop(job, files, stop, (files.log, to_wandb, to_tensorboard)).run()


@dataclass
class Loop:
    """The way of one job through its steps. Each line of the metrics goes to all `logs`."""

    job: Job
    files: TrainingFiles
    stop: StopRequest
    logs: Sequence[Log]
    losses: list[float] = field(default_factory=list)  # of the epoch in progress
    best: float = -math.inf  # score of a validation
    worse: int = 0  # validations since the best one
    held_out: dict[str, float] = field(default_factory=dict)  # the figures of the last validation

    def __post_init__(self) -> None:
        self.training, self.schedule = self.job.training, self.job.training.schedule

    def run(self) -> dict[str, float]:
        """Take all steps that are left, and write the result; returns the figures of the last validation."""
        self._take_steps(self._resume())
        held_out = self.held_out or of_main(self.job.validate())
        self.files.finish(self.job.content(held_out))
        return held_out

    def _resume(self) -> int:
        """Go back to the state that was found, and make up for the validation that it lacks; returns the next step."""
        if not (state := self.files.state):
            return 0
        try:
            if state["step"] > self.schedule.num_steps:
                raise StateMisfitError(f"it has done {state['step']} steps of {self.schedule.num_steps}")
            self.training.load_state_dict(state["training"])
        except StateMisfitError as error:
            self.files.begin_anew(str(error))
            return 0
        self.losses, self.best, self.worse = state["losses"], state["best"], state["worse"]
        done = int(state["step"])
        self.job.report(Notice(text=f"continuing after step {done} of {self.schedule.num_steps}"))
        if state.get("unvalidated"):
            self._validate(state["unvalidated"])
        return done

    def _take_steps(self, first: int) -> None:
        unread: list[tuple[Step, Mapping[str, float | Tensor]]] = []
        rows, start = 0, time.monotonic()
        for step in () if self._is_over(first) else self.schedule.steps(first):
            try:
                unread.append((step, self.training.take_step(step)))
            except CutShort:
                self.losses += read_figures(unread).get("loss", [])
                self._leave(step.index)
            except UNREADABLE:
                self.losses += read_figures(unread).get("loss", [])
                self._keep(step.index)
                raise
            rows += len(step.rows)
            leaving = self.stop and world_size() == 1  # several ranks agree on it when all of them read
            if not (step.ends_epoch or leaving or len(unread) >= self.training.read_every):
                continue
            figures = read_figures(unread)
            unread = []
            self.losses += figures["loss"]
            last = {name: values[-1] for name, values in figures.items()}
            done = step.index + 1
            values, total = {"loss": last["loss"], **self.held_out}, self.schedule.num_steps
            self.job.report(Progress(task=self.job.kind, done=done, total=total, unit="steps", values=values))
            if step.ends_epoch:
                self._end_epoch(step, last, rows / (time.monotonic() - start))
                rows, start = 0, time.monotonic()
            if self._is_over(done):
                break
            heard = largest_over_ranks(self.stop.number)
            if heard:
                self.stop.hear(heard)
                self._leave(done)

    def _end_epoch(self, step: Step, last: dict[str, float], images_per_second: float) -> None:
        """Log the epoch that ends with this step, whose figures are the `last`, and validate if it is time to."""
        record = {
            "step": step.index + 1,
            "epoch": step.epoch + 1,
            "images": self.schedule.images_after(step),
            **last,
            **self.training.epoch_figures(),
            "loss": sum(self.losses) / len(self.losses),
            "images_per_second": images_per_second,
        }
        self.losses = []
        if (step.epoch + 1) % self.job.every_epochs == 0 or step.index + 1 == self.schedule.num_steps:
            self._validate(record)
        else:
            self._log(record)

    def _validate(self, record: dict[str, Any]) -> None:
        """What ends an epoch with this record. A signal leaves it to the next run."""
        done = record["step"]
        try:
            with cut_short_when_alone(self.stop):
                self.held_out = of_main(self.job.validate())
        except CutShort:
            self._leave(done, unvalidated=record)
        except UNREADABLE:
            self._keep(done, unvalidated=record)
            raise
        self._log(record | self.held_out)
        self.worse += 1
        score = self.held_out[self.job.judged_by] * (-1 if self.job.lower_is_better else 1)
        if score > self.best:
            self.best, self.worse = score, 0
            self.files.keep_best(self.job.content(self.held_out))
        self._save(done)
        if self._is_over(done) and done < self.schedule.num_steps:
            self.job.report(Notice(text=f"stopped after step {done}: no better validation in the last {self.worse}"))

    def _log(self, record: dict[str, Any]) -> None:
        for log in self.logs:
            log(record)

    def _is_over(self, done: int) -> bool:
        """Whether no step comes after so many: all are done, or no validation was better for long enough."""
        return done == self.schedule.num_steps or bool(self.job.patience and self.worse >= self.job.patience)

    def _save(self, done: int, unvalidated: dict[str, Any] | None = None) -> None:
        progress = {"step": done, "losses": self.losses, "best": self.best, "worse": self.worse}
        outlook = {"unvalidated": unvalidated, "ended": self._is_over(done) and not unvalidated}
        self.files.save({**progress, **outlook, "training": self.training.state_dict()})

    def _keep(self, done: int, unvalidated: dict[str, Any] | None = None) -> None:
        """Save what is done before an error ends the training; of several ranks, the others are in the next step."""
        if done and world_size() == 1:
            self._save(done, unvalidated)
            saved = f"{done} of {self.schedule.num_steps} steps are saved in {self.files.unfinished}"
            self.job.report(Notice(text=f"{saved}; once the data is as it was, the same command continues"))

    def _leave(self, done: int, unvalidated: dict[str, Any] | None = None) -> NoReturn:
        self._save(done, unvalidated)
        of_main(done)  # torchrun ends the others as soon as one has left: none does before the main process has saved
        steps, files = f"{done} of {self.schedule.num_steps} steps", self.files
        saved = f"{steps} are saved in {files.unfinished}" if files.writes else f"the main process has saved {steps}"
        raise self.stop.as_error(saved)


def read_figures(unread: list[tuple[Step, Mapping[str, float | Tensor]]]) -> dict[str, list[float]]:
    """The figures of some steps, read from the device. Raises NonFiniteError for the first that is not finite."""
    figures: dict[str, list[float]] = {}
    for step, values in unread:
        for name, value in values.items():
            figures.setdefault(name, []).append(float(value))
        for name, meaning in CHECKED.items():
            check_finite(figures[name][-1], meaning, step)
    return figures


@contextmanager
def wandb_log(wanted: bool | None, result: Path, configuration: dict[str, Any], report: Report) -> Iterator[Log]:
    """A function that logs one record, which has a `step`; with `wanted` None, it does where wandb is set up.

    It does nothing where unwanted, under WANDB_MODE=disabled, and on ranks but the main. A training that continues is a
    run of its own, in one group with the run that it continues. Raises MissingDataError if it is wanted and cannot be.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    there = is_installed() and (mode == "offline" or has_login())
    if rank() > 0 or mode == "disabled" or wanted is False or (wanted is None and not there):
        yield lambda record: None
        return
    if not is_installed():
        raise MissingDataError("--wandb needs the package wandb", "pip install 'vqgpt[wandb]', or leave --wandb out")
    if not there:
        raise MissingDataError(
            "there is no account to log to Weights & Biases",
            "run `wandb login`, or set WANDB_MODE=offline, or leave --wandb out",
        )
    report(Notice(text=f"logging to Weights & Biases ({mode}); --no-wandb turns it off"))
    records: Records = queue.SimpleQueue()
    failures: list[str] = []
    sender = threading.Thread(target=_send, args=(records, failures, result, configuration), daemon=True)
    sender.start()

    def report_failure() -> None:
        if failures:
            report(Notice(text=f"no longer logging to Weights & Biases: {failures.pop()}"))

    def log(record: dict[str, Any]) -> None:
        records.put(record)
        report_failure()

    seconds = SECONDS_TO_LEAVE
    try:
        yield log
        seconds = SECONDS_TO_UPLOAD
    finally:
        records.put(None)
        sender.join(seconds)
        report_failure()


@contextmanager
def tensorboard_log(wanted: bool, result: Path) -> Iterator[Log]:
    """A function that logs the numbers of one record, which has a `step`; it does nothing unless wanted.

    Nor does it on ranks but the main. Raises MissingDataError if the package is not there.
    """
    if not wanted or rank() > 0:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDataError(
            "--tensorboard needs the package tensorboard",
            "pip install 'vqgpt[tensorboard]', or leave --tensorboard out",
        ) from None

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, record["step"])

    with SummaryWriter(str(result.parent / "tensorboard" / result.stem)) as writer:
        yield log


def is_installed() -> bool:
    """True if the package is there; a folder of logs, which has its name, is not it."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def has_login() -> bool:
    """True if the package will find a key, and so will not ask for one: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        logins = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser())
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: no home is known
        return False
    return host in logins.hosts


def _send(records: Records, failures: list[str], result: Path, configuration: dict[str, Any]) -> None:
    """Log the records until None comes. Whatever fails is reported, and does not end the training."""
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(SECONDS_TO_UPLOAD))  # or it waits for its network for ever
    try:
        import wandb

        result.parent.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project="vqgpt",
            group=str(result.with_suffix("")),
            dir=result.parent,
            config=configuration,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        while (record := records.get()) is not None:
            run.log(record, step=record["step"])
        run.finish()
    except Exception as error:
        failures.append((str(error).strip() or type(error).__name__).splitlines()[0])
