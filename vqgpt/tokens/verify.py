"""Checking every file of a token cache, past the first fault.

Imports numpy and zarr only.
"""

import numpy as np

from vqgpt.errors import InputError
from vqgpt.options.paths import CachePath
from vqgpt.tokens.reader import TokenCache, read_manifest
from vqgpt.tokens.statistics import count_codes, split_statistics
from vqgpt.tokens.store import store_at
from vqgpt.tokens.stored_files import ROOT, all_files, find_bad, metadata_faults

STRANGER = "does not belong to this cache"
UNFINISHED = "the cache is not finished"


def find_faults(path: CachePath) -> list[str]:
    """Everything that is wrong with the cache at `path`, a line each; empty if it is whole.

    Raises InputError if it is not a cache at all, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    faults = [] if manifest.complete else [UNFINISHED]
    store, expected = store_at(path), all_files(manifest)
    bad = metadata_faults(store, manifest) | find_bad(store, expected)
    faults += [f"{key} {fault}" for key, fault in bad.items()]
    faults += [f"{key} {STRANGER}" for key in sorted(set(store.files()) - set(expected) - {ROOT})]
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
