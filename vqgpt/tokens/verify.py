"""Checking every file of a token cache, past the first fault.

Imports numpy and zarr only.
"""

from pathlib import Path

import numpy as np

from vqgpt.errors import InputError
from vqgpt.tokens.reader import TokenCache, read_manifest
from vqgpt.tokens.statistics import count_codes, split_statistics
from vqgpt.tokens.stored_files import ROOT, all_files, metadata_faults, read_checked

STRANGER = "does not belong to this cache"
UNFINISHED = "the cache is not finished"


def find_faults(path: Path) -> list[str]:
    """Everything that is wrong with the cache at `path`, a line each; empty if it is whole.

    Raises InputError if it is not a cache at all, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    faults = [] if manifest.complete else [UNFINISHED]
    bad = {}
    expected = all_files(manifest)
    for key, file in expected.items():
        fault, _ = read_checked(path / key, file)
        if fault:
            bad[key] = fault
    bad = metadata_faults(path, manifest) | bad
    faults += [f"{key} {fault}" for key, fault in bad.items()]
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    faults += [f"{key} {STRANGER}" for key in sorted(present - set(expected) - {ROOT})]
    if manifest.complete and not bad:
        faults += _content_faults(TokenCache(path))
    return faults


def _content_faults(cache: TokenCache) -> list[str]:
    """What a cache whose files are as they were written says wrongly about itself."""
    faults = []
    for split in cache.split_names:
        try:
            histogram = np.zeros(cache.description.codebook_size, np.int64)
            for index in sorted(cache.manifest.shards[split]):
                histogram += count_codes(cache.read_split(split, [index]).codes, len(histogram))
        except InputError as error:
            faults.append(error.message)
            continue
        if split_statistics(histogram) != cache.manifest.statistics[split]:
            faults.append(f"the statistics of {split} are not those of its codes")
    try:
        cache.codebook()
    except InputError as error:
        faults.append(error.message)
    return faults
