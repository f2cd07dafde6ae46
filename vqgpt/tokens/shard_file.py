"""The file of one shard, taken apart and decoded: the codec `sharding_indexed`, index at the end.

    bytes of a shard file  --decode_shard-->  rows (n, ...), in an array that is there already

What the headers of its frames claim is compared with the layout before a decoder sees them, so that no file can make
us allocate more than the layout says. zarr's own reader would do, were it not for that, and for its taking 1.4 times
as long. Imports numpy, zarr and its numcodecs only.
"""

import struct
from typing import Any

import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from vqgpt.tokens.layout import ArrayLayout

CHECKSUM_BYTES = 4  # of crc32c, after each chunk and after the index; our sha256 covers both
ABSENT = 2**64 - 1  # offset of a chunk that has no bytes
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def decode_shard(layout: ArrayLayout, data: bytes, out: NDArray[Any]) -> None:
    """Decode a shard file into `out` (n, ...), contiguous and little-endian. Raises ValueError if it is not sound."""
    index_bytes = 16 * layout.chunks_per_shard
    index_start = len(data) - index_bytes - CHECKSUM_BYTES
    if index_start < 0:
        raise ValueError("it is too short for its index")
    index = np.frombuffer(data, "<u8", 2 * layout.chunks_per_shard, index_start).reshape(-1, 2).tolist()
    decompress = blosc.decompress if layout.dtype == "uint16" else zstd.decompress
    claimed_bytes = _blosc_content_size if layout.dtype == "uint16" else _zstd_content_size
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    view = memoryview(data)
    for number, (offset, length) in enumerate(index):
        rows = out[number * layout.chunk_rows : (number + 1) * layout.chunk_rows]
        if not len(rows):
            if (offset, length) != (ABSENT, ABSENT):
                raise ValueError(f"chunk {number} lies beyond the last row")
            continue
        if offset + length > index_start or length < CHECKSUM_BYTES:
            raise ValueError(f"chunk {number} does not lie in the file")
        frame = view[offset : offset + length - CHECKSUM_BYTES]
        if claimed_bytes(frame) != chunk_bytes:
            raise ValueError(f"chunk {number} claims another size than the manifest")
        target = rows.reshape(-1).view(np.uint8)
        chunk = target if len(target) == chunk_bytes else np.empty(chunk_bytes, np.uint8)
        try:
            decompress(frame, chunk)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        if chunk is not target:
            target[:] = chunk[: len(target)]


def _zstd_content_size(frame: memoryview) -> int | None:
    """What a zstd frame says it decodes to (RFC 8878, 3.1.1.1); None if it does not say."""
    if len(frame) < 5 or frame[:4] != ZSTD_MAGIC:
        return None
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not width or len(frame) < start + width:
        return None
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)


def _blosc_content_size(frame: memoryview) -> int | None:
    """What a blosc frame says it decodes to; None if its length is not the one that it claims."""
    if len(frame) < 16:
        return None
    content, _, length = struct.unpack_from("<III", frame, 4)
    return int(content) if length == len(frame) else None
