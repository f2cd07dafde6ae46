"""The files of one training: the unfinished checkpoints, the best, the last, and the metrics. Both trainings use it.

While a training runs, `NAME.unfinished.pt` beside the result holds all that is needed to continue, and
`NAME.unfinished.previous.pt`, `.previous.2.pt` and so on what it held before, in case the newest turns out damaged.
It is written before anything else, and deleted last: what lies beside it is this training's own. `NAME.best.pt` is the
finished form of the best validation so far. The result itself, of the last epoch, appears when the training is done.
The same command continues, and nothing is replaced unless `overwrite` asks for it. One run at a time writes a result.
Of several ranks, the main one writes.
"""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import differences
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import main_first, of_main, rank
from vqgpt.storage.checkpoint import load_checkpoint, save_checkpoint
from vqgpt.storage.files import append_line, check_writable, open_regular, place_of, write_atomically
from vqgpt.storage.write_lock import WriteLock

START_ANEW = "give --overwrite to start anew, or another --out"
BEGUN = {"step": 0, "ended": False}  # the state before the first step, which needs none


def check_result(result: Path, overwrite: bool) -> None:
    """Raise UsageError if a checkpoint cannot be written to `result`, or exists there and is not to be replaced.

    One that was only just written, beside its last state, is the business of `TrainingRun`.
    """
    place = place_of(result)
    if place.suffix != ".pt" or (place.exists() and not place.is_file()):
        leads = f", it leads to {place}" if place != result else ""
        raise UsageError(f"{result} cannot be a checkpoint{leads}", "give --out a file name that ends in .pt")
    if not _newest_state(place).exists():
        _check_absent(result, overwrite)


def _newest_state(result: Path) -> Path:
    return result.with_suffix(".unfinished.pt")


def _check_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file", "move it elsewhere, or give another --out")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "give --overwrite to replace it, or another --out")


class TrainingRun:
    """The files of the training that ends in `result`; a context, within which no other run may write them.

    `identity` is what must be equal for a training to be continued: its options, its seed, and its data's digest.
    `state` is the one to continue from, None at the beginning.
    """

    def __init__(
        self,
        result: Path,
        kind: str,
        identity: dict[str, Any],
        overwrite: bool,
        report: Report,
        keep_last: int = 2,
        pictures: Sequence[Path] = (),
    ) -> None:
        """`keep_last` states are kept while it runs, from the newest back. `pictures` are drawn at each validation."""
        self.result = result
        self.kind = kind
        self.identity = identity
        self.overwrite = overwrite
        self.report = report
        self.unfinished = _newest_state(result)
        names = [".unfinished.previous.pt", *(f".unfinished.previous.{number}.pt" for number in range(2, keep_last))]
        older = [result.with_suffix(name) for name in names[: keep_last - 1]]
        self.states = [self.unfinished, *older]  # from the newest back
        self.best = result.with_suffix(".best.pt")
        self.pictures = pictures
        self.metrics = result.with_name("metrics.jsonl")
        self.lock = WriteLock(result, elsewhere="give another --out")
        self.writes = rank() == 0
        self.also_log: Callable[[dict[str, Any]], None] = lambda record: None
        self.state: dict[str, Any] | None = None
        self.finished = False

    def __enter__(self) -> "TrainingRun":
        """Find the state to continue from.

        Raises UsageError if something is there that this training did not write and may not replace, InputError if
        another training is unfinished there, or in progress.
        """
        check_result(self.result, self.overwrite)
        try:
            with main_first():
                if self.writes:
                    check_writable(self.result.parent)
                    self.lock.take()
                state = self._load_state()
                if self.writes:
                    self._begin(state)
            self.state = state if state and state["step"] else None
            self._check_all_found_it()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.release()
        if self.finished and self.writes:  # by this one state a killed training knows that the result is its own
            self.unfinished.unlink(missing_ok=True)

    def _begin(self, state: dict[str, Any] | None) -> None:
        """Make sure that what lies there is this training's own, or to be replaced."""
        if not (state and state.get("ended")):
            _check_absent(self.result, self.overwrite)
        if state is None:
            for path in (self.best, *self.pictures):
                _check_absent(path, self.overwrite)
            self._forget_states()
            self.save(BEGUN)
        self._keep_metrics_up_to(state["step"] if state else 0)

    def begin_anew(self, misfit: str) -> None:
        """Give up a state of another training, if `overwrite` asks for it. Raises InputError if it does not."""
        if not self.overwrite:
            raise InputError(f"{self.unfinished} does not belong to this training: {misfit}", START_ANEW)
        self.state = None
        if self.writes:
            self._begin(None)

    def _check_all_found_it(self) -> None:
        """Raise InputError on a rank that has another state than the main process, from a disk of its own."""
        step = self.state["step"] if self.state else 0
        if step != of_main(step):
            raise InputError(
                f"the processes of this run do not find the same state in {self.unfinished}",
                "give an --out on a disk that all of them share",
            )

    @property
    def _unfinished_kind(self) -> str:
        return f"{self.kind} training"

    @property
    def _line_key(self) -> dict[str, str]:
        """What tells this training's lines in the metrics from those of others."""
        return {"stage": self.kind, "checkpoint": self.result.name}

    def _load_state(self) -> dict[str, Any] | None:
        """The newest state that can be read and belongs to this training, None if there is none to continue."""
        damage = None
        for path in self.states:
            if not path.exists():
                continue
            try:
                content = load_checkpoint(path, self._unfinished_kind, START_ANEW)
            except InputError as error:
                damage = damage or error
                continue
            if content["identity"] != self.identity:
                if self.overwrite or not content["state"]["step"]:
                    return None
                different = differences(self.identity, content["identity"])
                raise InputError(f"{path} belongs to a training with other settings ({different})", START_ANEW)
            if damage and not content["state"]["step"]:
                break  # to start from the beginning is for the user to decide
            if damage:
                self.report(Notice(text=f"{damage.message}; continuing from {path}, the state before it"))
                if self.writes:
                    os.replace(path, self.unfinished)
            return dict(content["state"])
        if damage and not self.overwrite:
            raise damage
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Keep all that is needed to continue: `step` counts the steps that are done, `ended` says if no more come."""
        if not self.writes:
            return
        for newer, older in reversed(list(itertools.pairwise(self.states))):
            if newer.exists():
                os.replace(newer, older)
        save_checkpoint(self.unfinished, self._unfinished_kind, {"identity": self.identity, "state": state})

    def finish(self, content: dict[str, Any]) -> None:
        """Write the result, and forget the unfinished states, the last of them when the context ends."""
        if self.writes:
            save_checkpoint(self.result, self.kind, content)
            self._forget_states(keep=1)
        self.finished = True

    def _forget_states(self, keep: int = 0) -> None:
        """Delete the unfinished states, the oldest first, so that what is left can always be continued."""
        for path in reversed(self.states[keep:]):
            path.unlink(missing_ok=True)

    def keep_best(self, content: dict[str, Any]) -> None:
        """Write the finished form of the best validation so far."""
        if self.writes:
            save_checkpoint(self.best, self.kind, content)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the metrics, and hand it to `also_log`: `record` must have a `step`."""
        if not self.writes:
            return
        with WriteLock(self.metrics) as lock:
            lock.wait()
            append_line(self.metrics, json.dumps({**self._line_key, **record}))
        self.also_log(record)

    def _keep_metrics_up_to(self, step: int) -> None:
        """Drop this stage's lines that a continued or repeated training will write again."""
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
            return bool(self._line_key.items() <= record.items() and record["step"] > step)
        except (ValueError, AttributeError, KeyError, TypeError):
            return False  # not ours, or torn by a crash
