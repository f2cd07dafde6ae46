"""One run at a time writes a result: a lock that the kernel drops when its holder dies.

The lock is `flock` on the file `.NAME.lock` beside the result (a file or a folder, reached through whatever links),
which says who holds it, and for which run. The main process of a run takes it alone, and can share it with the other
processes of its run: as long as one of them lives, no other run gets in. A killed run leaves the file and no lock.
Must not import torch.
"""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from vqgpt.errors import InputError
from vqgpt.files import make_folder


class WriteLock:
    """The right to write the result at `path`; give it back with `release`, or use it as a context.

    `run` is a name that the processes of one run have in common, and no other run has.
    """

    def __init__(self, path: Path, run: str = "") -> None:
        self.path = path
        self.run = run
        target = path.resolve()
        self.file = target.with_name(f".{target.name}.lock")
        self.descriptor: int | None = None

    def take(self) -> None:
        """Take the lock alone. Raises InputError at once, with host and process, if another run has it."""
        self._lock(fcntl.LOCK_EX)
        assert self.descriptor is not None
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()} on {socket.gethostname()}\n{self.run}".encode(), 0)

    def wait(self) -> None:
        """Take the lock alone, as soon as nobody else has it: for what is over in an instant."""
        self._lock(fcntl.LOCK_EX, patient=True)

    def share(self) -> None:
        """Let other processes of this run `join`."""
        assert self.descriptor is not None
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

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
        if self.descriptor is not None:
            with suppress(OSError):  # another process of this run still holds it
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "WriteLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _lock(self, kind: int, patient: bool = False) -> None:
        make_folder(self.file.parent)
        while self.descriptor is None:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, kind if patient else kind | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(descriptor)[0] or "another process"
                os.close(descriptor)
                raise InputError(
                    f"{self.path} is being written by {holder}",
                    "wait until it is done, or stop it; or give another path",
                ) from None
            except OSError as error:
                os.close(descriptor)
                raise InputError(
                    f"the file system of {self.path} has no locks ({error.strerror})", "write it on a local disk"
                ) from None
            if self._is_current(descriptor):
                self.descriptor = descriptor
            else:  # its holder removed it between our open and our lock
                os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False


def _read(descriptor: int) -> tuple[str, str]:
    """Who took the lock last, in words, and the name of its run."""
    holder, _, run = os.pread(descriptor, 400, 0).decode(errors="replace").partition("\n")
    return holder, run
