"""The files of a token cache: where they lie, and reading one only if it is what the manifest says.

Imports nothing but the manifest.
"""

from pathlib import Path

from vqgpt.files import sha256
from vqgpt.tokens.manifest import ARRAYS, Description, Manifest, Shard, StoredFile

ROOT = "zarr.json"


def shard_files(description: Description, split: str, index: int, shard: Shard) -> dict[str, StoredFile]:
    """The files of one shard, by path below the cache."""
    layouts = description.layouts(split)
    return {f"{split}/{name}/{layouts[name].shard_key(index)}": getattr(shard, name) for name in ARRAYS}


def array_files(manifest: Manifest, split: str, array: str) -> dict[str, StoredFile]:
    """The committed shards of one array, in the order of their rows, by path below the cache."""
    layout = manifest.description.layouts(split)[array]
    shards = sorted(manifest.shards[split].items())
    return {f"{split}/{array}/{layout.shard_key(index)}": getattr(shard, array) for index, shard in shards}


def read_checked(path: Path, file: StoredFile) -> tuple[str, bytes]:
    """The bytes of a file and "", or what is wrong with it and no bytes."""
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return f"has {size} bytes instead of {file.bytes}", b""
        data = path.read_bytes()
    except FileNotFoundError:
        return "is missing", b""
    if sha256(data) != file.sha256:
        return "is not what was written (its sha256 differs)", b""
    return "", data


def holds(path: Path, file: StoredFile) -> bool:
    """True if the file is there and is what was written."""
    fault, _ = read_checked(path, file)
    return not fault
