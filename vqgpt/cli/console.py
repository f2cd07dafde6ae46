"""What the user sees: progress and text for people on stderr, results on stdout; losing a stream never ends a command.

A reader that goes away (`| head`), a terminal that hangs up, a full disk or a closed stream costs the text and nothing
else. Characters that the encoding of a stream does not have are escaped. Draws events, computes nothing. Only the room
`cli` knows rich. Must not import torch.
"""

import codecs
import errno
import io
import json
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from vqgpt.errors import ResourceError, VQGPTError, printable
from vqgpt.progress import Event, Notice, Picture, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 10.0
WIDE_SCREEN = 100  # columns: from here on a progress bar has room for the time so far and longer names
WIDTH_OF_RATE_AND_ETA = 33  # of `12,345 images/s eta 0:00:00`, and the spaces between all columns
SECONDS_FOR_A_RATE = 1.0  # a shorter time says nothing: the first part of the work is over when its clock starts
GONE = {errno.EPIPE, errno.EIO}  # nobody reads any more: a pipe's other end was closed, a terminal hung up
FRAMES = str.maketrans("─━│┃╭╮╰╯╸╺", "--||++++--")  # what help and progress bars are drawn with
ESCAPING = "vqgpt.escape"


def new_bar(console: Console) -> "Bar":
    """A progress bar with count, rate and ETA, which always fit; rich's part of this is imported once it is needed.

    What a screen has no room for is left out: the time so far, the last figures, the end of a long name.
    """
    from rich import progress
    from rich.table import Column
    from rich.text import Text

    is_wide = console.width >= WIDE_SCREEN
    name_width, bar_width, time_width = (30, 20, 8) if is_wide else (22, 8, 0)

    class RateColumn(progress.ProgressColumn):
        """Units per second, once they are known."""

        def render(self, task: progress.Task) -> Text:
            digits = 1 if (task.speed or 0) < 100 else 0
            return Text(f"{task.speed:,.{digits}f} {task.fields['unit']}/s" if task.speed else "")

    class FiguresColumn(progress.ProgressColumn):
        """The figures of the work, as far as they fit."""

        def render(self, task: progress.Task) -> Text:
            named = min(len(task.description), name_width)
            counted = 2 * len(f"{task.total:.0f}") + 1
            text = Text(task.fields["values"])
            text.truncate(
                max(console.width - named - bar_width - counted - time_width - WIDTH_OF_RATE_AND_ETA, 0),
                overflow="ellipsis",
            )
            return text

    return progress.Progress(
        progress.TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=name_width),
        ),
        progress.BarColumn(bar_width),
        progress.MofNCompleteColumn(),
        RateColumn(Column(no_wrap=True)),
        *([progress.TimeElapsedColumn()] if is_wide else []),
        progress.TextColumn("eta"),
        progress.TimeRemainingColumn(),
        FiguresColumn(),
        console=console,
    )


class Screen:
    """The terminal (or log file) of one command; also its progress callback."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self.bar: Bar | None = None
        self.task_ids: dict[str, Any] = {}
        self.started: dict[str, tuple[float, int]] = {}
        self.last_line = 0.0

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_bar()

    def report(self, event: Event) -> None:
        """Show an event of the work: a bar on a terminal, a line every ten seconds elsewhere."""
        if self.quiet:
            return
        if isinstance(event, Notice):
            self._print(event.text)
        elif isinstance(event, Picture):
            self._show_picture(event.path)
        elif self.stderr.is_terminal:
            self._draw(event)
        else:
            self._print_line(event)

    def _draw(self, event: Progress) -> None:
        """A bar for what is in progress; a line for what is done."""
        if event.done >= event.total:
            if self.bar and event.task in self.task_ids:
                self.bar.remove_task(self.task_ids.pop(event.task))
            self._print("  ".join([_count(event), *_figures(event)]))
            return
        self.bar = self.bar or new_bar(self.stderr)
        if event.task not in self.task_ids:
            name = printable(event.task)
            self.task_ids[event.task] = self.bar.add_task(name, total=event.total, unit=event.unit, values="")
            self.bar.start()
        self.bar.update(self.task_ids[event.task], completed=event.done, values=_plain_text(event.values))

    def _print_line(self, event: Progress) -> None:
        now = time.monotonic()
        first = event.task not in self.started
        start, done_before = self.started.setdefault(event.task, (now, event.done))
        if event.done >= event.total:
            del self.started[event.task]  # a later stage may do the same to other images
        if first or (event.done < event.total and now - self.last_line < SECONDS_BETWEEN_LINES):
            self.last_line = now if first else self.last_line
            return
        self.last_line = now
        parts = [_count(event)]
        if event.done > done_before and now - start > SECONDS_FOR_A_RATE:
            rate = (event.done - done_before) / (now - start)
            parts += [f"{rate:,.1f} {event.unit}/s", f"eta {(event.total - event.done) / rate:.0f} s"]
        self._print("  ".join([*parts, *_figures(event)]))

    def _show_picture(self, path: Path) -> None:
        """Show a picture where the terminal can, else say where it is."""
        from vqgpt.pictures.terminal import escape_sequence, protocol_here

        self._stop_bar()
        protocol = protocol_here()
        if protocol is None:
            self._print(f"this terminal shows no images; the picture is {path}")
            return
        sys.stderr.write(escape_sequence(protocol, path) + "\n")
        sys.stderr.flush()

    def _stop_bar(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar, self.task_ids = None, {}

    def show_configuration(self, heading: str, values: Mapping[str, Any]) -> None:
        """One line for the configuration that a command runs with."""
        if not self.quiet:
            pairs = "  ".join(f"{name}={_plain_text(value)}" for name, value in values.items())
            self._print(f"{heading}: {pairs or 'all defaults'}", style="dim")

    def show_result(self, result: Mapping[str, Any]) -> None:
        """Print a command's result to stdout: one JSON object, or a line per figure."""
        self._stop_bar()
        if self.as_json:
            print(json.dumps(result, default=os.fspath))
        elif not self.quiet:
            for line in _table(result) if _is_table(result) else _pairs(result):
                print(printable(line))
        sys.stdout.flush()

    def show_next(self, line: str) -> None:
        """On a terminal, the command to give next, if there is one."""
        if line and self.stderr.is_terminal and not self.quiet and not self.as_json:
            self._print(f"next: {line}")

    def show_error(self, error: VQGPTError) -> None:
        """One line for what is wrong, one for what to do."""
        self._stop_bar()
        self._print(f"error: {error.message}", style="bold red")
        self._print(f"  try: {error.hint}")

    def _print(self, line: str, style: str | None = None) -> None:
        """A line on stderr. Names come from strangers' files: what would control the terminal is escaped."""
        self.stderr.print(printable(line), style=style, markup=False)


def _count(event: Progress) -> str:
    return f"{event.task}: {event.done}/{event.total} {event.unit}"


def _figures(event: Progress) -> list[str]:
    return [_plain_text(event.values)] if event.values else []


def _pairs(result: Mapping[str, Any]) -> Iterator[str]:
    width = max((len(name) for name, value in result.items() if not _has_own_lines(value)), default=0)
    for name, value in result.items():
        if _is_table(value):
            yield from ("", name.replace("_", " "), *_table(value))
        elif _has_own_lines(value):
            yield from ("", name.replace("_", " "), *value)
        else:
            yield f"{name.replace('_', ' '):<{width}}  {_plain_text(value)}"


def _has_own_lines(value: Any) -> bool:
    """True for a table, and for a list of sentences."""
    return _is_table(value) or (
        isinstance(value, list) and any(isinstance(line, str) and " " in line for line in value)
    )


def _is_table(value: Any) -> bool:
    """True for a mapping whose values are mappings of the same keys: rows."""
    rows = value.values() if isinstance(value, Mapping) else ()
    keys = {tuple(row) if isinstance(row, Mapping) else () for row in rows}
    return len(keys) == 1 and keys != {()}


def _table(result: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A heading and a line per row, in columns; numbers to the right."""
    columns = ["", *next(iter(result.values()))]
    rows = [[name, *row.values()] for name, row in result.items()]
    texts = [[_plain_text(value) for value in row] for row in rows]
    texts.insert(0, [column.replace("_", " ") for column in columns])
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [all(isinstance(value, int | float) for value in column) for column in zip(*rows, strict=True)]
    for line in texts:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(text.rjust(width) if ends else text.ljust(width) for text, width, ends in cells).rstrip()


def _plain_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_plain_text, value)) or "none"
    if isinstance(value, Mapping):
        return "  ".join(f"{name.replace('_', ' ')} {_plain_text(element)}" for name, element in value.items())
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


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
