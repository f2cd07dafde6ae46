"""Checking every file of a token cache, past the first fault.

Imports numpy and zarr only.
"""

from pathlib import Path

from vqgpt.errors import InputError
from vqgpt.tokens.manifest import ARRAYS, Manifest, StoredFile
from vqgpt.tokens.reader import TokenCache, read_manifest
from vqgpt.tokens.stored_files import ROOT, array_files, read_checked

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


def _expected_files(manifest: Manifest) -> dict[str, StoredFile]:
    files = dict(manifest.files)
    for split in manifest.shards:
        for array in ARRAYS:
            files |= array_files(manifest, split, array)
    return files


def _content_faults(cache: TokenCache) -> list[str]:
    faults = []
    for name in cache.split_names:
        try:
            cache.read_split(name)
        except InputError as error:
            faults.append(error.message)
    return faults
