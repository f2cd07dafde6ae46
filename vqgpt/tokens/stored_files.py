"""The files of a token cache: where they lie, and reading one only if it is what the manifest says.

Imports nothing but the manifest and what an array's metadata may say.
"""

import json
from pathlib import Path

from vqgpt.files import sha256
from vqgpt.tokens.array_metadata import metadata_fault
from vqgpt.tokens.manifest import Description, Manifest, Shard, StoredFile

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


def read_checked(path: Path, file: StoredFile) -> tuple[str, bytes]:
    """The bytes of a file and "", or what is wrong with it and no bytes."""
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return f"has {size} bytes instead of {file.bytes}", b""
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing", b""
    except IsADirectoryError:
        return "is a folder", b""
    if sha256(data) != file.sha256:
        return "is not what was written (its sha256 differs)", b""
    return "", data


def holds(path: Path, file: StoredFile) -> bool:
    """True if the file is there and is what was written."""
    fault, _ = read_checked(path, file)
    return not fault


def metadata_faults(path: Path, manifest: Manifest) -> dict[str, str]:
    """What is wrong with the `zarr.json` files below the root, by path below the cache at `path`."""
    layouts = manifest.description.all_layouts()
    faults = {}
    for key, file in manifest.files.items():
        folder = key.removesuffix("/zarr.json")
        if folder != key:
            fault, data = read_checked(path / key, file)
            fault = fault or (metadata_fault(layouts[folder], data) if folder in layouts else _group_fault(data))
            if fault:
                faults[key] = fault
    return faults


def _group_fault(data: bytes) -> str:
    try:
        document = json.loads(data)
        is_plain_group = document["node_type"] == "group" and not document.get("attributes")
    except (ValueError, KeyError, TypeError, RecursionError):
        is_plain_group = False
    return "" if is_plain_group else "is no plain group of Zarr"
