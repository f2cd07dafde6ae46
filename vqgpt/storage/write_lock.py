"""One run at a time writes a result: a lock that the kernel drops when its holder dies, and what a result may replace.

The lock is `flock` on the file `.NAME.lock` beside the result (a file or a folder, reached through whatever links),
which says who holds it, for which run, and what it makes. The main process of a run takes it alone, and can share it
with the other processes of its run: as long as one of them lives, no other run gets in. A killed run leaves the file
and no lock; by that file the same work knows a result that was made where nothing was before, and may replace it.
Must not import torch.
"""

import fcntl
import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.storage.files import DISK_FULL, is_vacant, make_folder, place_of, sha256


class WriteLock:
    """The right to write the result at `path`; give it back with `release`, or use it as a context.

    `run` is a name that the processes of one run have in common, and no other run has; `work` one that every run has
    which makes the same. `elsewhere` says, in errors, how to write somewhere else.
    """

    def __init__(self, path: Path, run: str = "", work: str = "", elsewhere: str = "give another path") -> None:
        self.path = path
        self.run = run
        self.work = work
        self.elsewhere = elsewhere
        self.place = place_of(path)
        self.file = self.place.with_name(f".{self.place.name}.lock")
        self.descriptor: int | None = None

    def take(self) -> None:
        """Take the lock alone.

        Raises InputError at once if another run has it, with host and process, or if nothing can be written there.
        """
        self._lock(fcntl.LOCK_EX)
        assert self.descriptor is not None
        makes = self.work if self.makes_what_is_there() or is_vacant(self.place) else ""
        lines = [f"process {os.getpid()} on {socket.gethostname()}", self.run, *([makes, ""] if makes else [])]
        words = "\n".join(lines).encode()
        try:
            os.pwrite(self.descriptor, words, 0)  # in one step, so that a kill loses nothing of it
            os.ftruncate(self.descriptor, len(words))
        except OSError as error:
            error.filename = str(self.path)
            raise

    def makes_what_is_there(self) -> bool:
        """True if the result, where there is one, was made by this work, by us or by a run that was killed."""
        try:
            descriptor = _open_plain(self.file, os.O_RDONLY)
        except (OSError, _NoPlainFileError):
            return False
        try:
            return bool(self.work) and _read(descriptor)[2] == self.work
        finally:
            os.close(descriptor)

    def wait(self) -> None:
        """Take the lock alone, as soon as nobody else has it: for what is over in an instant."""
        self._lock(fcntl.LOCK_EX, patient=True)

    def share(self) -> None:
        """Let other processes of this run `join`.

        Raises InputError if another run got in: some network file systems drop the one lock before they set the other.
        """
        descriptor, self.descriptor = self.descriptor, None
        assert descriptor is not None
        self._lock_open(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if self.descriptor is None:
            raise InputError(f"{self.path}: another run removed the lock of this one", "run the same command again")

    def join(self) -> None:
        """Hold the lock together with the main process of this run. Raises InputError if that does not hold it."""
        if self.file.exists():
            self._lock(fcntl.LOCK_SH)
        if self.descriptor is None or _read(self.descriptor)[1] != self.run:
            self.release()
            raise InputError(f"the main process that writes {self.path} has ended", "see its message")

    def check(self) -> None:
        """Nobody takes this lock from a process that lives."""

    def release(self) -> None:
        """Give the lock back; the last process that holds it removes its file."""
        self._release(keeps_file=False)

    def _release(self, keeps_file: bool) -> None:
        if self.descriptor is not None:
            with suppress(OSError):  # another process of this run still holds it
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not keeps_file:
                    self.file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "WriteLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed_at_the_end = error is not None and self.place.exists() and self.makes_what_is_there()
        self._release(keeps_file=failed_at_the_end)  # then the same command is to be run again

    def _lock(self, kind: int, patient: bool = False) -> None:
        while self.descriptor is None:
            self._lock_open(self._open(), kind if patient else kind | fcntl.LOCK_NB)

    def _lock_open(self, descriptor: int, kind: int) -> None:
        """Lock the open file, and keep it; it is closed if not, or if its holder removed it since it was opened."""
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            holder = _read(descriptor)[0] or "another process"
            os.close(descriptor)
            raise InputError(
                f"{self.path} is being written by {holder}", f"wait until it is done, or stop it; or {self.elsewhere}"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"the file system of {self.path} has no locks ({error.strerror})",
                f"write it on a local disk: {self.elsewhere}",
            ) from None
        if self._is_current(descriptor):
            self.descriptor = descriptor
        else:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            make_folder(self.file.parent)
            return _open_plain(self.file, os.O_RDWR | os.O_CREAT)
        except _NoPlainFileError:
            raise InputError(
                f"{self.file}, where the lock of {self.path} is to be, is not a plain file", "remove it"
            ) from None
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise InputError(
                f"{self.path} cannot be written ({error.filename}: {error.strerror})", self.elsewhere
            ) from None

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False


class _NoPlainFileError(Exception):
    """There is a folder, a link, a pipe or a device."""


def _open_plain(path: Path, flags: int) -> int:
    """Open a file, and wait for nothing. Raises OSError as `os.open` does, and _NoPlainFileError for anything else."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise _NoPlainFileError
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was replaced in between
        os.close(descriptor)
        raise _NoPlainFileError
    return descriptor


def _read(descriptor: int) -> tuple[str, str, str]:
    """Who took the lock last, in words, the name of its run, and what it makes that was not there before."""
    lines = os.pread(descriptor, 400, 0).decode(errors="replace").split("\n")
    holder, run, work = [*lines, "", ""][:3]
    return holder, run, work


@contextmanager
def sole_writer(
    result: Path, config: Any, overwrite: bool, names: Collection[str] | None = None, flag: str = "--out"
) -> Iterator[None]:
    """Hold the right to write a result, from before the work to after the write; see `check_place` for what goes in.

    Raises what that raises, and InputError if another run is writing the result, or if nothing can be written there.
    """
    with _lock(result, config, flag) as lock:
        lock.take()
        check_place(result, config, overwrite, names, flag)
        yield


def check_place(
    result: Path, config: Any, overwrite: bool, names: Collection[str] | None = None, flag: str = "--out"
) -> None:
    """Raise UsageError if something is at `result` and is not to be replaced, or of another kind.

    The result is a file, or with `names` a folder of files of these names: InputError if it holds anything else, which
    would be lost. `config` is that of the command, whose option `flag` chooses the place.
    """
    lock = _lock(result, config, flag)
    place, elsewhere = lock.place, f"give another {flag}"
    if is_vacant(place) and (names is not None or not place.exists()):
        return
    if place.is_dir() != (names is not None) or not (place.is_dir() or place.is_file()):
        raise UsageError(f"{result} is {'a folder' if place.is_dir() else 'a file' if names else 'no file'}", elsewhere)
    if not overwrite and not lock.makes_what_is_there():
        raise UsageError(f"{result} exists", f"give --overwrite to replace it, or another {flag}")
    if names is not None:
        found = sorted(place.iterdir())
        others = [path.name for path in found if path.name not in names or path.is_symlink() or not path.is_file()]
        if others:
            raise InputError(
                f"{result} holds {others[0]}, which this export would not replace", f"move it elsewhere, or {elsewhere}"
            )


def _lock(result: Path, config: Any, flag: str) -> WriteLock:
    work = sha256(repr(config).encode())
    return WriteLock(result, work=work, elsewhere=f"give another {flag}")


def may_always_write() -> None:
    """The check of a run whose place no other takes."""
