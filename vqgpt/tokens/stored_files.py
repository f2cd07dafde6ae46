"""The files of a token cache: its root, where the others lie, and reading one only if it is as it was written.

    Manifest  --to_document-->  bytes of the root, a Zarr v3 group with the manifest and its digest  --from_document-->

Imports numpy and zarr only.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import from_json
from vqgpt.storage.files import SpecialFileError, canonical_json, sha256
from vqgpt.storage.untrusted import check_plain
from vqgpt.tokens.layout import metadata_fault
from vqgpt.tokens.manifest import (
    FORMAT_VERSION,
    Description,
    Manifest,
    Shard,
    StoredFile,
    description_fault,
    manifest_fault,
)
from vqgpt.tokens.store import Store, TooLargeError

ATTRIBUTE = "vqgpt"
ROOT = "zarr.json"


class DamagedManifestError(InputError):
    """The root document was a token cache's, and is not as it was written."""


def to_document(manifest: Manifest) -> bytes:
    """The root `zarr.json`."""
    attributes = {ATTRIBUTE: {**manifest.body, "digest": manifest.digest}}
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def read_description(data: Mapping[str, Any], source: str) -> Description:
    """The description in JSON form of a cache that is not at hand; `source` names the file that tells it.

    Raises InputError if it is none, or claims what cannot be.
    """
    try:
        description = from_json(Description, data, source)
    except (UsageError, ValueError, TypeError, OverflowError):
        raise InputError(f"{source}: its cache_description is damaged", "get the file again") from None
    fault = description_fault(description)
    if fault:
        raise InputError(f"{source}: it describes a token cache with {fault}", "do not use it; get the file again")
    return description


def from_document(data: bytes, source: str) -> Manifest:
    """Read a root `zarr.json`; `source` names the cache in messages.

    Raises InputError if it is not a token cache, of a newer format, differs in any byte from what was written, or
    claims what cannot be.
    """
    damaged = DamagedManifestError(
        f"{source}: zarr.json is damaged", "delete this cache and make it again, or restore the file"
    )
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
    fault = description_fault(manifest.description) or manifest_fault(manifest)
    if fault:
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

    def fault(key: str) -> str:
        return read_checked(store, key, files[key])[0]

    with ThreadPoolExecutor(store.threads) as pool:
        faults = zip(files, pool.map(fault, files), strict=True)
        return {key: fault for key, fault in faults if fault}


def metadata_faults(store: Store, manifest: Manifest) -> dict[str, str]:
    """What is wrong with the `zarr.json` files below the root, by key."""
    layouts = manifest.description.all_layouts()

    def fault(key: str) -> str:
        folder = key.removesuffix("/zarr.json")
        wrong, data = read_checked(store, key, manifest.files[key])
        return wrong or (metadata_fault(layouts[folder], data) if folder in layouts else _group_fault(data))

    keys = [key for key in manifest.files if key.endswith("/zarr.json")]
    with ThreadPoolExecutor(store.threads) as pool:
        faults = zip(keys, pool.map(fault, keys), strict=True)
        return {key: fault for key, fault in faults if fault}


def _group_fault(data: bytes) -> str:
    try:
        document = json.loads(data)
        is_plain_group = document["node_type"] == "group" and not document.get("attributes")
    except (ValueError, KeyError, TypeError, RecursionError):
        is_plain_group = False
    return "" if is_plain_group else "is no plain group of Zarr"
