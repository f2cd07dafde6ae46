"""One run at a time writes a cache on an object store, which has no `flock`: a lease, that its holder keeps renewing.

The lease is a folder of numbered objects, and the highest counts: it says who holds the lease, or that it is free. To
take the lease, to renew it and to give it back is the same step, `_advance`: create the object of the next number,
which the store does for one of all who try (`If-None-Match: *`), look that no higher one is there, and delete those
below. The highest object is never deleted, so numbers never go back: whoever wakes after however long a sleep, and goes
on where it was, creates nothing, or a number below the highest, which does not count. A holder is known by its claim.

A lease has ended when its number has stood still for so many seconds of the clock of whoever looks on: no time that the
store reports counts. On the holder's own machine there is a shorter way: the kernel knows that nobody holds the file of
its lock any more, and a run that died is overtaken at once. Must not import torch.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vqgpt.errors import InputError, VQGPTError
from vqgpt.options.paths import CacheURL
from vqgpt.progress import Notice, Report, silent
from vqgpt.storage.files import TooLargeError
from vqgpt.tokens.object_store import IMPATIENT_RETRY_SECONDS, ObjectStore

LOOK_SECONDS = 1.0
MOST_BYTES = 2**12  # of a claim
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a run writes into its lease; no `holder` means that it gave it back.

    `run` is the same for the processes of one torchrun; `nonce` names the run.
    """

    holder: str
    run: str
    nonce: str

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in vars(self).values()):
            raise TypeError
        if not re.fullmatch("[0-9a-f]{32}", self.nonce):  # it becomes part of a path
            raise ValueError(self.nonce)

    @property
    def encoded(self) -> bytes:
        """The claim as an object."""
        return json.dumps(vars(self)).encode()


class HeldError(Exception):
    """Another run has the lease; `claim` is None if what it wrote cannot be read."""

    def __init__(self, claim: Claim | None) -> None:
        super().__init__(claim)
        self.claim = claim


def current(store: ObjectStore) -> tuple[int, Claim | None]:
    """The highest number, 0 for none, and what its object says: None if that cannot be read."""
    while number := _highest(store):
        with contextlib.suppress(FileNotFoundError):  # it was renewed just now
            claim = _read(store, number)
            if _highest(store) == number:  # else a run that slept may have put what was read below what counts
                return number, claim
    return 0, None


def take(
    store: ObjectStore,
    ours: Claim,
    lease_seconds: float,
    is_dead: Callable[[Claim], bool],
    on_wait: Callable[[Claim | None], None],
) -> Claim | None:
    """Make `ours` the holder; returns the claim before. Raises HeldError as soon as another run shows that it lives.

    A lease whose holder `is_dead` is taken at once, any other when it has stood still for `lease_seconds`; `on_wait` is
    called before that wait.
    """
    watched, since = -1, 0.0
    while True:
        number, claim = current(store)
        is_free = number == 0 or (claim is not None and (not claim.holder or is_dead(claim)))
        if not is_free and watched < 0:
            watched, since = number, time.monotonic()
            on_wait(claim)
        seconds_left = since + lease_seconds - time.monotonic()
        if is_free or (number == watched and seconds_left <= 0):
            if _advance(store, number, ours):
                return claim
        elif number != watched:  # somebody renewed it, or was faster than we
            raise HeldError(claim)
        else:
            time.sleep(min(LOOK_SECONDS, seconds_left))


def renew(store: ObjectStore, ours: Claim) -> bool:
    """Show that we live; False if another run holds it, or did."""
    number, claim = current(store)
    return claim == ours and _advance(store, number, ours)


def is_held_by(store: ObjectStore, ours: Claim) -> bool:
    """True if nobody has taken the lease since we did."""
    return current(store)[1] == ours


def release(store: ObjectStore, ours: Claim) -> None:
    """Give the lease back, if it is still ours."""
    number, claim = current(store)
    while claim == ours and not _advance(store, number, replace(ours, holder="")):
        number, claim = current(store)  # a renewal of ours was under way


def heeds_conditions(store: ObjectStore, ours: Claim) -> bool:
    """False if the store overwrites our object where it was asked to create one."""
    number, claim = current(store)
    return claim != ours or not store.create(key_of(number), ours.encoded) or current(store)[0] != number


def _advance(store: ObjectStore, number: int, claim: Claim) -> bool:
    """Make `claim` what counts in place of object `number`; False if that is not the highest any more."""
    created = store.create(key_of(number + 1), claim.encoded)
    if not created:
        with contextlib.suppress(FileNotFoundError):
            created = _read(store, number + 1) == claim  # the answer to a first try was lost
    if not created:
        return False
    numbers = _numbers(store)
    if max(numbers, default=0) != number + 1:  # we slept, and come late
        return False
    store.delete([key_of(below) for below in sorted(numbers) if below <= number])
    return True


def _read(store: ObjectStore, number: int) -> Claim | None:
    """What an object says, None if it is no claim. Raises FileNotFoundError."""
    try:
        return Claim(**json.loads(store.read(key_of(number), MOST_BYTES)))
    except (TooLargeError, ValueError, TypeError, RecursionError):
        return None


def _highest(store: ObjectStore) -> int:
    return max(_numbers(store), default=0)


def _numbers(store: ObjectStore) -> set[int]:
    keys = [key for key in store.files() if re.fullmatch("[0-9]{12,100}", key)]
    return {int(key) for key in keys if key == key_of(int(key))}


def key_of(number: int) -> str:
    """The key of the object of this number."""
    return f"{number:012d}"


class Lease:
    """The right to write the cache at `path`; used as `WriteLock` is."""

    def __init__(self, path: CacheURL, run: str = "", report: Report = silent) -> None:
        """`report` gets a notice if it must be watched whether another run still lives."""
        self.path = path
        self.report = report
        self.store = ObjectStore(path.with_name(f".{path.name}.lock"), patient=False)
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.claim = Claim(holder=holder, run=run, nonce=uuid.uuid4().hex)  # ours, or that of our main process
        self.is_main = False
        self.descriptor: int | None = None  # of the file that shows this machine that we live
        self.ended = threading.Event()
        self.renewer = threading.Thread(target=self._keep_renewing, daemon=True)

    def take(self) -> None:
        """Take the lease. Raises InputError, with host and process, if another run has it and lives.

        That takes until the other renews it: up to `RENEW_SECONDS`; if it does not, its lease is over.
        """
        self.is_main = True
        with contextlib.suppress(OSError):  # no room for it, or no locks: the lease alone shows that we are dead
            self.descriptor = os.open(local_file(self.claim), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            before = take(self.store, self.claim, LEASE_SECONDS, died_here, self._report_wait)
        except HeldError as error:
            raise InputError(
                f"{self.path} is being written by {name_of(error.claim)}",
                "wait until it is done, or stop it; or give another path; if it is killed, "
                f"its lease ends in {LEASE_SECONDS:.0f} s, and the same command waits for that",
            ) from None
        if before is not None:
            _remove_local_file(before)
        if not heeds_conditions(self.store, self.claim):
            raise InputError(
                f"{self.path}: this object store ignores If-None-Match, so runs could not exclude each other",
                "write to another store, or to a folder",
            )
        self.renewer.start()

    def share(self) -> None:
        """Other processes of this run may always `join`."""

    def join(self) -> None:
        """Write together with the main process of this run. Raises InputError if that does not hold it."""
        claim = current(self.store)[1]
        if claim is None or not claim.holder or claim.run != self.claim.run:
            raise InputError(f"the main process that writes {self.path} has ended", "see its message")
        self.claim = claim

    def check(self) -> None:
        """Raise InputError if the lease is no longer that of this run; to be called before anything is written."""
        if not is_held_by(self.store, self.claim):
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
                release(self.store, self.claim)
            self.is_main = False
        if self.descriptor is not None:
            _remove_local_file(self.claim)
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _report_wait(self, claim: Claim | None) -> None:
        end = f"if it has died, its lease ends in {LEASE_SECONDS:.0f} s"
        self.report(Notice(text=f"{name_of(claim)} has the lease of {self.path}; {end}: waiting"))

    def _keep_renewing(self) -> None:
        """Renew the lease until it is released, or another run has it. Runs in a thread of its own."""
        is_ours = True
        while is_ours and not self.ended.wait(RENEW_SECONDS):
            with contextlib.suppress(VQGPTError):  # the next renewal may succeed
                is_ours = renew(self.store, self.claim)


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
