"""Checking every file of a token cache, past the first fault.

Imports numpy and zarr only.
"""

from pathlib import Path
from typing import Any

from vqgpt.errors import InputError
from vqgpt.tokens.manifest import Manifest
from vqgpt.tokens.reader import TokenCache, read_checked, read_manifest
from vqgpt.tokens.writer import ROOT, shard_files

STRANGER = "does not belong to this cache"


def find_faults(path: Path) -> list[str]:
    """Everything that is wrong with the cache at `path`, a line each; empty if it is whole.

    Raises InputError if it is not a cache at all, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    faults = [] if manifest.complete else ["the cache is not finished"]
    expected = _expected_files(manifest)
    for key, file in expected.items():
        fault, _ = read_checked(path / key, file)
        if fault:
            faults.append(f"{key} {fault}")
    present = {str(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()}
    faults += [f"{key} {STRANGER}" for key in sorted(present - set(expected) - {ROOT})]
    if not faults:
        faults = _content_faults(TokenCache(path))
    return faults


def _expected_files(manifest: Manifest) -> dict[str, Any]:
    files = dict(manifest.files)
    for split, shards in manifest.shards.items():
        for index, shard in shards.items():
            files |= shard_files(manifest.description, split, index, shard)
    return files


def _content_faults(cache: TokenCache) -> list[str]:
    faults = []
    for name in cache.split_names:
        try:
            cache.read_split(name)
        except InputError as error:
            faults.append(error.message)
    return faults
