"""Which rows each step of a training sees: a pure function of the seed and the step.

Rows that do not fit in memory are visited shard by shard: the shards are shuffled, and cut into windows of as many as
the buffer holds; the rows of a window are shuffled together. A buffer that covers the set gives the order of
`epoch_order`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqgpt.errors import NonFiniteError
from vqgpt.options.codec import one_line
from vqgpt.runtime.device import derived_seed, epoch_order, rank


@dataclass(frozen=True, kw_only=True)
class StreamOrder:
    """`num_rows` rows in shards of `shard_rows` (the last may be short), of which `buffer_rows` are in memory."""

    seed: int
    num_rows: int
    shard_rows: int
    buffer_rows: int

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return math.ceil(self.num_rows / self.shard_rows)

    def windows(self, epoch: int) -> list[list[int]]:
        """The shards that are in memory together, each window in ascending order."""
        at_once = max(1, self.buffer_rows // self.shard_rows)
        if self.buffer_rows >= self.num_rows:
            return [list(range(self.num_shards))]
        order = _permutation(self.num_shards, derived_seed(self.seed, "shards", epoch)).tolist()
        return [sorted(order[start : start + at_once]) for start in range(0, len(order), at_once)]

    def rows(self, epoch: int) -> Tensor:
        """All rows in the order of the epoch, (num_rows,) int64."""
        parts = []
        for number, shards in enumerate(self.windows(epoch)):
            starts = [shard * self.shard_rows for shard in shards]
            rows = torch.cat([torch.arange(start, min(start + self.shard_rows, self.num_rows)) for start in starts])
            if number:
                order = _permutation(len(rows), derived_seed(self.seed, "window", epoch, number))
            else:
                order = epoch_order(self.seed, epoch, len(rows))
            parts.append(rows[order])
        return torch.cat(parts)


def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: `index` counts from 0 over all epochs; `rows` (B,) int64 are the dataset rows of its batch.

    The last step ends its epoch, even where that is cut short.
    """

    index: int
    epoch: int
    rows: Tensor
    ends_epoch: bool

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`n_epochs` passes over `num_rows` rows in shuffled batches; the last batch of an epoch may be short.

    With `max_steps` it ends after so many steps, if that is sooner. Rows that do not fit in memory come in the order of
    `stream`.
    """

    seed: int
    num_rows: int
    batch_size: int
    n_epochs: int
    max_steps: int | None = None
    stream: StreamOrder | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass."""
        return math.ceil(self.num_rows / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        steps = self.n_epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def steps(self, first: int) -> Iterator[Step]:
        """The steps from `first` on; torch's random numbers restart at each, from (seed, step, rank)."""
        for step in self.outlook(first):
            torch.manual_seed(derived_seed(self.seed, "step", step.index, *([rank()] if rank() else [])))
            yield step

    def outlook(self, first: int) -> Iterator[Step]:
        """The steps from `first` on, for those who prepare them: no random number is touched."""
        for index in range(first, self.num_steps):
            epoch, batch = divmod(index, self.steps_per_epoch)
            if batch == 0 or index == first:
                order = self.stream.rows(epoch) if self.stream else epoch_order(self.seed, epoch, self.num_rows)
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            ends_epoch = batch == self.steps_per_epoch - 1 or index == self.num_steps - 1
            yield Step(index=index, epoch=epoch, rows=rows, ends_epoch=ends_epoch)

    def images_after(self, step: Step) -> int:
        """Images seen when a step is done."""
        return self._images_in(step.index + 1)

    @property
    def num_images(self) -> int:
        """Images seen in all, as often as they are."""
        return self._images_in(self.num_steps)

    def _images_in(self, steps: int) -> int:
        epochs, batches = divmod(steps, self.steps_per_epoch)
        return epochs * self.num_rows + min(batches * self.batch_size, self.num_rows)


def check_finite(value: float, name: str, step: Step) -> None:
    """Raise NonFiniteError if a loss or gradient norm, with which no weight was moved, is not finite."""
    if not math.isfinite(value):
        rows = ", ".join(map(str, step.rows.tolist()))
        raise NonFiniteError(
            f"the {name} is {value} at step {step.index} (epoch {step.epoch}; rows {rows})",
            "train anew with a lower --lr, or with --precision fp32",
        )
