"""C code of ours: compiled for this machine's cores at first use (a second), kept, and called without Python's lock.

A C file that lies beside a module -> its functions, or None where it cannot be compiled or loaded: then torch computes.
What is kept is loaded only if nobody else can have written it, and if it is whole: the name holds its digest.
"""

import ctypes
import functools
import hashlib
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from vqgpt.errors import printable
from vqgpt.storage.files import user_cache_folder

logger = logging.getLogger(__name__)

HEADERS = Path(__file__).parent
SOURCES = sorted(HEADERS.glob("*.c"))
OPTIONS = ["-O3", "-march=native", "-shared", "-fPIC"]
LOAD = [sys.executable, "-I", "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])"]
FUNCTION = re.compile(r"^(?:void|long) (\w+)\(", re.MULTILINE)  # how those begin in a C file that are called from here
ROOM = 2**20  # bytes, which a compiler's files need
NUMBERS = (torch.float32, torch.int16, torch.int64)  # what our C code computes with
LINES_KEPT, BYTES_KEPT = 8, 4096  # of what a compiler that failed said
LONGEST_RUN = 60  # seconds; a compiler takes one or two
hung: set[str] = set()  # programs that took longer, and are not tried again by this process


def _once_per_source(make: Callable[[Path], ctypes.CDLL | None]) -> Callable[[Path], ctypes.CDLL | None]:
    """As `functools.cache`, but threads that ask at the same time wait for the one that makes it."""
    made: dict[Path, ctypes.CDLL | None] = {}
    lock = threading.Lock()

    @functools.wraps(make)
    def get(source: Path) -> ctypes.CDLL | None:
        if source not in made:
            with lock:
                if source not in made:
                    made[source] = make(source)
        return made[source]

    return get


@_once_per_source
def compiled_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None where it cannot be compiled; a warning says why, if there is a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    try:
        return load_or_compile(source)
    except OSError as error:
        logger.warning(
            "%s is of no use (%s): torch computes instead of our C code, which takes longer", compiler, error
        )
        return None


def load_or_compile(source: Path) -> ctypes.CDLL:
    """The functions of a C file. Raises OSError that says why there are none."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("there is no cc")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        key, made = _key(compiler, source, Path(folder)), Path(folder) / "library.so"
        with suppress(OSError, RuntimeError):  # RuntimeError: no home is known
            return _cached(source, key)
        _run([compiler, *OPTIONS, "-I", str(HEADERS), "-o", str(made), str(source), "-lm"], made)
        with suppress(OSError, RuntimeError):  # where nothing can be kept, or nothing that is kept may be run
            return _store(made, source, key)
        return _tried(made, source)


def _key(compiler: str, source: Path, folder: Path) -> str:
    """A digest of all that a library follows from: code, compiler, and these cores, as machines may share a folder."""
    macros = folder / "macros"
    _run([compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull, "-o", str(macros)], macros)
    code = [file.read_bytes() for file in (source, *sorted(HEADERS.glob("*.h")))]
    return _digest(b"\0".join([repr(OPTIONS).encode(), macros.read_bytes(), *code]))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _run(command: list[str], result: Path | None = None) -> None:
    """Run a program, whose output goes nowhere, and which makes a file.

    Raises OSError if it cannot be run, fails, does not end, now or before, or made nothing. Its notes are the last
    lines that a program which failed wrote to stderr.
    """
    unending = OSError(f"{command[0]} did not end in {LONGEST_RUN} seconds")
    if command[0] in hung:
        raise unending
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=pipe, start_new_session=True)
    said = bytearray()
    listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
    try:
        listener.start()
        status = process.wait(LONGEST_RUN)
    except BaseException as error:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started too: a compiler is several programs
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            hung.add(command[0])
            raise unending from None
        raise
    if status:
        full = result is not None and shutil.disk_usage(result.parent).free < ROOM
        failure = OSError(f"{command[0]} failed" + (f", as {tempfile.gettempdir()} is full" if full else ""))
        listener.join(1)  # what it started may still have its stderr open
        for line in said.decode(errors="replace").splitlines()[-LINES_KEPT:]:
            failure.add_note(printable(line))
        raise failure
    if result is not None and not result.is_file():
        raise OSError(f"{command[0]} made nothing")


def _listen(stream: IO[bytes], said: bytearray) -> None:
    """Read a stream to its end, of which the last bytes stay in `said`."""
    with stream:
        while part := stream.read1(BYTES_KEPT):  # type: ignore[attr-defined]
            said += part
            del said[:-BYTES_KEPT]


def _tried(path: Path, source: Path) -> ctypes.CDLL:
    """Load a library that is new, once another process could: a broken one may end the process.

    Raises OSError if it cannot be loaded, or lacks a function.
    """
    _run([*LOAD, str(path)])
    library = ctypes.CDLL(str(path))
    if not all(hasattr(library, name) for name in FUNCTION.findall(source.read_text())):
        raise OSError("what it makes lacks our functions")
    return library


def _cached(source: Path, key: str) -> ctypes.CDLL:
    """The library that an earlier process kept. Raises OSError if there is none that can be trusted."""
    for path in _own_folder().glob(f"{source.stem}-{key}-*.so"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and _is_own(status) and path.stem.endswith(f"-{_digest(path.read_bytes())}"):
            return ctypes.CDLL(str(path))
    raise FileNotFoundError(key)


def _store(made: Path, source: Path, key: str) -> ctypes.CDLL:
    """Load a library from the user's cache folder, and let it stay there, where it appears whole.

    Other processes may do the same. Raises OSError if it cannot be written or loaded there.
    """
    data = made.read_bytes()
    (user_cache_folder() / "compiled").mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = _own_folder()
    kept = folder / f"{source.stem}-{key}-{_digest(data)}.so"
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as inner:
        new = Path(inner) / kept.name
        with open(new, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        library = _tried(new, source)
        os.replace(new, kept)
    for other in folder.glob(f"{source.stem}-{key}-*.so"):
        if other != kept:  # it is damaged, or it would have been loaded
            other.unlink(missing_ok=True)
    return library


def _own_folder() -> Path:
    """Where libraries are kept. Raises OSError if it is not there, or if others may write there."""
    folder = (user_cache_folder() / "compiled").resolve(strict=True)
    if not _is_own(folder.stat()) or not _is_own(folder.parent.stat(), stat.S_IWOTH):
        raise PermissionError(f"others may write to {folder}")
    return folder


def _is_own(status: os.stat_result, of_others: int = stat.S_IWGRP | stat.S_IWOTH) -> bool:
    """True if it belongs to this user, or to root, and the rights `of_others` are not given."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & of_others


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | int) -> int:
    """Call a function that takes pointers and longs; Python's other threads run meanwhile.

    Raises ValueError for a tensor that our C code would read wrongly: on another device, of other numbers than it
    computes with, or not in one piece. Whether shapes suit each other is checked by the module of each C file.
    """
    for tensor in (argument for argument in arguments if isinstance(argument, Tensor)):
        if not (tensor.is_cpu and tensor.dtype in NUMBERS and tensor.is_contiguous()):
            kind = f"{tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
            raise ValueError(f"{name} does not take {kind}")
    function = getattr(library, name)
    function.restype = ctypes.c_long
    result: int = function(
        *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) for a in arguments)
    )
    return result
