"""The files of one training: the unfinished checkpoint, the finished one, and the metrics. Both trainings use it.

While a training runs, `NAME.unfinished.pt` beside the result holds all that is needed to continue. The result itself
appears when the training is done. The same command continues, and nothing is replaced unless `overwrite` asks for it.
"""

import json
from pathlib import Path
from typing import Any

from vqgpt.checkpoint import load_checkpoint, save_checkpoint
from vqgpt.config.options import differences
from vqgpt.errors import InputError, UsageError
from vqgpt.files import check_writable, write_atomically


class TrainingRun:
    """`identity` is what must be equal for a training to be continued: its options, its seed, and its data's digest."""

    def __init__(self, result: Path, kind: str, identity: dict[str, Any], overwrite: bool) -> None:
        """Raises UsageError if the result exists already, InputError if another training is unfinished there."""
        if result.suffix != ".pt" or result.is_dir():
            raise UsageError(f"{result} cannot be a checkpoint", "give --out a file name that ends in .pt")
        if result.exists() and not overwrite:
            raise UsageError(f"{result} exists", "give --overwrite to replace it, or another --out")
        self.result = result
        self.kind = kind
        self.identity = identity
        self.unfinished = result.with_suffix(".unfinished.pt")
        self.metrics = result.with_name("metrics.jsonl")
        check_writable(result.parent)
        self.state = self._load_state(overwrite)
        self._keep_metrics_up_to(self.state["step"] if self.state else 0)

    @property
    def _unfinished_kind(self) -> str:
        return f"{self.kind} training"

    @property
    def _line_key(self) -> dict[str, str]:
        """What tells this training's lines in the metrics from those of others."""
        return {"stage": self.kind, "checkpoint": self.result.name}

    def _load_state(self, overwrite: bool) -> dict[str, Any] | None:
        if not self.unfinished.exists():
            return None
        try:
            remedy = f"delete {self.unfinished} to start from the beginning"
            content = load_checkpoint(self.unfinished, self._unfinished_kind, remedy)
        except InputError:
            if overwrite:
                return None
            raise
        if content["identity"] == self.identity:
            return dict(content["state"])
        if overwrite:
            return None
        different = differences(self.identity, content["identity"])
        raise InputError(
            f"{self.unfinished} belongs to a training with other settings ({different})",
            "give --overwrite to start anew, or another --out",
        )

    def save(self, state: dict[str, Any]) -> None:
        """Keep all that is needed to continue; `state["step"]` counts the steps that are done."""
        save_checkpoint(self.unfinished, self._unfinished_kind, {"identity": self.identity, "state": state})

    def finish(self, content: dict[str, Any]) -> None:
        """Write the result, and forget the unfinished state."""
        save_checkpoint(self.result, self.kind, content)
        self.unfinished.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the metrics: `record` must have a `step`."""
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({**self._line_key, **record}) + "\n")

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
