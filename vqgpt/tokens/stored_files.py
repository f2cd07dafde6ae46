"""The files of a token cache: where they lie, and reading one only if it is what the manifest says.

Imports numpy and zarr only.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from vqgpt.storage.files import SpecialFileError, sha256
from vqgpt.tokens.array_metadata import metadata_fault
from vqgpt.tokens.folder_store import TooLargeError
from vqgpt.tokens.manifest import Description, Manifest, Shard, StoredFile
from vqgpt.tokens.store import Store

ROOT = "zarr.json"


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
