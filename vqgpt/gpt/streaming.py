"""Training tokens that do not fit in memory: windows of shards, read ahead of the step that needs them.

    order of rows, and a function that loads shards -> the batches that `Sequences` would give

Knows nothing of files of token caches.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from vqgpt.gpt.training import Sequences
from vqgpt.training.schedule import StreamOrder


class StreamedSequences:
    """The rows of `order`, of which one window and the next are in memory; `load(shards)` gives the rows of shards."""

    def __init__(
        self,
        order: StreamOrder,
        n_epochs: int,
        load: Callable[[Sequence[int]], Sequences],
        num_views: int,
        device: torch.device,
    ) -> None:
        self.order = order
        self.n_epochs = n_epochs
        self.load = load
        self.num_views = num_views
        self.device = device
        self.reader = ThreadPoolExecutor(1)
        self.held: dict[tuple[int, ...], Future[Sequences]] = {}
        self.epoch = -1

    def batch(self, epoch: int, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `Sequences.batch`. Raises what `load` raises."""
        if epoch != self.epoch:
            self._begin(epoch)
        shards = rows // self.order.shard_rows
        window_of_row = self.window_of[shards]
        needed = window_of_row.unique().tolist()
        self._hold(needed)
        rows_in_window = self.start_of[shards] + rows % self.order.shard_rows
        parts = [(window_of_row == window).nonzero()[:, 0] for window in needed]
        found = [
            self.held[self.windows[window]].result().batch(epoch, rows_in_window[part], views[part])
            for window, part in zip(needed, parts, strict=True)
        ]
        back = torch.argsort(torch.cat(parts)).to(self.device)
        codes, labels = (torch.cat(values)[back] for values in zip(*found, strict=True))
        return codes, labels

    def _begin(self, epoch: int) -> None:
        """For each shard, which window of the epoch it is in, and at which of its rows it starts there."""
        self.epoch = epoch
        self.windows = [tuple(shards) for shards in self.order.windows(epoch)]
        self.window_of = torch.empty(self.order.num_shards, dtype=torch.int64)
        self.start_of = torch.empty(self.order.num_shards, dtype=torch.int64)
        for number, shards in enumerate(self.windows):
            start = 0
            for shard in shards:
                self.window_of[shard], self.start_of[shard] = number, start
                start += min(self.order.shard_rows, self.order.num_rows - shard * self.order.shard_rows)

    def _hold(self, needed: list[int]) -> None:
        """Have these windows read, and the one after them; let go of all others."""
        wanted = [self.windows[window] for window in needed]
        if needed[-1] + 1 < len(self.windows):
            wanted.append(self.windows[needed[-1] + 1])
        elif self.epoch + 1 < self.n_epochs:
            wanted.append(tuple(self.order.windows(self.epoch + 1)[0]))
        self.held = {
            shards: self.held.get(shards) or self.reader.submit(self.load, shards) for shards in dict.fromkeys(wanted)
        }
