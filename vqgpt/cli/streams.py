"""The standard streams: losing one never ends a command. Must not import torch.

A reader that goes away (`| head`), a terminal that hangs up, a full disk or a closed stream costs the text and nothing
else. Characters that the encoding of a stream does not have are escaped.
"""

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from vqgpt.errors import ResourceError

GONE = {errno.EPIPE, errno.EIO}  # nobody reads any more: a pipe's other end was closed, a terminal hung up
FRAMES = str.maketrans("─━│┃╭╮╰╯╸╺", "--||++++--")  # what help and progress bars are drawn with
ESCAPING = "vqgpt.escape"


class LossyFile(io.FileIO):
    """A descriptor to write to, left open at the end. What cannot be written is dropped; `fault` is the last reason."""

    fault: OSError | None = None

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any) -> int:
        """Write, or pretend to; returns the bytes that are done with."""
        try:
            while (written := super().write(data)) is None:  # a full pipe that another program made non-blocking
                select.select([], [self], [])
        except OSError as fault:
            self.fault = fault
            return len(data)
        return written


class LossyStream(io.TextIOWrapper):
    """Text to a `LossyFile`, a line at a time, with escapes for what `encoding` does not have."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        self.file = LossyFile(descriptor)
        super().__init__(io.BufferedWriter(self.file), encoding, ESCAPING, line_buffering=True)


def escape(error: UnicodeError) -> tuple[str, int]:
    """What to write in place of characters that cannot be encoded: plain frames, else their numbers as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(FRAMES)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def secure_streams() -> None:
    """Make stdin, stdout and stderr of this process such that no use of them fails. Before any other file is opened.

    A closed one is replaced by /dev/null: else the next file that is opened, a checkpoint say, would take its number,
    and get the text. Streams that a caller has redirected within Python are left alone.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
    codecs.register_error(ESCAPING, escape)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = LossyStream(1, _encoding(sys.stdout))
    if sys.stderr is sys.__stderr__:
        sys.stderr = LossyStream(2, _encoding(sys.stderr))


def _encoding(stream: TextIO | None) -> str:
    """Of a stream as Python opened it; None is one that was closed."""
    return stream.encoding if stream else "utf-8"


def check_written() -> None:
    """Raise ResourceError if the text on stdout was lost though somebody may yet read it: on a full disk."""
    fault = sys.stdout.file.fault if isinstance(sys.stdout, LossyStream) else None
    if fault and fault.errno not in GONE:
        raise ResourceError(
            f"the result could not be written to stdout: {fault.strerror}",
            "make room, or write it elsewhere; files that the command wrote are unaffected",
        )
