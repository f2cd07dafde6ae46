"""Training tokens: grids in memory, those of rare classes more often if asked for, or streamed by windows of shards.

    grids (N, V, h, w) uint8 or int16, labels -> batches: grids (B, h, w) int64, labels (B, ...)

A stream reads shards ahead of the step that needs them, and gives the batches that `TokenGrids` would give.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vqgpt.gpt.options import GPTConfig
from vqgpt.options.codec import one_line
from vqgpt.runtime.device import derived_seed
from vqgpt.training.schedule import StreamOrder


@dataclass(frozen=True, kw_only=True)
class TokenGrids:
    """Codes (N, V, h, w), uint8 or the bits of uint16 in int16; labels as `GPT.start` takes them."""

    codes: Tensor
    labels: Tensor

    __repr__ = one_line

    @classmethod
    def of(cls, codes: Tensor, labels: Tensor, config: GPTConfig) -> "TokenGrids":
        """From grids and labels (N,) int64 or (N, L) uint8; they count where the GPT is conditioned.

        uint16 comes as int16 of the same bits: torch cannot gather it.
        """
        if config.options.condition == "none":
            labels = torch.full((len(codes),), -1, device=codes.device)
        elif config.options.condition == "bits":
            labels = labels.to(torch.int8) * 2 - 1
        return cls(codes=codes, labels=labels)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_views(self) -> int:
        """How many views of each image there are."""
        return self.codes.shape[1]

    def batch(self, epoch: int, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,) and the view to take of each (B,), on the CPU -> grids (B, h, w) int64, labels (B, ...)."""
        rows, views = (numbers.to(self.codes.device, non_blocking=True) for numbers in (rows, views))
        return self.codes[rows, views].long() & 0xFFFF, self.labels[rows]


class TrainingRows(Protocol):
    """Where the batches come from: tokens in memory, or a stream of them, which has to know the epoch."""

    @property
    def num_views(self) -> int:
        """How many views of each image there are."""

    def batch(self, epoch: int, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenGrids.batch`."""


class BalancedGrids:
    """Rows in memory, of which an epoch shows those of rare classes more often: see `balanced_rows`."""

    def __init__(self, grids: TokenGrids, balance: float, seed: int) -> None:
        self.grids, self.balance, self.seed = grids, balance, seed
        self.num_views = grids.num_views
        self.epoch, self.shown = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, epoch: int, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """As `TokenGrids.batch`; `rows` are places in the epoch."""
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "balance", epoch))
            self.epoch, self.shown = epoch, balanced_rows(self.grids.labels.cpu(), self.balance, generator)
        return self.grids.batch(epoch, self.shown[rows], views)


def balanced_rows(labels: Tensor, balance: float, generator: torch.Generator) -> Tensor:
    """For labels (N,), -1 for none, the rows (N,) that an epoch shows, in any order.

    How often a row is shown is in proportion to the frequency of its class to the power of -balance, rounded up or down
    at random: with 0 each row once, with 1 each class equally often; rows without a class are a class of their own.
    0.5 is the square root of Gupta et al. 2019 (arXiv:1908.03195), but an epoch does not become longer.
    """
    order = torch.randperm(len(labels), generator=generator)
    counted = labels + 1  # from 0
    weights = counted.bincount()[counted[order]].double() ** -balance
    until = weights.cumsum(0) * (len(labels) / weights.sum())  # how many are shown up to here
    places = torch.arange(len(labels)) + torch.rand((), generator=generator, dtype=torch.float64)
    return order[torch.searchsorted(until, places, right=True).clamp(max=len(labels) - 1)]


class StreamedGrids:
    """The rows of `order`, of which one window and the next are in memory; `load(shards)` gives the rows of shards."""

    def __init__(
        self,
        order: StreamOrder,
        n_epochs: int,
        load: Callable[[Sequence[int]], TokenGrids],
        num_views: int,
        device: torch.device,
    ) -> None:
        self.order, self.n_epochs, self.load = order, n_epochs, load
        self.num_views, self.device = num_views, device
        self.reader = ThreadPoolExecutor(1)
        self.held: dict[tuple[int, ...], Future[TokenGrids]] = {}
        self.epoch = -1

    def batch(self, epoch: int, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `TokenGrids.batch`. Raises what `load` raises."""
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
