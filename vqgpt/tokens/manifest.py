"""What a token cache says about itself: the document in the attributes of its root `zarr.json`.

The manifest is the only commit point of a cache: a shard that it does not list does not exist. `to_document` and
`from_document` are inverses. Nothing in it depends on the clock, on paths, or on the order of events, so that equal
caches are equal byte for byte. Must not import torch.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vqgpt.config.options import from_json, to_json
from vqgpt.errors import InputError
from vqgpt.files import canonical_json, sha256
from vqgpt.tokens.layout import ArrayLayout, code_dtype, default_chunk_rows

FORMAT_VERSION = 1
ATTRIBUTE = "vqgpt"
ARRAYS = ("codes", "labels", "source_index")
LIMIT = 2**40  # elements of one array: a manifest that claims more is refused before anything is allocated

Origin = Literal["encoded", "sampled"]
LabelKind = Literal["none", "class", "bits"]


class DamagedManifestError(InputError):
    """The root document was a token cache's, and is not as it was written."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Name and size of one split."""

    name: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a cache holds. Two runs with equal descriptions make equal caches; a run with another is refused."""

    origin: Origin
    dataset: str
    class_names: tuple[str, ...]
    label_kind: LabelKind
    source_sha256: str
    splits: tuple[Split, ...]
    image_size: tuple[int, int]
    image_channels: int
    preprocessing: str
    skipped: tuple[str, ...]
    views: tuple[str, ...]
    grid: tuple[int, int]
    codebook_size: int
    code_dimension: int
    tokenizer_sha256: str
    precision: str
    sampling: dict[str, Any]
    shard_rows: int

    def layouts(self, split: str) -> dict[str, ArrayLayout]:
        """The arrays of a split, by name."""
        rows = next(item.rows for item in self.splits if item.name == split)
        dtype = code_dtype(self.codebook_size)
        row_bytes = int(np.prod((len(self.views), *self.grid))) * np.dtype(dtype).itemsize
        partition = {"chunk_rows": default_chunk_rows(row_bytes, self.shard_rows), "shard_rows": self.shard_rows}
        bits = (len(self.class_names),) if self.label_kind == "bits" else ()
        return {
            "codes": ArrayLayout(
                shape=(rows, len(self.views), *self.grid),
                dtype=dtype,
                dimension_names=("row", "view", "h", "w"),
                **partition,
            ),
            "labels": ArrayLayout(
                shape=(rows, *bits),
                dtype="uint8" if bits else "int64",
                dimension_names=("row", "bit")[: 1 + len(bits)],
                **partition,
            ),
            "source_index": ArrayLayout(shape=(rows,), dtype="int64", dimension_names=("row",), **partition),
        }

    def codebook_layout(self) -> ArrayLayout:
        """The codebook, (K, D) float32, in one shard."""
        return ArrayLayout(
            shape=(self.codebook_size, self.code_dimension),
            dtype="float32",
            chunk_rows=self.codebook_size,
            shard_rows=self.codebook_size,
            dimension_names=("code", "dimension"),
        )

    def check(self, source: str) -> None:
        """Raise InputError, naming `source`, if the values cannot be those of a cache."""
        sizes = (
            *self.image_size,
            self.image_channels,
            *self.grid,
            self.codebook_size,
            self.code_dimension,
            self.shard_rows,
        )
        names = [split.name for split in self.splits]
        sound = (
            min(sizes) > 0
            and self.codebook_size <= 2**16
            and len(self.views) > 0
            and all(split.rows >= 0 and split.name.isidentifier() for split in self.splits)
            and len(set(names)) == len(names)
            and "codebook" not in names
        )
        if sound:
            arrays = [self.codebook_layout(), *(array for name in names for array in self.layouts(name).values())]
            shapes = [(array.shape, array.shard_rows) for array in arrays]
            sound = all(max(shape[0], rows) * int(np.prod(shape[1:], dtype=object)) <= LIMIT for shape, rows in shapes)
        if not sound:
            raise InputError(
                f"{source}: the manifest holds impossible sizes or names", "delete this cache and make it again"
            )


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of the cache, as it must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One committed shard: the same rows of every array of a split."""

    rows: int
    max_code: int
    codes: StoredFile
    labels: StoredFile
    source_index: StoredFile


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description, and every committed file: metadata and codebook by path, shards by split and index."""

    description: Description
    versions: dict[str, str]
    files: dict[str, StoredFile]
    shards: dict[str, dict[int, Shard]]

    @property
    def complete(self) -> bool:
        """True if every shard of every split is committed."""
        description = self.description
        return all(
            len(self.shards[split.name]) == description.layouts(split.name)["codes"].num_shards
            for split in description.splits
        )

    @property
    def digest(self) -> str:
        """SHA-256 over all of it: the identity of the cache's content."""
        return sha256(canonical_json(_body(self)))

    def with_shard(self, split: str, index: int, shard: Shard) -> "Manifest":
        """The manifest after one more shard was committed."""
        return replace(self, shards={**self.shards, split: {**self.shards[split], index: shard}})

    def without_shards(self, lost: set[tuple[str, int]]) -> "Manifest":
        """The manifest without the shards (split, index) in `lost`."""
        kept = {
            split: {index: shard for index, shard in shards.items() if (split, index) not in lost}
            for split, shards in self.shards.items()
        }
        return replace(self, shards=kept)


def _body(manifest: Manifest) -> dict[str, Any]:
    status = "complete" if manifest.complete else "partial"
    return {"format_version": FORMAT_VERSION, "status": status, **to_json(manifest)}


def to_document(manifest: Manifest) -> bytes:
    """The root `zarr.json`: a Zarr v3 group whose attributes hold the manifest and its digest."""
    attributes = {ATTRIBUTE: {**_body(manifest), "digest": manifest.digest}}
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def from_document(data: bytes, source: str) -> Manifest:
    """Read a root `zarr.json`; `source` names the cache in messages.

    Raises InputError if it is not a token cache, of a newer format, or differs in any byte from what was written.
    """
    damaged = DamagedManifestError(
        f"{source}: zarr.json is damaged", "delete this cache and make it again, or restore the file"
    )
    try:
        body = dict(json.loads(data)["attributes"][ATTRIBUTE])
        version, digest = body["format_version"], body.pop("digest")
    except (ValueError, KeyError, TypeError, RecursionError):
        if b'"digest"' in data and b'"format_version"' in data:
            raise damaged from None
        raise InputError(
            f"{source} is not a token cache (its zarr.json has no {ATTRIBUTE!r} attribute)",
            "give the path of a cache that `vqgpt tokenize` or `vqgpt sample` wrote",
        ) from None
    if sha256(canonical_json(body)) != digest:
        raise damaged
    if version != FORMAT_VERSION:
        raise InputError(
            f"{source} has format version {version}; this vqgpt reads version {FORMAT_VERSION}",
            "use another version of vqgpt",
        )
    content = {key: value for key, value in body.items() if key not in ("format_version", "status")}
    manifest = from_json(Manifest, content, source)
    manifest.description.check(source)
    same_splits = set(manifest.shards) == {split.name for split in manifest.description.splits}
    if not same_splits or to_document(manifest) != data:
        raise damaged
    return manifest
