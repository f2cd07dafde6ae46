"""One run at a time writes a cache on an object store, which has no `flock`: a lease, that its holder keeps renewing.

The lease is the object of the highest number in the folder `.NAME.lock` beside the cache, and says who holds it. To
take it, and to renew it, is one and the same step: create the object of the next number, which the store does for one
of all who try (`If-None-Match: *`), and delete those before. So whoever was overtaken learns it at the next renewal,
and two never hold it together. A run that died is overtaken at once on its own machine, where the kernel tells that
nobody holds the file of its lock any more; elsewhere when its lease has run out. Must not import torch.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from vqgpt.config.cache_path import CacheURL
from vqgpt.errors import InputError, VQGPTError
from vqgpt.tokens.folder_store import TooLargeError
from vqgpt.tokens.object_store import IMPATIENT_RETRY_SECONDS, ObjectStore

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
MOST_BYTES = 2**16  # of a claim


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a run writes into its lease. `run` is the same for the processes of one torchrun; `nonce` names the run."""

    holder: str
    run: str
    nonce: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{32}", self.nonce):  # it becomes part of a path
            raise ValueError(self.nonce)

    @property
    def local_file(self) -> Path:
        """The file that the holder locks on its own machine; elsewhere there is none of this name."""
        return Path(tempfile.gettempdir()) / f"vqgpt-{self.nonce}.lock"

    @property
    def is_dead(self) -> bool:
        """True if its holder ran on this machine and has ended."""
        try:
            descriptor = os.open(self.local_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True


class Lease:
    """The right to write the cache at `path`; used as `WriteLock` is."""

    def __init__(self, path: CacheURL, run: str = "") -> None:
        self.path = path
        self.run = run
        self.store = ObjectStore(path.with_name(f".{path.name}.lock"), patient=False)
        self.claim: Claim | None = None  # ours, or that of our main process
        self.number = 0  # of the object that we hold; 0 for none
        self.descriptor: int | None = None
        self.ended = threading.Event()
        self.renewer = threading.Thread(target=self._keep, daemon=True)

    def take(self) -> None:
        """Take the lease. Raises InputError at once, with host and process, if another run has it."""
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        claim = Claim(holder=holder, run=self.run, nonce=uuid.uuid4().hex)
        self.claim = claim
        self.descriptor = os.open(claim.local_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: the lease alone tells that we are dead
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        while not self.number:
            number, current = self._current()
            is_free = number == 0 or (current is not None and current.is_dead)
            seconds_left = 0.0 if is_free else self._seconds_left(number)
            if seconds_left > 0:
                raise InputError(
                    f"{self.path} is being written by {current.holder if current else 'another process'}",
                    "wait until it is done, or stop it; or give another path; "
                    f"if it was killed, its lease ends in {seconds_left:.0f} s",
                )
            if self._advance(number) and current is not None:
                current.local_file.unlink(missing_ok=True)
        if self.store.create(key_of(self.number), b"") or self._read(self.number) != claim:
            raise InputError(
                f"{self.path}: this object store does not heed If-None-Match, so runs could not exclude each other",
                "write to another store, or to a folder",
            )
        self.renewer.start()

    def share(self) -> None:
        """Other processes of this run may always `join`."""

    def join(self) -> None:
        """Write together with the main process of this run. Raises InputError if that does not hold it."""
        claim = self._current()[1]
        if claim is None or claim.run != self.run:
            raise InputError(f"the main process that writes {self.path} has ended", "see its message")
        self.claim = claim

    def check(self) -> None:
        """Raise InputError if the lease is no longer that of this run; to be called before anything is written."""
        if self._current()[1] != self.claim:
            raise InputError(
                f"this run did not renew its lease on {self.path} in time, and another one writes it now, or did",
                "run the same command again: it continues",
            )

    def release(self) -> None:
        """Give the lease back."""
        self.ended.set()
        if self.renewer.is_alive():
            self.renewer.join(2 * IMPATIENT_RETRY_SECONDS)
        if self.number:
            with contextlib.suppress(VQGPTError):  # it runs out by itself
                self.store.delete([key_of(self.number)])
            self.number = 0
        if self.descriptor is not None:
            assert self.claim is not None
            self.claim.local_file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep(self) -> None:
        """Renew the lease until it is released, or another run has it. Runs in a thread of its own."""
        is_ours = True
        while is_ours and not self.ended.wait(RENEW_SECONDS):
            with contextlib.suppress(VQGPTError):  # the next renewal may succeed
                is_ours = self._highest() == self.number and self._advance(self.number)

    def _advance(self, number: int) -> bool:
        """Create the object after `number`, and delete all before it; False if another run was faster."""
        assert self.claim is not None
        body = json.dumps(vars(self.claim)).encode()
        created = self.store.create(key_of(number + 1), body)
        if not created and self._read(number + 1) != self.claim:  # it is ours if the answer to a first try was lost
            return False
        self.number = number + 1
        self.store.delete([key for key in self.store.files() if key < key_of(self.number)])
        return True

    def _current(self) -> tuple[int, Claim | None]:
        """The highest number, 0 for none, and what its object says: None if that cannot be read."""
        while True:
            number = self._highest()
            claim = self._read(number) if number else None
            if claim is not None or self._highest() == number:  # else it was renewed or released just now
                return number, claim

    def _highest(self) -> int:
        return max((int(key) for key in self.store.files() if key.isdecimal()), default=0)

    def _read(self, number: int) -> Claim | None:
        try:
            return Claim(**json.loads(self.store.read(key_of(number), MOST_BYTES)))
        except (FileNotFoundError, TooLargeError, ValueError, TypeError):
            return None

    def _seconds_left(self, number: int) -> float:
        """How long the lease of this number lasts; 0 if it ended.

        The clocks of two machines do not suffice for that: it must also stand still while we look on.
        """
        found = self.store.objects().get(key_of(number))
        if found is None:  # it was renewed just now
            return LEASE_SECONDS
        age_seconds = (datetime.now(UTC) - found.last_modified).total_seconds()
        if age_seconds < LEASE_SECONDS:
            return LEASE_SECONDS - max(age_seconds, 0.0)
        time.sleep(2 * RENEW_SECONDS)
        return 0.0 if self._highest() in (0, number) else LEASE_SECONDS


def key_of(number: int) -> str:
    """The key of the object of this number; keys sort as numbers do."""
    return f"{number:012d}"
