"""How rows become bytes: the Zarr v3 arrays of a token cache, shard by shard.

    rows (n, ...) ndarray  --encode_shard-->  bytes of one shard file

zarr itself makes the bytes, in memory, so that files can be hashed, flushed and renamed by us. `shard_file` takes them
apart again. Imports numpy and zarr only.
"""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

CHUNK_BYTES = 256 * 1024
SHARD_BYTES = 32 * 1024 * 1024
MAX_SHARD_ROWS = 16384


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Shape, type and partition of one array. Rows run along the first dimension; only they are partitioned."""

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    shard_rows: int
    dimension_names: tuple[str, ...]

    @property
    def num_shards(self) -> int:
        """Shard files of the array; the last one may hold fewer rows."""
        return math.ceil(self.shape[0] / self.shard_rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, decoded. Exact for any size: an untrusted manifest may claim more than 64 bits hold."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a full shard."""
        return self.shard_rows // self.chunk_rows

    def shard_key(self, index: int) -> str:
        """Path of a shard's file below the array's folder."""
        return "/".join(["c", str(index), *["0"] * (len(self.shape) - 1)])

    def shard_slice(self, index: int) -> slice:
        """The rows that a shard holds."""
        return slice(index * self.shard_rows, min((index + 1) * self.shard_rows, self.shape[0]))

    def rows_in(self, index: int) -> int:
        """How many rows a shard holds."""
        rows = self.shard_slice(index)
        return rows.stop - rows.start


def code_dtype(codebook_size: int) -> str:
    """The smallest unsigned integer type that holds the largest code."""
    return str(np.min_scalar_type(codebook_size - 1))


def default_shard_rows(row_bytes: int) -> int:
    """Rows per shard: the unit of writing, checking and resuming. At most 16,384, and about 32 MiB."""
    return min(MAX_SHARD_ROWS, _power_of_two_below(SHARD_BYTES / row_bytes))


def default_chunk_rows(row_bytes: int, shard_rows: int) -> int:
    """Rows per inner chunk: the unit of decompression, about 256 KiB, a divisor of `shard_rows`."""
    return math.gcd(shard_rows, _power_of_two_below(CHUNK_BYTES / row_bytes))


def _power_of_two_below(number: float) -> int:
    return int(2 ** max(0, math.floor(math.log2(number))))


def array_metadata(layout: ArrayLayout) -> bytes:
    """The array's `zarr.json`."""
    store: MutableMapping[str, Any] = {}
    _create(store, layout)
    return bytes(store["zarr.json"].to_bytes())


def encode_shard(layout: ArrayLayout, rows: NDArray[np.generic]) -> bytes:
    """The file of a shard that holds `rows` (n, ...) of the layout's dtype, n at most `shard_rows`."""
    assert rows.shape[1:] == layout.shape[1:]
    assert rows.dtype == layout.dtype
    assert len(rows) <= layout.shard_rows
    store: MutableMapping[str, Any] = {}
    one_shard = ArrayLayout(
        shape=rows.shape,
        dtype=layout.dtype,
        chunk_rows=layout.chunk_rows,
        shard_rows=layout.shard_rows,
        dimension_names=layout.dimension_names,
    )
    _create(store, one_shard)[...] = rows
    return bytes(store[layout.shard_key(0)].to_bytes())


def _create(store: MutableMapping[str, Any], layout: ArrayLayout) -> "zarr.Array[Any]":
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=np.dtype(layout.dtype).itemsize)
    return zarr.create_array(
        MemoryStore(store),
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=(layout.chunk_rows, *layout.shape[1:]),
        shards=(layout.shard_rows, *layout.shape[1:]),
        compressors=[codec, Crc32cCodec()],
        fill_value=0,
        dimension_names=layout.dimension_names,
        config={"write_empty_chunks": True},  # without it, a shard of zeros would have no file
    )
