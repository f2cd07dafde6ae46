"""The files of a token cache on an object store (S3, Google Cloud Storage, Azure), through the package obstore.

A put is atomic there, so there are no temporary names. obstore repeats what fails on the way (no connection, a cut one,
HTTP 5xx); what fails for good becomes one of our errors. Each request runs in an event loop of its own: a signal ends
it at once, which it would not inside obstore's blocking calls. obstore is an extra and is imported here alone.

A put says what it replaces (`If-None-Match`, `If-Match`): so a run that slept while another wrote, and wakes in the
middle of a put, does not undo what that one did.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from vqgpt.errors import MissingDataError, ResourceError, UsageError, VQGPTError
from vqgpt.options.paths import CacheURL
from vqgpt.storage.files import TooLargeError
from vqgpt.storage.write_lock import may_always_write

RETRY_SECONDS = 60.0
IMPATIENT_RETRY_SECONDS = 5.0
ATTEMPTS = 4
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0  # of a server in the middle of an answer
REQUEST_SECONDS = 600.0  # for the slowest shard
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
DELETED_AT_ONCE = 100
FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity", "507"}

ResultT = TypeVar("ResultT")
Version = Mapping[str, str]


class ObjectStore:
    """A `Store` of the objects below `url`.

    Credentials and endpoint are taken from the environment, as obstore does (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
    Requests raise MissingDataError if the store cannot be reached, has no such bucket, or refuses, and ResourceError if
    it is full.
    """

    threads = 8

    def __init__(
        self, url: CacheURL, patient: bool = True, check_may_write: Callable[[], None] = may_always_write
    ) -> None:
        """Raises MissingDataError if obstore is not installed, UsageError if the environment makes no sense to it.

        `check_may_write` raises an error if this run may not write any more, because another one does.
        """
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise MissingDataError(f"{url} needs the package obstore", "pip install 'vqgpt[remote]'") from None
        self.url = url
        self.check_may_write = check_may_write
        self.versions: dict[str, Version] = {}  # of what we put
        self.has_conditional_updates = True
        self.obstore: Any = obstore
        self.errors = (BaseError, FileNotFoundError)
        retry_seconds = RETRY_SECONDS if patient else IMPATIENT_RETRY_SECONDS
        silence_seconds = min(SILENCE_SECONDS, retry_seconds)
        seconds = {"connect_timeout": CONNECT_SECONDS, "read_timeout": silence_seconds, "timeout": REQUEST_SECONDS}
        options: Any = {name: timedelta(seconds=value) for name, value in seconds.items()}
        endpoints = [os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)]
        options["allow_http"] = any(endpoint.startswith("http://") for endpoint in endpoints)  # it is asked for
        retry: Any = {"retry_timeout": timedelta(seconds=retry_seconds)}
        config: Any = {"disable_bulk_delete": True} if url.startswith("s3:") else None  # not all stores have it
        hint = "check the address, and what the environment says of the store (AWS_ENDPOINT_URL, ...)"
        for endpoint in endpoints:
            if url.startswith("s3:") and not re.fullmatch(r"https?://[^\s/]+\S*", endpoint):  # obstore would panic
                raise UsageError(f"{url}: the endpoint {endpoint!r} is not an address", hint)
        try:
            self.store: Any = from_url(url, config=config, client_options=options, retry_config=retry)
        except (BaseError, ValueError) as error:
            raise UsageError(f"{url}: {first_line(error)}", hint) from None

    def exists(self) -> bool:
        """See `Store`."""
        return bool(self.files())

    def read(self, key: str, most_bytes: int) -> bytes:
        """See `Store`."""

        async def request() -> bytes:
            answer = await self.obstore.get_async(self.store, key)
            if answer.meta["size"] > most_bytes:
                raise TooLargeError(answer.meta["size"])
            return bytes(await answer.bytes_async())

        return self._run(request)

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """See `Store`."""
        there = self.files()
        return {key: there[key] for key in keys if key in there}

    def files(self) -> dict[str, int]:
        """See `Store`."""

        async def request() -> dict[str, int]:
            parts = [part async for part in self.obstore.list(self.store)]
            return {item["path"]: item["size"] for part in parts for item in part}

        return self._run(request)

    def folders(self) -> list[str]:
        """The names before the first slash of keys."""
        return sorted(self._run(lambda: self.obstore.list_with_delimiter_async(self.store))["common_prefixes"])

    def check_can_write(self) -> None:
        """See `Store`: the put of a lease has shown it."""

    def check_no_links(self) -> None:
        """See `Store`: there are none."""

    def tidy(self) -> None:
        """See `Store`: a put is all or nothing, and durable."""

    def write(self, key: str, data: bytes) -> None:
        """See `Store`. Raises what `check_may_write` raises if another run wrote the object since we did."""
        version = self.versions.get(key)
        while (written := self._put(key, data, version)) is None:
            version, there = self._get(key, len(data))
            if version is not None and there == data:  # the answer to a first try was lost
                written = version
                break
            self.check_may_write()  # after the version was read: if we are overtaken from here on, it is no more
        self.versions[key] = written

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none of this key; False if there is."""
        return self._put(key, data, None) is not None

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store`; what is gone already does not matter. Raises what `check_may_write` raises."""
        names = list(keys)
        for first in range(0, len(names), DELETED_AT_ONCE):
            self.check_may_write()
            self._delete(names[first : first + DELETED_AT_ONCE])

    def clear(self) -> None:
        """See `Store`; as `delete`."""
        self.delete(self.files())

    def _put(self, key: str, data: bytes, version: Version | None) -> Version | None:
        """Put an object in place of this version of it, None for nothing; None if that is not what is there."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        is_update = bool(version) and self.has_conditional_updates
        mode = "create" if version is None else version if is_update else "overwrite"

        async def request() -> Version | None:
            try:
                put = await self.obstore.put_async(self.store, key, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return None
            except BaseError as error:
                if not is_update or "status code: 501" not in str(error):
                    raise
                self.has_conditional_updates = False
                put = await self.obstore.put_async(self.store, key, data, mode="overwrite", use_multipart=False)
            return version_of(put)

        return self._run(request)

    def _get(self, key: str, size: int) -> tuple[Version | None, bytes]:
        """The version of an object, None if there is none, and what it holds, nothing if that is not of this size."""

        async def request() -> tuple[Version | None, bytes]:
            answer = await self.obstore.get_async(self.store, key)
            return version_of(answer.meta), bytes(await answer.bytes_async()) if answer.meta["size"] == size else b""

        try:
            return self._run(request)
        except FileNotFoundError:
            return None, b""

    def _delete(self, keys: list[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._run(lambda: self.obstore.delete_async(self.store, keys))

    def _run(self, request: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """What a request gives. Raises FileNotFoundError or, also where there is no such bucket, one of our errors."""

        async def awaited() -> ResultT:
            return await request()

        for attempts_left in range(ATTEMPTS - 1, -1, -1):
            try:
                return asyncio.run(awaited())
            except self.errors as error:
                if attempts_left and "body error" in str(error):
                    continue  # a refusal whose text was cut off: obstore repeats all else
                if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                    raise
                raise explained(self.url, error) from None
        raise AssertionError("the last attempt returns or raises")


def version_of(metadata: Mapping[str, Any]) -> Version:
    """What names this version of an object, out of its metadata; empty if nothing does."""
    return {name: metadata[name] for name in ("e_tag", "version") if metadata.get(name)}


def explained(url: CacheURL, error: Exception) -> VQGPTError:
    """The error that a failed request means to the user."""
    text = str(error)
    matches = (re.search(pattern, text) for pattern in (r"status code: (\d+)", r"<Code>(\w+)</Code>"))
    codes = {match[1] for match in matches if match}
    answer = " ".join(sorted(codes)) or first_line(error)
    if "NoSuchBucket" in codes:
        bucket = url.split("/")[2]
        return MissingDataError(f"{url}: there is no bucket {bucket}", "make it, or check the name and the endpoint")
    if codes & FULL:
        return ResourceError(f"{url}: the store is full ({answer})", "make room, then run the same command")
    if codes & {"401", "403"}:
        return MissingDataError(
            f"{url}: the store refuses access ({answer})",
            "check the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) and their rights",
        )
    return MissingDataError(
        f"{url}: the object store fails or cannot be reached ({answer})",
        "check the network and the endpoint (AWS_ENDPOINT_URL), then run the same command again",
    )


def first_line(error: object) -> str:
    """What obstore says, without its long account of the request."""
    return str(error).partition("\n")[0].removeprefix("Generic S3 error: ")
