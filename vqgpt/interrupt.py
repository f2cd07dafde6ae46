"""Ctrl-C and SIGTERM: the first asks the work to save and leave, the second ends it at once. Must not import torch.

Work that loses nothing by being cut short anywhere (filling a token cache) is cut short if it has not left in time.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vqgpt.errors import ExitCode, InterruptedRun

_cuttable = False  # signals concern the whole process, and so does this


class CutShort(Exception):
    """A signal came while a block ran that loses nothing by not being finished."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


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
        code = ExitCode.SIGINT if self.signal == signal.SIGINT else ExitCode.SIGTERM
        return InterruptedRun(
            f"interrupted by {self.signal.name}; {saved}", "run the same command again to continue", code
        )


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within this block SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt: what is half-written is removed.

    Not for one of several processes, which may wait for another one where Python hears no signal.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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
    """Within this block, SIGINT and SIGTERM only set the request; a second signal acts as it would have without us.

    With `cut_after`, InterruptedRun (which says what is `saved`) is raised wherever the block is so many seconds later.
    With `several_senders`, as of a process of torchrun, which hears of one wish to stop from torchrun and from whoever
    signals all processes, further signals do nothing, even after the block.
    """
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        if request:
            return
        request.signal = signal.Signals(number)
        if not several_senders:
            restore()
        if cut_after is not None:
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
            restore()
