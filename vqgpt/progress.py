"""How long work tells what it is doing: events, handed to a callback. Must not import torch or rich."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` `unit`s of a task are behind us; `values` are the latest figures, by name."""

    task: str
    done: int
    total: int
    unit: str
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A sentence that the user should read."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that the user asked to see: a .png file."""

    path: Path


Event = Progress | Notice | Picture
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """A report that goes nowhere."""


class PlainBar:
    """A report that writes a line per task to stderr, over itself, and notices as they come: for notebooks."""

    def __init__(self) -> None:
        self.task = ""

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Progress):
            if self.task not in ("", event.task):
                sys.stderr.write("\n")
            self.task = "" if event.done >= event.total else event.task
            figures = "".join(f"  {name} {value:.4g}" for name, value in event.values.items())
            line = f"{event.task}: {event.done:,} of {event.total:,} {event.unit}{figures}"
            sys.stderr.write(f"\r{line:<79}" + ("" if self.task else "\n"))
        else:
            text = event.text if isinstance(event, Notice) else f"the picture is {event.path}"
            sys.stderr.write(("\n" if self.task else "") + text + "\n")
            self.task = ""
        sys.stderr.flush()
