"""Rows of a token cache in the parts that a decoder takes at once. Must not import torch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqgpt.options.codec import one_line
from vqgpt.tokens import TokenCache


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of a split, by number, in one view: codes (n, h, w), labels (n,) or (n, L)."""

    rows: range
    codes: NDArray[np.unsignedinteger]
    labels: NDArray[np.integer]

    __repr__ = one_line


def parts_of(cache: TokenCache, split: str, view: int, rows: range, at_once: int) -> Iterator[Part]:
    """The rows, shard by shard, `at_once` at a time: the same parts whenever the same rows are asked for."""
    shard_rows = cache.description.shard_rows
    for shard in range(rows.start // shard_rows, (rows.stop - 1) // shard_rows + 1):
        first = shard * shard_rows
        tokens = cache.read_split(split, [shard])
        inside = range(max(rows.start, first), min(rows.stop, first + len(tokens.codes)))
        for start in range(inside.start, inside.stop, at_once):
            part = range(start, min(start + at_once, inside.stop))
            here = slice(part.start - first, part.stop - first)
            yield Part(rows=part, codes=tokens.codes[here, view], labels=tokens.labels[here])
