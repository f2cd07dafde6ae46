"""Ctrl-C, SIGTERM and SIGHUP ask the work to save and leave; a second Ctrl-C or SIGTERM ends it at once.

A hang-up comes several times, from the terminal, the shell and the system, so SIGHUP is heard once and then ignored,
even while the work leaves because of another signal. Where it is ignored from the start (nohup), it stays so.

Work that loses nothing by being cut short anywhere (filling a token cache) is cut short if it has not left in time.
Must not import torch.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vqgpt.errors import ExitCode, InterruptedRun

_cuttable = False  # signals concern the whole process, and so does this


class CutShort(Exception):
    """A signal came while a block ran that loses nothing by not being finished."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


class StopRequest:
    """Whether a signal has asked us to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def number(self) -> int:
        """The signal's number, 0 for none."""
        return int(self.signal or 0)

    def hear(self, number: int) -> None:
        """Take note of a signal that another process got; 0 for none."""
        self.signal = self.signal or (signal.Signals(number) if number else None)

    def as_error(self, saved: str) -> InterruptedRun:
        """The error to leave with, once the state is saved; `saved` says what was."""
        assert self.signal is not None
        return InterruptedRun(
            f"interrupted by {self.signal.name}; {saved}",
            "run the same command again to continue",
            ExitCode[self.signal.name],
        )


def _present_handlers(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """The handlers of those of the signals that are to be heard: of SIGHUP only if it is not ignored."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {n: handler for n, handler in handlers.items() if (n, handler) != (signal.SIGHUP, signal.SIG_IGN)}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    """Install handlers again, but for SIGHUP where a signal was heard: the process is leaving, and ignores it."""
    for number, handler in handlers.items():
        if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
            signal.signal(number, handler)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise Terminated, as Ctrl-C raises KeyboardInterrupt.

    So what is half-written is removed. Not for one of several processes, which may wait for another one where Python
    hears no signal.
    """
    previous = _present_handlers(signal.SIGTERM, signal.SIGHUP)

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise Terminated(number)

    for number in previous:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        _restore(previous)


@contextmanager
def cut_short_on_signals(request: StopRequest | None = None) -> Iterator[None]:
    """Within this block, which changes nothing that is kept, a signal that `stop_on_signals` hears raises CutShort.

    So does entering it after the `request`, where that is given.
    """
    global _cuttable
    if request:
        raise CutShort
    _cuttable = True
    try:
        yield
    finally:
        _cuttable = False


@contextmanager
def stop_on_signals(
    cut_after: float | None = None, saved: str = "", several_senders: bool = False
) -> Iterator[StopRequest]:
    """Within this block, SIGINT, SIGTERM and SIGHUP only set the request.

    A second SIGINT or SIGTERM acts as it would have without us, a second SIGHUP not at all. With `cut_after`,
    InterruptedRun (which says what is `saved`) is raised wherever the block is so many seconds later. With
    `several_senders`, as of a process of torchrun, which hears of one wish to stop from torchrun and from whoever
    signals all processes, further signals do nothing, even after the block.
    """
    request = StopRequest()
    previous = _present_handlers(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def handle(number: int, frame: FrameType | None) -> None:
        if several_senders and request:
            return
        request.hear(number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if number != signal.SIGHUP and not several_senders:
            _restore(previous)
        if cut_after is not None and signal.SIGALRM not in previous:
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, cut)
            signal.setitimer(signal.ITIMER_REAL, cut_after)
        if _cuttable:
            raise CutShort

    def cut(number: int, frame: FrameType | None) -> None:
        raise request.as_error(saved)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        if signal.SIGALRM in previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not (several_senders and request):
            _restore(previous)
