"""The process itself: which libraries it has, how it was started, what it may run out of, and what stops it.

Started alone, or by torchrun as one of several, which says so by variables. Ctrl-C, SIGTERM and SIGHUP ask the work to
save and leave; a second Ctrl-C or SIGTERM ends it at once. Must not import torch: it acts before torch allocates, and
without memory for torch it must still say what is lacking.
"""

import ctypes
import errno
import importlib
import os
import platform
import re
import resource
import signal
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from vqgpt.errors import ExitCode, InterruptedRun, ResourceError, UsageError
from vqgpt.storage.files import DISK_FULL

LIBRARIES = ("vqgpt", "torch", "torchvision", "numpy", "zarr", "numcodecs")
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
NEVER = 2**31 - 1
SPINS = "3000"  # some microseconds
TORCH_NEEDS = 2**30  # bytes of addresses, to load it and its libraries
SECONDS_TO_RESOLVE = 60.0  # a cluster may make the name known while its processes start
REMEDY = "unset it to run alone, or start several processes with torchrun"
NO_MEMORY = ("not enough memory", "allocate memory", "failed to map segment", "out of memory")  # in what systems say
NO_THREAD = "can't start new thread"


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def packaged_file(distribution: str, file: str) -> Path | None:
    """Where an installed distribution has a file, be it there or not; None if it is not installed. Imports nothing."""
    from importlib import metadata

    try:
        return Path(str(metadata.distribution(distribution).locate_file(file)))
    except metadata.PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """What an artefact records about the software that made it."""
    return {name: installed_version(name) or "absent" for name in LIBRARIES}


def import_torchvision(name: str) -> ModuleType:
    """The module `torchvision.<name>`, also where its compiled operators do not load.

    A torchvision built for CUDA beside a torch built for the CPU stops at import with "operator torchvision::nms does
    not exist". We use none of its operators, so the module that registers them is left out then.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "torchvision"]:
        del sys.modules[loaded]
    registrations = "torchvision._meta_registrations"
    sys.modules[registrations] = types.ModuleType(registrations)
    return importlib.import_module(f"torchvision.{name}")


def processes() -> int:
    """How many processes do the work together. Raises UsageError if WORLD_SIZE is no such number."""
    return _number("WORLD_SIZE", alone=1, lowest=1)


def processes_here() -> int:
    """How many of them torchrun started on this machine. Raises UsageError if LOCAL_WORLD_SIZE is no such number."""
    return _number("LOCAL_WORLD_SIZE", alone=1, lowest=1)


def process_rank() -> int:
    """Which of them this is, from 0. Raises UsageError if RANK is no such number, or if they cannot find each other."""
    together = processes()
    rank = _number("RANK", alone=None if together > 1 else 0)
    if rank >= together:
        size = f"WORLD_SIZE={together}" if "WORLD_SIZE" in os.environ else "WORLD_SIZE is not set"
        raise UsageError(f"RANK={rank} is too high: {size}", REMEDY)
    if together > 1:
        if not os.environ.get("MASTER_ADDR"):
            raise UsageError(f"WORLD_SIZE={together}, and MASTER_ADDR is not set", REMEDY)
        if _number("MASTER_PORT", alone=None) >= 2**16:
            raise UsageError(f"MASTER_PORT={os.environ['MASTER_PORT']} is not a port", REMEDY)
    return rank


def wait_for_address() -> None:
    """Return once MASTER_ADDR can be resolved; torch would try for as long as processes wait for each other.

    Raises UsageError if it cannot be in a minute.
    """
    import socket

    address, end = os.environ["MASTER_ADDR"], time.monotonic() + SECONDS_TO_RESOLVE
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= end:
                words = f"MASTER_ADDR={address} cannot be resolved ({error})"
                raise UsageError(words, "check the name, or use torchrun") from None
        time.sleep(min(1.0, SECONDS_TO_RESOLVE))


def device_number(devices: int) -> int:
    """Which of the devices of this machine is for this process. Raises UsageError if LOCAL_RANK names none of them."""
    number = _number("LOCAL_RANK", alone=None)
    if number >= devices:
        raise UsageError(f"LOCAL_RANK={number}, and this machine has {devices} devices", "start fewer processes here")
    return number


def _number(name: str, alone: int | None, lowest: int = 0) -> int:
    """A variable's number; `alone` where it is not set, and None there means that it is needed."""
    text = os.environ.get(name)
    if text is None and alone is not None:
        return alone
    if text is None:
        raise UsageError(f"WORLD_SIZE={processes()}, and {name} is not set", REMEDY)
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < lowest:
        raise UsageError(f"{name}={text} is not a whole number of {lowest} or more", REMEDY)
    return int(text)


def keep_memory_pages() -> bool:
    """Make glibc's allocator keep what is freed; True if it will.

    By default it returns each large block to the kernel at once, and every step of a network on a CPU then waits for
    the same pages to be mapped and zeroed again. All threads share one heap: what one frees, another can use, and the
    heaps that glibc gives to further threads would shrink again. Elsewhere (macOS, musl) this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_ARENA_MAX, 1))


def let_waiting_threads_sleep() -> None:
    """Make the threads of libgomp, which torch computes with on Linux, sleep soon where they have nothing to do.

    By default they spin for milliseconds, on cores that threads of ours compute on: a VQ-GAN then trains a seventh more
    slowly. libgomp reads the variable when it is loaded, so this must come before torch is. What a user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def low_limit() -> str:
    """What to say of a limit of this process's memory that is too low for torch, "" if there is none.

    Its libraries end the process by themselves then, with words of their own.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= TORCH_NEEDS:
        return ""
    return f"memory is limited to {limit // 2**20:,} MiB (`ulimit -v`), and torch needs about {TORCH_NEEDS // 2**20:,}"


def out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed, on a CPU or a GPU, or a library found no room to be loaded."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)


def shortage(error: BaseException) -> ResourceError | None:
    """What ran out, for users; None if `error` is something else."""
    number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    again = "then run the same command again"
    if number in DISK_FULL:
        return ResourceError(f"no space left to write {file or 'the file'}", f"make room, {again}")
    if number in (errno.EMFILE, errno.ENFILE):
        return ResourceError(
            f"too many open files, at {file or 'the next one'}", f"allow more (`ulimit -n 1024`), {again}"
        )
    if number == errno.EAGAIN or NO_THREAD in str(error):
        hint = "allow more (`ulimit -u`, `ulimit -v`), or stop others"
        return ResourceError("no more threads or processes can be started", hint)
    if out_of_memory(error):
        hint = "use smaller settings (--batch-size, --size), a larger machine, or a higher limit (`ulimit -v`)"
        return ResourceError("out of memory", hint)
    return None


leaves_threads = False  # that are at work, and that nobody waits for: then the process is to leave at once
_cuttable = False  # signals concern the whole process, and so does this


class CutShort(BaseException):
    """A signal came while a block ran that loses nothing by not being finished.

    As KeyboardInterrupt, it is no failure: what turns failures of a library into errors must not take it for one.
    """


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
