"""What the `zarr.json` of an array may say: exactly what the manifest says, with codecs that are known to be harmless.

We read shards by the manifest alone; this check protects those who open the cache with another Zarr implementation.
Imports numpy and zarr only.
"""

import json
from typing import Any

from vqgpt.tokens.layout import ArrayLayout

KNOWN_CODECS = {"blosc", "bytes", "crc32c", "sharding_indexed"}


def metadata_fault(layout: ArrayLayout, data: bytes) -> str:
    """What is wrong with an array's `zarr.json`, or ""."""
    try:
        document = json.loads(data)
        (sharding,) = document["codecs"]
        inside = sharding["configuration"]
        names = [sharding["name"], *(codec["name"] for codec in [*inside["codecs"], *inside["index_codecs"]])]
        claims = _claims(document, inside)
    except (ValueError, KeyError, TypeError, RecursionError):
        return "is no array's metadata of this format"
    unknown = [str(name) for name in names if name not in KNOWN_CODECS]
    if unknown:
        return f"asks for codecs that are not of this format: {', '.join(unknown)}"
    shards = [layout.shard_rows, *layout.shape[1:]]
    chunks = [layout.chunk_rows, *layout.shape[1:]]
    expected = ["array", list(layout.shape), layout.dtype, shards, chunks, "end", "default", "/", 0, []]
    return "" if claims == expected else "contradicts the manifest"


def _claims(document: dict[str, Any], inside: dict[str, Any]) -> list[Any]:
    keys = document["chunk_key_encoding"]
    return [
        document["node_type"],
        document["shape"],
        document["data_type"],
        document["chunk_grid"]["configuration"]["chunk_shape"],
        inside["chunk_shape"],
        inside.get("index_location", "end"),
        keys["name"],
        keys.get("configuration", {}).get("separator", "/"),
        document["fill_value"],
        document.get("storage_transformers", []),
    ]
