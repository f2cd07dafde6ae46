"""What benchmarks of trainings at equal CPU time share: how many steps fit, and the table of their results.

A result is a record with `variant` and figures; the table has the mean and the range of each over the seeds, and
nothing for a figure that is None.
"""

import statistics
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from vqgpt.gpt.training import GPTTraining
from vqgpt.vqgan.training import VQGANTraining

TIMED_STEPS = 9  # of a training; the first is not counted


def steps_that_fit(seconds: float, training: VQGANTraining | GPTTraining) -> int:
    """How many steps take so many CPU seconds, by those of a training of `TIMED_STEPS`."""
    times = [time.process_time()]
    for step in training.schedule.steps(0):
        training.take_step(step)
        times.append(time.process_time())
    return max(1, int(seconds / statistics.mean(b - a for a, b in pairwise(times[1:]))))


def table(
    results: list[dict[str, Any]], title: str, variants: Iterable[str], columns: Mapping[str, tuple[str, str]]
) -> str:
    """In Markdown: `columns` are the names of figures, their headings and how they are printed."""
    lines = [
        " | ".join([f"| {title}", "seeds", *(name for name, _ in columns.values())]) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for variant in variants:
        rows = [result for result in results if result["variant"] == variant]
        cells = []
        for key, (_, form) in columns.items() if rows else ():
            values = [row[key] for row in rows if row[key] is not None]
            if not values:
                cells.append("")
                continue
            spread = f" ({min(values):{form}} to {max(values):{form}})" if min(values) < max(values) else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}")
        if rows:
            lines.append(" | ".join([f"| {variant}", str(len(rows)), *cells]) + " |")
    return "\n".join(lines)
