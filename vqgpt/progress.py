"""How long work tells what it is doing: events, handed to a callback. Must not import torch or rich."""

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
