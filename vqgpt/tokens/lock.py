"""One run at a time writes a cache in a folder: a lock that the kernel drops when its holder dies.

The lock is `flock` on the file `.NAME.lock` beside the cache, which says who holds it, and for which run. The main
process of a run takes it alone, sets the cache up, and then shares it with the other processes of its run: as long as
one of them lives, no other run gets in. A killed run leaves the file and no lock. Must not import torch.
"""

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vqgpt.config.cache_path import CachePath
from vqgpt.errors import InputError
from vqgpt.files import make_folder

if TYPE_CHECKING:
    from vqgpt.tokens.lease import Lease


def lock_of(path: CachePath, run: str = "") -> "WriteLock | Lease":
    """The right to write the cache at `path`: `WriteLock` in a folder, `Lease` on an object store.

    `run` is a name that the processes of one run have in common, and no other run has.
    """
    if isinstance(path, Path):
        return WriteLock(path, run)
    from vqgpt.tokens.lease import Lease

    return Lease(path, run)


class WriteLock:
    """The right to write the cache at `path`; give it back with `release`, or use it as a context."""

    def __init__(self, path: Path, run: str = "") -> None:
        self.path = path
        self.run = run
        self.file = path.with_name(f".{path.name}.lock")
        self.descriptor: int | None = None
        self.is_main = False

    def take(self) -> None:
        """Take the lock alone. Raises InputError at once, with host and process, if another run has it."""
        self._lock(fcntl.LOCK_EX)
        assert self.descriptor is not None
        self.is_main = True
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()} on {socket.gethostname()}\n{self.run}".encode(), 0)

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
        """Give the lock back; the main process removes its file."""
        if self.descriptor is not None:
            if self.is_main:
                self.file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "WriteLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _lock(self, kind: int) -> None:
        make_folder(self.path.parent)
        while self.descriptor is None:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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
                    f"the file system of {self.path} has no locks ({error.strerror})", "write the cache on a local disk"
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
