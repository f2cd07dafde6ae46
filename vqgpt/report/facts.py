"""What a run's page is made of: plain numbers, words and pixels. Must not import torch.

A `None` says that something is not there; `missing` says in a sentence why, and which command makes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.options.codec import one_line

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A grid of images (n, C, H, W) uint8, `columns` in a row, each with its caption ("" for none).

    `title` names it, and `text` says what there is to see, also for those who do not see it.
    """

    title: str
    text: str
    images: NDArray[np.uint8]
    captions: tuple[str, ...]
    columns: int

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """How the training split of a token cache uses the codes: `counts` (K,), and the rank of those in use, 0 for none.

    `unverified` is what nothing vouches for, in a cache whose codes were imported.
    """

    counts: NDArray[np.int64]
    rank: float
    unverified: tuple[str, ...]

    __repr__ = one_line

    @property
    def dead(self) -> int:
        """Codes that no token has."""
        return int((self.counts == 0).sum())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A network of a run, or what was made with it: its configuration, the digest of its file, how long it took.

    `command` is that which makes it, `curves` are the lines of metrics.jsonl, in order.
    """

    configuration: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    seconds: float | None = None
    command: str = ""
    curves: tuple[Line, ...] = ()

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """All of a run. `stages` by table of the recipe; `evaluations` by kind, the latest that measured what is there."""

    name: str
    folder: Path
    stages: Mapping[str, Stage]
    evaluations: Mapping[str, Mapping[str, Any]]
    codebook: Codebook | None
    goes_together: tuple[str, ...]
    environment: Mapping[str, str]
    sheets: tuple[Sheet, ...]
    missing: tuple[str, ...]

    __repr__ = one_line

    def curve(self, table: str, figure: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a figure of a training, where its metrics have it."""
        lines = [line for line in self.stages[table].curves if figure in line] if table in self.stages else []
        return [float(line["epoch"]) for line in lines], [float(line[figure]) for line in lines]
