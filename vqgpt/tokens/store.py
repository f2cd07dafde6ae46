"""The files of a token cache: where they lie, in a folder or on an object store, and reading one only if it is sound.

    Manifest  --to_document-->  bytes of the root, a Zarr v3 group with the manifest and its digest  --from_document-->

A key is the path of a file below the cache. In a folder, a file is written under a temporary name, flushed and renamed;
the folder may be a link, files and folders in it may be links for readers alone. Imports numpy and zarr only.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import from_json
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report, silent
from vqgpt.storage.files import (
    SpecialFileError,
    TooLargeError,
    canonical_json,
    check_can_be_written,
    check_plain,
    check_writable,
    links_below,
    open_regular,
    place_of,
    sha256,
    tidy_after_a_kill,
    write_atomically,
)
from vqgpt.storage.write_lock import WriteLock, may_always_write
from vqgpt.tokens.arrays import metadata_fault
from vqgpt.tokens.manifest import (
    FORMAT_VERSION,
    Description,
    Manifest,
    Shard,
    StoredFile,
    description_fault,
    manifest_fault,
)

if TYPE_CHECKING:
    from vqgpt.tokens.lease import Lease

ATTRIBUTE = "vqgpt"
ROOT = "zarr.json"


ATTRIBUTE = "vqgpt"
ROOT = "zarr.json"


class Store(Protocol):
    """The files of one token cache. Each appears as a whole, or not at all."""

    @property
    def threads(self) -> int:
        """How many files to read at the same time."""

    def exists(self) -> bool:
        """True if anything is there."""

    def read(self, key: str, most_bytes: int) -> bytes:
        """A file. Raises FileNotFoundError or, unread, IsADirectoryError, SpecialFileError or TooLargeError."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """The bytes of those files that are there."""

    def files(self) -> dict[str, int]:
        """Every file with its bytes, whoever put it there. Raises InputError if the place can hold none."""

    def check_can_write(self) -> None:
        """Raise OSError if no file can be written there."""

    def check_no_links(self) -> None:
        """Raise InputError if a file or folder there is a link to another place; to be called before a change."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file, or replace it; once this returns, it is durable."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files."""

    def clear(self) -> None:
        """Delete everything."""

    def tidy(self) -> None:
        """Clear away what a killed process left half-done, and make durable what it wrote."""


def store_at(path: CachePath, check_may_write: Callable[[], None] = may_always_write) -> Store:
    """The files of the cache at `path`. Raises what `ObjectStore` raises if that is an address.

    `check_may_write` raises an error if another run writes the cache now; a change may raise it on an object store.
    """
    if isinstance(path, Path):
        return FolderStore(path)
    from vqgpt.tokens.object_store import ObjectStore

    return ObjectStore(path, check_may_write=check_may_write)


def check_can_lie_at(path: CachePath) -> None:
    """Raise OSError or InputError now, not after hours of work, if there can be no cache in a folder at `path`."""
    if isinstance(path, Path):
        check_can_be_written(path)


def lock_of(path: CachePath, run: str = "", report: Report = silent) -> "WriteLock | Lease":
    """The right to write the cache at `path`: `WriteLock` in a folder, `Lease` on an object store.

    `run` is a name that the processes of one run have in common, and no other run has. `report` is notified of a wait.
    """
    if isinstance(path, Path):
        return WriteLock(path, run)
    from vqgpt.tokens.lease import Lease

    return Lease(path, run, report)


class FolderStore:
    """A `Store` in the folder `path`, which need not exist. Files raise OSError where the disk does."""

    threads = min(8, os.cpu_count() or 1)  # hashing and decompressing leave Python to the others

    def __init__(self, path: Path) -> None:
        """Raises what `place_of` raises."""
        self.path = place_of(path)

    def exists(self) -> bool:
        """True if anything is there, a file in its place included."""
        return self.path.exists()

    def read(self, key: str, most_bytes: int) -> bytes:
        """See `Store`."""
        try:
            with open_regular(self.path / key) as file:
                size = os.fstat(file.fileno()).st_size
                data = b"" if size > most_bytes else file.read(size + 1) or b""
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None
        if size > most_bytes or len(data) > most_bytes:
            raise TooLargeError(max(size, len(data)))
        return data

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """See `Store`."""
        sizes = {}
        for key in keys:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                sizes[key] = (self.path / key).stat().st_size
        return sizes

    def files(self) -> dict[str, int]:
        """See `Store`; links are not followed."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder", "give another path")
        files = [file for file in self.path.rglob("*") if file.is_symlink() or not file.is_dir()]
        return {file.relative_to(self.path).as_posix(): file.lstat().st_size for file in files}

    def check_can_write(self) -> None:
        """See `Store`."""
        check_writable(self.path)

    def check_no_links(self) -> None:
        """See `Store`."""
        for link in links_below(self.path):
            raise InputError(
                f"{link} is a link: inside a cache, nothing is written or deleted through one",
                "put what it leads to in its place, or give another path",
            )

    def write(self, key: str, data: bytes) -> None:
        """See `Store`."""
        write_atomically(self.path / key, data)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store`."""
        for key in keys:
            (self.path / key).unlink()

    def clear(self) -> None:
        """See `Store`."""
        shutil.rmtree(self.path)

    def tidy(self) -> None:
        """See `Store`."""
        if self.path.exists():
            tidy_after_a_kill(self.path)


class DamagedManifestError(InputError):
    """The root document was a token cache's, and is not as it was written."""


def to_document(manifest: Manifest) -> bytes:
    """The root `zarr.json`."""
    attributes = {ATTRIBUTE: {**manifest.body, "digest": manifest.digest}}
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def read_description(data: Mapping[str, Any], source: str) -> Description:
    """The description in JSON form of a cache that is not at hand; `source` names the file that contains it.

    Raises InputError if it is none, or claims what cannot be.
    """
    try:
        description = from_json(Description, data, source)
    except (UsageError, ValueError, TypeError, OverflowError):
        raise InputError(f"{source}: its cache_description is damaged", "get the file again") from None
    if fault := description_fault(description):
        raise InputError(f"{source}: it describes a token cache with {fault}", "do not use it; get the file again")
    return description


def from_document(data: bytes, source: str) -> Manifest:
    """Read a root `zarr.json`; `source` names the cache in messages.

    Raises InputError if it is not a token cache, of a newer format, differs in any byte from what was written, or
    claims what cannot be.
    """
    hint = "delete this cache and make it again, or restore the file"
    damaged = DamagedManifestError(f"{source}: zarr.json is damaged", hint)
    try:
        body = dict(json.loads(data)["attributes"][ATTRIBUTE])
        check_plain(body)
        version, digest = body["format_version"], body.pop("digest")
        holds = sha256(canonical_json(body)) == digest
    except (ValueError, KeyError, TypeError, RecursionError):
        if b'"digest"' in data and b'"format_version"' in data:
            raise damaged from None
        raise InputError(
            f"{source} is not a token cache (its zarr.json has no {ATTRIBUTE!r} attribute)",
            "give the path of a cache that `vqgpt tokenize` or `vqgpt sample` wrote",
        ) from None
    if not holds:
        raise damaged
    if version != FORMAT_VERSION:
        raise InputError(
            f"{source} has format version {version}; this vqgpt reads version {FORMAT_VERSION}",
            "use another version of vqgpt",
        )
    content = {key: value for key, value in body.items() if key not in ("format_version", "status")}
    try:
        manifest = from_json(Manifest, content, source)
    except (UsageError, ValueError, TypeError, OverflowError):
        raise damaged from None
    if fault := description_fault(manifest.description) or manifest_fault(manifest):
        raise InputError(f"{source}: the manifest holds {fault}", "do not use it; make the cache again")
    if to_document(manifest) != data:
        raise damaged
    return manifest


def shard_files(description: Description, split: str, index: int, shard: Shard) -> dict[str, StoredFile]:
    """The files of one shard, by path below the cache."""
    layouts = description.layouts(split)
    return {f"{split}/{name}/{layout.shard_key(index)}": getattr(shard, name) for name, layout in layouts.items()}


def all_files(manifest: Manifest) -> dict[str, StoredFile]:
    """Every file that the manifest lists, by path below the cache."""
    files = dict(manifest.files)
    for split, shards in manifest.shards.items():
        for index, shard in shards.items():
            files |= shard_files(manifest.description, split, index, shard)
    return files


def read_checked(store: Store, key: str, file: StoredFile) -> tuple[str, bytes]:
    """The bytes of a file and "", or what is wrong with it and no bytes."""
    try:
        data = store.read(key, file.bytes)
    except FileNotFoundError:
        return "is missing", b""
    except IsADirectoryError:
        return "is a folder", b""
    except SpecialFileError:
        return "is a pipe, a device or a socket", b""
    except TooLargeError as error:
        return f"has {error.size} bytes instead of {file.bytes}", b""
    if len(data) != file.bytes:
        return f"has {len(data)} bytes instead of {file.bytes}", b""
    if sha256(data) != file.sha256:
        return "is not what was written (its sha256 differs)", b""
    return "", data


def find_bad(store: Store, files: Mapping[str, StoredFile]) -> dict[str, str]:
    """What is wrong with those of the files that are not as they were written, by key."""
    return _faults(store, files, lambda key: read_checked(store, key, files[key])[0])


def metadata_faults(store: Store, manifest: Manifest) -> dict[str, str]:
    """What is wrong with the `zarr.json` files below the root, by key."""
    layouts = manifest.description.all_layouts()

    def fault(key: str) -> str:
        folder = key.removesuffix("/zarr.json")
        wrong, data = read_checked(store, key, manifest.files[key])
        return wrong or (metadata_fault(layouts[folder], data) if folder in layouts else _group_fault(data))

    return _faults(store, [key for key in manifest.files if key.endswith("/zarr.json")], fault)


def _faults(store: Store, keys: Collection[str], fault_of: Callable[[str], str]) -> dict[str, str]:
    with ThreadPoolExecutor(store.threads) as pool:
        return {key: fault for key, fault in zip(keys, pool.map(fault_of, keys), strict=True) if fault}


def _group_fault(data: bytes) -> str:
    try:
        document = json.loads(data)
        is_plain_group = document["node_type"] == "group" and not document.get("attributes")
    except (ValueError, KeyError, TypeError, RecursionError):
        is_plain_group = False
    return "" if is_plain_group else "is no plain group of Zarr"
