"""The file of one shard, taken apart and decoded: the codec `sharding_indexed`, index at the end.

    bytes of a shard file  --decode_shard-->  rows (n, ...), in an array that is there already

What the headers of its frames claim is compared with the layout before a decoder sees them, so that no file can make
us allocate more than the layout says. zarr's own reader would do, were it not for that. Imports numpy, zarr and its
numcodecs only.
"""

import struct
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from vqgpt.tokens.layout import ArrayLayout

CHECKSUM_BYTES = 4  # of crc32c, after each chunk and after the index; our sha256 covers both
HEADER_BYTES = 16  # of a blosc frame: version, version of lz4, flags, typesize, then three 32-bit numbers
LZ4 = 1  # in the upper three bits of the flags
ABSENT = 2**64 - 1  # offset of a chunk that has no bytes


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
