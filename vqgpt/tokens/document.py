"""The root `zarr.json` of a token cache: a Zarr v3 group whose attributes hold the manifest and its digest.

    Manifest  --to_document-->  bytes  --from_document-->  Manifest

Imports numpy and zarr only.
"""

import json
from collections.abc import Mapping
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import from_json
from vqgpt.storage.files import canonical_json, sha256
from vqgpt.storage.untrusted import check_plain
from vqgpt.tokens.manifest import FORMAT_VERSION, Description, Manifest
from vqgpt.tokens.soundness import description_fault, manifest_fault

ATTRIBUTE = "vqgpt"


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
