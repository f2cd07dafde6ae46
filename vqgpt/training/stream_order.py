"""The order in which rows are visited that do not fit in memory: shard by shard, shuffled within a buffer.

The shards are shuffled, and cut into windows of as many as the buffer holds; the rows of a window are shuffled
together. All of it is a pure function of (seed, epoch). A buffer that covers the set gives the order of `epoch_order`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqgpt.runtime.device import derived_seed, epoch_order


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
