"""Filling a token cache shard by shard, the same way for encoded and for sampled codes. Must not import torch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.interrupt import StopRequest
from vqgpt.progress import Notice, Progress, Report
from vqgpt.tokens import CacheWriter, ShardRows

Codes = NDArray[np.integer[Any]]


def write_missing_shards(
    writer: CacheWriter,
    task: str,
    codes_of: Callable[[ShardRows], Iterator[Codes]],
    labels_of: Callable[[ShardRows], tuple[NDArray[Any], NDArray[np.int64]]],
    report: Report,
    stop: StopRequest,
) -> None:
    """Make and commit what is missing.

    `codes_of` yields a shard's codes (n, V, h, w) in batches, `labels_of` gives its labels and source indices. Raises
    InterruptedRun when a signal asks to stop; the shard in hand is dropped then.
    """
    missing = list(writer.missing())
    if not missing:
        report(Notice(text=f"{writer.path} is complete and intact; nothing to do"))
    total = sum(shard.stop - shard.start for shard in missing)
    done = 0
    used = np.zeros(writer.manifest.description.codebook_size, dtype=bool)
    for shard in missing:
        batches = []
        for codes in codes_of(shard):
            batches.append(codes)
            used[codes] = True
            done += len(codes)
            values = {"used_codes": int(used.sum())}
            report(Progress(task=task, done=done, total=total, unit="images", values=values))
            if stop:
                raise stop.as_error(f"the shards that are done are saved in {writer.path}")
        writer.write(shard, np.concatenate(batches), *labels_of(shard))
