"""The arrays of a token cache: how rows become bytes and are read again, shard by shard, and what is counted over them.

    rows (n, ...) ndarray  --encode_shard-->  bytes of a shard file  --decode_shard-->  rows, in an array that is there

zarr itself makes the bytes, in memory, so that we can hash, flush and rename the files. Reading compares what the
headers of a shard's frames claim with the layout before a decoder sees them, so no file can make us allocate more than
the layout says; zarr's reader does not. `metadata_fault` checks that an array's `zarr.json`, which we do not need, says
what the manifest says: for those who open the cache with another Zarr implementation. Imports numpy and zarr only.
"""

import json
import math
import struct
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

LOW_RANK = 1.1  # of the codes in use (`codebook_rank`), below which they lie on a line: 1 is one
CHUNK_BYTES = 256 * 1024
SHARD_BYTES = 32 * 1024 * 1024
MAX_SHARD_ROWS = 16384
KNOWN_CODECS = {"blosc", "bytes", "crc32c", "sharding_indexed"}
CHECKSUM_BYTES = 4  # of crc32c, after each chunk and after the index; our sha256 covers both
HEADER_BYTES = 16  # of a blosc frame: version, version of lz4, flags, typesize, then three 32-bit numbers
LZ4 = 1  # in the upper three bits of the flags
ABSENT = 2**64 - 1  # offset of a chunk that has no bytes
CODES_AT_ONCE = 2**20  # numpy counts in 64 bits
SHOWN_NAMES = 5


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
        return self.shard_slice(index).stop - index * self.shard_rows


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
    _create(store, replace(layout, shape=rows.shape))[...] = rows
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


def metadata_fault(layout: ArrayLayout, data: bytes) -> str:
    """What is wrong with an array's `zarr.json`, or ""."""
    try:
        document = json.loads(data)
        (sharding,) = document["codecs"]
        inside = sharding["configuration"]
        names = [sharding["name"], *(codec["name"] for codec in [*inside["codecs"], *inside["index_codecs"]])]
        unknown = [str(name) for name in names if name not in KNOWN_CODECS]
        claims = _claims(document, inside)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "is no array's metadata of this format"
    if unknown:
        return f"asks for codecs that are not of this format: {', '.join(unknown)}"
    shards, chunks = ([rows, *layout.shape[1:]] for rows in (layout.shard_rows, layout.chunk_rows))
    expected = ["array", list(layout.shape), layout.dtype, shards, chunks, "end", "default", "/", 0, []]
    return "" if claims == expected else "contradicts the manifest"


def _claims(document: dict[str, Any], inside: dict[str, Any]) -> list[Any]:
    keys = document["chunk_key_encoding"]
    return [
        document["node_type"],
        document["shape"],
        document["data_type"],
        document["chunk_grid"]["configuration"]["chunk_shape"],
        inside["chunk_shape"],
        inside.get("index_location", "end"),
        keys["name"],
        keys.get("configuration", {}).get("separator", "/"),
        document["fill_value"],
        document.get("storage_transformers", []),
    ]


def decode_shard(layout: ArrayLayout, data: bytes, out: NDArray[Any]) -> None:
    """Decode a shard file into `out` (n, ...), contiguous and little-endian. Raises ValueError if it is not sound."""
    index_start = len(data) - 16 * layout.chunks_per_shard - CHECKSUM_BYTES
    if index_start < 0:
        raise ValueError("it is too short for its index")
    index = np.frombuffer(data, "<u8", 2 * layout.chunks_per_shard, index_start).reshape(-1, 2).tolist()
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    view = memoryview(data)
    for number, (offset, length) in enumerate(index):
        rows = out[number * layout.chunk_rows : (number + 1) * layout.chunk_rows]
        if not len(rows):
            if (offset, length) != (ABSENT, ABSENT):
                raise ValueError(f"chunk {number} lies beyond the last row")
            continue
        if offset + length > index_start or length < HEADER_BYTES + CHECKSUM_BYTES:
            raise ValueError(f"chunk {number} does not lie in the file")
        frame = view[offset : offset + length - CHECKSUM_BYTES]
        content, _, frame_bytes = struct.unpack_from("<III", frame, 4)
        if frame[2] >> 5 != LZ4:
            raise ValueError(f"chunk {number} is not compressed by lz4")
        if (content, frame_bytes) != (chunk_bytes, len(frame)):
            raise ValueError(f"chunk {number} claims another size than the manifest")
        target = rows.reshape(-1).view(np.uint8)
        chunk = target if len(target) == chunk_bytes else np.empty(chunk_bytes, np.uint8)
        try:
            blosc.decompress(frame, chunk)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        if chunk is not target:
            target[:] = chunk[: len(target)]


@dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """`perplexity` is exp of the entropy of the code frequencies: how many evenly used codes would have it."""

    used_codes: int
    perplexity: float
    entropy_bits_per_token: float


def code_statistics(codes: NDArray[Any], codebook_size: int) -> CodeStatistics:
    """Used codes, perplexity and unigram entropy of an array of codes of any shape."""
    return statistics_of_counts(count_codes(codes, codebook_size))


def statistics_of_counts(counts: NDArray[np.integer[Any]]) -> CodeStatistics:
    """The same, from how often each code occurs, (K,)."""
    shares = counts[counts > 0] / max(1, counts.sum())
    nats = float(-(shares * np.log(shares)).sum())
    return CodeStatistics(
        used_codes=len(shares), perplexity=float(np.exp(nats)), entropy_bits_per_token=nats / math.log(2)
    )


def effective_rank(covariance: NDArray[np.floating[Any]]) -> float:
    """How many directions vectors of this covariance (D, D) use: exp of the entropy of their shares of the variance.

    From 1, a line, to D (Roy and Vetterli 2007). Vectors that are all alike have 0.
    """
    variances = np.linalg.eigvalsh(covariance.astype(np.float64)).clip(min=0)
    shares = variances[variances > 0] / variances.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def codebook_rank(codebook: NDArray[np.floating[Any]], counts: NDArray[np.integer[Any]]) -> float:
    """The effective rank of codes (K, D), of which each counts as often as it occurs, (K,)."""
    vectors, shares = codebook[counts > 0].astype(np.float64), counts[counts > 0] / max(1, counts.sum())
    centred = vectors - shares @ vectors
    return effective_rank((centred * shares[:, None]).T @ centred)


def count_codes(codes: NDArray[np.integer], codebook_size: int) -> NDArray[np.int64]:
    """How often each code occurs in an array of any shape, (K,)."""
    flat, counts = codes.reshape(-1), np.zeros(codebook_size, np.int64)
    for start in range(0, len(flat), CODES_AT_ONCE):
        counts += np.bincount(flat[start : start + CODES_AT_ONCE], minlength=codebook_size)
    return counts


def occurring(labels: NDArray[np.integer] | NDArray[np.bool_]) -> frozenset[int]:
    """The classes among labels (N,), -1 for none, or the bits that are on in some row of (N, L)."""
    numbers = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))
    return frozenset(numbers[numbers >= 0].tolist())


def names_without(numbers: Iterable[int], names: tuple[str, ...]) -> str:
    """The names of all other numbers, the first few of them; "" if there are none."""
    present = set(numbers)
    others = [repr(name) for number, name in enumerate(names) if number not in present]
    more = f", and {len(others) - SHOWN_NAMES:,} more" if len(others) > SHOWN_NAMES else ""
    return ", ".join(others[:SHOWN_NAMES]) + more
