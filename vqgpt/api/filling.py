"""Filling a token cache shard by shard, the same way for encoded and for sampled codes, on one or several processes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import VQGPTError
from vqgpt.options.paths import CachePath
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.device import gather_to_main, main_first, name_of_run, rank, world_size
from vqgpt.runtime.process import StopRequest, library_versions, stop_on_signals
from vqgpt.tokens import CacheWriter, Description, Manifest, ShardRows, lock_of
from vqgpt.tokens.arrays import LOW_RANK, codebook_rank

SECONDS_TO_LEAVE = 4.0  # after a signal
FEW_CODES = 0.1  # share of the codebook below which a tokenizer gets a warning

Made = tuple[NDArray[Any], ...]  # codes (n, V, h, w), and log_prob (n,) of those that were sampled
Labels = tuple[NDArray[Any], NDArray[np.int64]]


def fill_cache(
    path: CachePath,
    description: Description,
    codebook: NDArray[np.float32],
    overwrite: bool,
    task: str,
    rows_of: Callable[[ShardRows], Iterator[Made]],
    labels_of: Callable[[ShardRows], Labels],
    report: Report,
) -> Manifest:
    """Create or continue the cache at `path`, make and commit what is missing; returns its manifest.

    `rows_of` yields what is made of a shard in batches, `labels_of` gives its labels and source indices. Of
    several processes, each makes its share. Raises what the lock and `CacheWriter` raise, and InterruptedRun when a
    signal asks to stop; the shard in hand is dropped then.
    """
    saved = f"the shards that are done are saved in {path}"
    with (
        lock_of(path, name_of_run(), report) as lock,
        stop_on_signals(SECONDS_TO_LEAVE, saved, world_size() > 1) as stop,
    ):
        with main_first():
            if rank() == 0:
                lock.take()
                versions = library_versions()
                writer = CacheWriter.create_or_resume(path, description, codebook, versions, overwrite, lock.check)
                lock.share()
            else:
                lock.join()
                writer = CacheWriter.join(path, description, lock.check)
        _write_missing(writer, lock.check, task, rows_of, labels_of, report, stop, saved)
        _warn_of_sick_codebook(writer.manifest, codebook, report)
        return writer.manifest


def _write_missing(
    writer: CacheWriter,
    check_lock: Callable[[], None],
    task: str,
    rows_of: Callable[[ShardRows], Iterator[Made]],
    labels_of: Callable[[ShardRows], Labels],
    report: Report,
    stop: StopRequest,
    saved: str,
) -> None:
    """In each round, every process stores one shard, and the main process commits them."""
    missing = list(writer.missing())
    if not missing:
        report(Notice(text=f"{writer.path} is complete and intact; nothing to do"))
    total = sum(shard.stop - shard.start for shard in missing)
    used = np.zeros(writer.manifest.description.codebook_size, dtype=bool)
    done = 0
    for first in range(0, len(missing), world_size()):
        together = missing[first : first + world_size()]
        stored = None
        if rank() < len(together):
            shard, batches = together[rank()], []
            for batch in rows_of(shard):
                batches.append(batch)
                used[batch[0]] = True
                in_hand = len(together) * sum(len(codes) for codes, *_ in batches)
                values = {"shard": first + len(together), "of": len(missing), "used_codes": int(used.sum())}
                report(Progress(task=task, done=min(done + in_hand, total), total=total, unit="images", values=values))
                if stop:
                    raise stop.as_error(saved)
            codes, *log_prob = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
            check_lock()
            stored = writer.store(shard, codes, *labels_of(shard), *log_prob)
        gathered = _gather((stored, used), stop, saved)
        if gathered:  # we are the main process
            entries = [entry for entry, _ in gathered[: len(together)]]
            check_lock()
            writer.commit({(shard.split, shard.index): entry for shard, entry in zip(together, entries, strict=True)})
            used = np.logical_or.reduce([of_one for _, of_one in gathered])
        done += sum(shard.stop - shard.start for shard in together)


def _gather(value: Any, stop: StopRequest, saved: str) -> list[Any]:
    """`gather_to_main`. Raises InterruptedRun or VQGPTError if another process of this run has left."""
    try:
        return gather_to_main(value)
    except RuntimeError as error:
        if stop:
            raise stop.as_error(saved) from None
        raise VQGPTError(
            f"another process of this run has ended; {saved}", "see its message; the same command continues"
        ) from error


def _warn_of_sick_codebook(manifest: Manifest, codebook: NDArray[np.float32], report: Report) -> None:
    """Warn of a tokenizer whose codes say little, where there are as many tokens as codes to judge it by.

    It uses few of its codes, or those that it uses lie on a line.
    """
    size = manifest.description.codebook_size
    histogram = np.sum([statistics.histogram for statistics in manifest.statistics.values()], axis=0)
    if manifest.description.origin != "encoded" or histogram.sum() < size:
        return
    used, rank = int((histogram > 0).sum()), codebook_rank(codebook, histogram)
    if used < FEW_CODES * size:
        fault = f"only {used} of {size} codes occur in these tokens"
    elif codebook.shape[1] > 1 and 0 < rank < LOW_RANK:
        fault = f"the {used} codes in use lie on a line (rank {rank:.2f} in {codebook.shape[1]} dimensions)"
    else:
        return
    text = f"warning: {fault}; the VQ-GAN's codebook has collapsed, or it does not suit these images"
    report(Notice(text=text))
