"""The files of one training: the unfinished checkpoints, the best, the last, and the metrics. Both trainings use it.

While a training runs, `NAME.unfinished.pt` beside the result holds all that is needed to continue, and
`NAME.unfinished.previous.pt`, `.previous.2.pt` and so on what it held before, in case the newest turns out damaged.
`NAME.best.pt` is the finished form of the best validation so far. The result itself, of the last epoch, appears when
the training is done. The same command continues, and nothing is replaced unless `overwrite` asks for it. Of several
ranks, the main one writes.
"""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqgpt.checkpoint import load_checkpoint, save_checkpoint
from vqgpt.config.options import differences
from vqgpt.distributed import main_first, rank
from vqgpt.errors import InputError, UsageError
from vqgpt.files import check_writable, write_atomically
from vqgpt.progress import Notice, Report


def check_result(result: Path, overwrite: bool) -> None:
    """Raise UsageError if a checkpoint cannot be written to `result`, or exists there and is not to be replaced."""
    if result.suffix != ".pt" or result.is_dir():
        raise UsageError(f"{result} cannot be a checkpoint", "give --out a file name that ends in .pt")
    if result.exists() and not overwrite:
        raise UsageError(f"{result} exists", "give --overwrite to replace it, or another --out")


class TrainingRun:
    """`identity` is what must be equal for a training to be continued: its options, its seed, and its data's digest."""

    def __init__(
        self, result: Path, kind: str, identity: dict[str, Any], overwrite: bool, report: Report, keep_last: int = 2
    ) -> None:
        """`keep_last` states are kept while it runs, from the newest back.

        Raises UsageError if the result exists already, InputError if another training is unfinished there.
        """
        check_result(result, overwrite)
        self.result = result
        self.kind = kind
        self.identity = identity
        self.unfinished = result.with_suffix(".unfinished.pt")
        names = [".unfinished.pt", ".unfinished.previous.pt"]
        names += [f".unfinished.previous.{number}.pt" for number in range(2, keep_last)]
        self.states = [result.with_suffix(name) for name in names[:keep_last]]  # from the newest back
        self.best = result.with_suffix(".best.pt")
        self.metrics = result.with_name("metrics.jsonl")
        self.writes = rank() == 0
        self.also_log: Callable[[dict[str, Any]], None] = lambda record: None
        with main_first():
            self.state = self._load_state(overwrite, report)
            if self.best.exists() and not self.state and not overwrite:
                raise UsageError(f"{self.best} exists", "give --overwrite to replace it, or another --out")
            if self.writes:
                check_writable(result.parent)
                if not self.state:  # then what lies there is to be replaced
                    self._forget_states()
                self._keep_metrics_up_to(self.state["step"] if self.state else 0)

    @property
    def _unfinished_kind(self) -> str:
        return f"{self.kind} training"

    @property
    def _line_key(self) -> dict[str, str]:
        """What tells this training's lines in the metrics from those of others."""
        return {"stage": self.kind, "checkpoint": self.result.name}

    def _load_state(self, overwrite: bool, report: Report) -> dict[str, Any] | None:
        """The newest state that can be read and belongs to this training, None if there is none to continue."""
        damage = None
        for path in self.states:
            if not path.exists():
                continue
            try:
                remedy = f"delete {path} to start from the beginning"
                content = load_checkpoint(path, self._unfinished_kind, remedy)
            except InputError as error:
                damage = damage or error
                continue
            if content["identity"] != self.identity:
                if overwrite:
                    return None
                different = differences(self.identity, content["identity"])
                raise InputError(
                    f"{path} belongs to a training with other settings ({different})",
                    "give --overwrite to start anew, or another --out",
                )
            if damage:
                report(Notice(text=f"{damage.message}; continuing from {path}, the state before it"))
                if self.writes:
                    os.replace(path, self.unfinished)
            return dict(content["state"])
        if damage and not overwrite:
            raise damage
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Keep all that is needed to continue; `state["step"]` counts the steps that are done."""
        if not self.writes:
            return
        for newer, older in reversed(list(itertools.pairwise(self.states))):
            if newer.exists():
                os.replace(newer, older)
        save_checkpoint(self.unfinished, self._unfinished_kind, {"identity": self.identity, "state": state})

    def finish(self, content: dict[str, Any]) -> None:
        """Write the result, and forget the unfinished states."""
        if self.writes:
            save_checkpoint(self.result, self.kind, content)
            self._forget_states()

    def _forget_states(self) -> None:
        """Delete the unfinished states, the oldest first, so that what is left can always be continued."""
        for path in reversed(self.states):
            path.unlink(missing_ok=True)

    def keep_best(self, content: dict[str, Any]) -> None:
        """Write the finished form of the best validation so far."""
        if self.writes:
            save_checkpoint(self.best, self.kind, content)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the metrics, and hand it to `also_log`: `record` must have a `step`."""
        if not self.writes:
            return
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({**self._line_key, **record}) + "\n")
        self.also_log(record)

    def _keep_metrics_up_to(self, step: int) -> None:
        """Drop this stage's lines that a continued or repeated training will write again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if not self._will_be_written_again(line, step)]
        if kept != lines:
            write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())

    def _will_be_written_again(self, line: str, step: int) -> bool:
        try:
            record = json.loads(line)
            return bool(self._line_key.items() <= record.items() and record["step"] > step)
        except (ValueError, AttributeError, KeyError, TypeError):
            return False  # not ours, or torn by a crash
