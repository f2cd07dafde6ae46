"""How long work tells what it is doing: events, handed to a callback. Must not import torch or rich."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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


Report = Callable[[Progress | Notice], None]


def silent(event: Progress | Notice) -> None:
    """A report that goes nowhere."""
