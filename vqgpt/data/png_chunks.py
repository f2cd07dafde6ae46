"""The chunks of a PNG file that a decoder needs. Must not import torch."""

import io
import struct
import zlib

from PIL.PngImagePlugin import PngStream

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FRAME = struct.Struct(">I4s")  # of a chunk: length and kind; then come its content, and four bytes of checksum
TRANSPARENCY = b"tRNS"
EXIF = b"eXIf"  # tells the rotation
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
ROTATION = {b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif"}  # keywords of texts in which Pillow looks for it


def without_metadata(data: bytes) -> bytes:
    """A PNG file of the first picture alone, with what may tell its rotation; other bytes as is.

    Pillow unpacks colour profiles, texts and the like, and refuses an image for one that is larger than 1 MiB. It also
    does for a damaged one, and for damage in the frames that come after the first picture.
    """
    if not data.startswith(SIGNATURE):
        return data
    view, kept, position = memoryview(data), [memoryview(SIGNATURE)], len(SIGNATURE)
    pillow = PngStream(io.BytesIO())
    while position + FRAME.size <= len(data):
        length, kind = FRAME.unpack_from(data, position)
        end = position + FRAME.size + length + 4
        if end > len(data):
            break
        if _is_needed(kind, view[position + FRAME.size : end - 4], view[end - 4 : end], pillow):
            kept.append(view[position:end])
        position = end
    return b"".join([*kept, view[position:]])


def _is_needed(kind: bytes, content: memoryview, checksum: memoryview, pillow: PngStream) -> bool:
    if kind == EXIF or kind in TEXTS:
        is_whole = zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(checksum)
        keyword = bytes(content[:80]).partition(b"\0")[0]
        return is_whole and (kind == EXIF or (keyword in ROTATION and _takes(pillow, kind, content)))
    return kind[:1].isupper() or not kind.isalpha() or kind == TRANSPARENCY


def _takes(pillow: PngStream, kind: bytes, content: memoryview) -> bool:
    """True if Pillow takes a text after those that it took; it unpacks 1 MiB of each at most."""
    pillow.fp = io.BytesIO(content)
    try:
        pillow.call(kind, 0, len(content))
    except (ValueError, SyntaxError):
        return False
    return True
