"""The errors that users meet, and the exit codes of the commands.

Each error says two things: what is wrong (naming the file, flag or shard) and what to do about it, such as the name
that was meant.
Must not import torch, rich or typer.
"""

import difflib
import unicodedata
from collections.abc import Iterable
from enum import IntEnum

MOST_NAMES = 50  # in a hint


class ExitCode(IntEnum):
    """What a command's exit status means."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    BAD_INPUT = 3
    MISSING_DATA = 4
    OUT_OF_RESOURCES = 5
    NON_FINITE = 6
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


def printable(text: str) -> str:
    """`text` on one line: control characters, and bytes of file names that are no UTF-8, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class VQGPTError(Exception):
    """A failure that the user can understand and act on: `message` names the thing, `hint` the remedy."""

    exit_code = ExitCode.UNEXPECTED

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = printable(message)
        self.hint = printable(hint)


class UsageError(VQGPTError):
    """The command line, the environment or the recipe asks for something that cannot be."""

    exit_code = ExitCode.USAGE


class InputError(VQGPTError):
    """A file is bad, corrupt, of another kind, or does not match another."""

    exit_code = ExitCode.BAD_INPUT


class MissingDataError(VQGPTError):
    """A data set, checkpoint or cache is not there and could not be fetched."""

    exit_code = ExitCode.MISSING_DATA


class MissingFilesError(MissingDataError):
    """Files have to be put somewhere by hand, after which the same command is to be run again."""


class ResourceError(VQGPTError):
    """Memory or disk space ran out."""

    exit_code = ExitCode.OUT_OF_RESOURCES


class NonFiniteError(VQGPTError):
    """A loss or gradient is NaN or infinite; nothing was updated with it."""

    exit_code = ExitCode.NON_FINITE


class InterruptedRun(VQGPTError):
    """SIGINT, SIGTERM or SIGHUP arrived; the state was saved and the same command continues."""

    def __init__(self, message: str, hint: str, exit_code: ExitCode) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """A hint that names what is nearest to `name` among `known`, or the first 50 where nothing is near."""
    known = [composed(word) for word in known]
    near = difflib.get_close_matches(composed(name), known, n=1)
    more = f", and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:MOST_NAMES])}{more}"


def composed(name: str) -> str:
    """A name as names are compared: each letter and its marks in one (NFC), which some systems store apart."""
    return unicodedata.normalize("NFC", name)
