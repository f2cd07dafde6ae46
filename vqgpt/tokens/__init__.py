"""The token cache: a Zarr v3 group of code grids that knows what made it and notices when it is damaged.

The format is specified in cache/FORMAT.md. Imports numpy and zarr only: no torch.
"""

from vqgpt.tokens.manifest import FORMAT_VERSION, Description, Manifest, Split
from vqgpt.tokens.reader import SplitTokens, TokenCache, find_faults, read_manifest
from vqgpt.tokens.store import lock_of, read_description
from vqgpt.tokens.writer import CacheWriter, ShardRows, remove_cache

__all__ = [
    "FORMAT_VERSION",
    "CacheWriter",
    "Description",
    "Manifest",
    "ShardRows",
    "Split",
    "SplitTokens",
    "TokenCache",
    "find_faults",
    "lock_of",
    "read_description",
    "read_manifest",
    "remove_cache",
]
