"""One run at a time writes a cache on an object store, which has no `flock`: a lease, that its holder keeps renewing.

`vqgpt.tokens.lease_objects` is the protocol; here are the thread that renews, the words for users, and a shorter way
on the holder's own machine, where the kernel tells that nobody holds the file of its lock any more: a run that died is
overtaken at once there, elsewhere when its lease has ended. Must not import torch.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
import threading
import uuid
from pathlib import Path
from types import TracebackType

from vqgpt.errors import InputError, VQGPTError
from vqgpt.options.paths import CacheURL
from vqgpt.progress import Notice, Report, silent
from vqgpt.tokens import lease_objects
from vqgpt.tokens.lease_objects import Claim, HeldError
from vqgpt.tokens.object_store import IMPATIENT_RETRY_SECONDS, ObjectStore

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0


class Lease:
    """The right to write the cache at `path`; used as `WriteLock` is."""

    def __init__(self, path: CacheURL, run: str = "", report: Report = silent) -> None:
        """`report` is told if it must be watched whether another run still lives."""
        self.path = path
        self.report = report
        self.store = ObjectStore(path.with_name(f".{path.name}.lock"), patient=False)
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.claim = Claim(holder=holder, run=run, nonce=uuid.uuid4().hex)  # ours, or that of our main process
        self.is_main = False
        self.descriptor: int | None = None  # of the file that tells this machine that we live
        self.ended = threading.Event()
        self.renewer = threading.Thread(target=self._keep_renewing, daemon=True)

    def take(self) -> None:
        """Take the lease. Raises InputError, with host and process, if another run has it and lives.

        That takes until the other renews it: up to `RENEW_SECONDS`; if it does not, its lease is over.
        """
        self.is_main = True
        with contextlib.suppress(OSError):  # no room for it, or no locks: the lease alone tells that we are dead
            self.descriptor = os.open(local_file(self.claim), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            before = lease_objects.take(self.store, self.claim, LEASE_SECONDS, died_here, self._tell_of_the_wait)
        except HeldError as error:
            raise InputError(
                f"{self.path} is being written by {name_of(error.claim)}",
                "wait until it is done, or stop it; or give another path; if it is killed, "
                f"its lease ends in {LEASE_SECONDS:.0f} s, and the same command waits for that",
            ) from None
        if before is not None:
            _remove_local_file(before)
        if not lease_objects.heeds_conditions(self.store, self.claim):
            raise InputError(
                f"{self.path}: this object store ignores If-None-Match, so runs could not exclude each other",
                "write to another store, or to a folder",
            )
        self.renewer.start()

    def share(self) -> None:
        """Other processes of this run may always `join`."""

    def join(self) -> None:
        """Write together with the main process of this run. Raises InputError if that does not hold it."""
        claim = lease_objects.current(self.store)[1]
        if claim is None or not claim.holder or claim.run != self.claim.run:
            raise InputError(f"the main process that writes {self.path} has ended", "see its message")
        self.claim = claim

    def check(self) -> None:
        """Raise InputError if the lease is no longer that of this run; to be called before anything is written."""
        if not lease_objects.is_held_by(self.store, self.claim):
            raise InputError(
                f"this run did not renew its lease on {self.path} in time, and another run has taken it over",
                "run the same command again: it continues",
            )

    def release(self) -> None:
        """Give the lease back."""
        self.ended.set()
        if self.renewer.is_alive():
            self.renewer.join(2 * IMPATIENT_RETRY_SECONDS)
        if self.is_main:
            with contextlib.suppress(VQGPTError):  # it ends by itself
                lease_objects.release(self.store, self.claim)
            self.is_main = False
        if self.descriptor is not None:
            _remove_local_file(self.claim)
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _tell_of_the_wait(self, claim: Claim | None) -> None:
        words = (
            f"{name_of(claim)} has the lease of {self.path}; if it has died, its lease ends in {LEASE_SECONDS:.0f} s"
        )
        self.report(Notice(text=f"{words}: waiting"))

    def _keep_renewing(self) -> None:
        """Renew the lease until it is released, or another run has it. Runs in a thread of its own."""
        is_ours = True
        while is_ours and not self.ended.wait(RENEW_SECONDS):
            with contextlib.suppress(VQGPTError):  # the next renewal may succeed
                is_ours = lease_objects.renew(self.store, self.claim)


def name_of(claim: Claim | None) -> str:
    """Who wrote a claim, for users."""
    return claim.holder if claim else "another process"


def local_file(claim: Claim) -> Path:
    """The file that the holder locks on its own machine; elsewhere there is none of this name."""
    return Path(tempfile.gettempdir()) / f"vqgpt-{claim.nonce}.lock"


def _remove_local_file(claim: Claim) -> None:
    with contextlib.suppress(OSError):  # it is another user's
        local_file(claim).unlink()


def died_here(claim: Claim) -> bool:
    """True if the holder ran on this machine and has ended."""
    try:
        descriptor = os.open(local_file(claim), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
