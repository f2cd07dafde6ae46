"""What a token cache says about itself. `document` writes it into the attributes of the root `zarr.json`, and reads it.

The manifest is the only commit point of a cache: a shard that it does not list does not exist. Nothing in it depends
on the clock, on paths, or on the order of events, so that equal caches are equal byte for byte. Must not import torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vqgpt.options.codec import one_line, to_json
from vqgpt.storage.files import canonical_json, sha256
from vqgpt.tokens.layout import ArrayLayout, code_dtype, default_chunk_rows

FORMAT_VERSION = 1
UNKNOWN_TOKENIZER = "unknown"  # in place of the digest, where codes were imported without their VQ-GAN

Origin = Literal["encoded", "sampled"]
LabelKind = Literal["none", "class", "bits"]


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
    limit: int | None
    val_split: float | None
    image_size: tuple[int, int]
    image_channels: int
    preprocessing: dict[str, Any]
    skipped: tuple[str, ...]
    views: tuple[str, ...]
    grid: tuple[int, int]
    codebook_size: int
    code_dimension: int
    tokenizer_sha256: str
    precision: str
    sampling: dict[str, Any]
    shard_rows: int

    __repr__ = one_line

    @property
    def knows_its_vqgan(self) -> bool:
        """False where codes were imported without the VQ-GAN that made them: nothing can decode or check those."""
        return self.tokenizer_sha256 != UNKNOWN_TOKENIZER

    @property
    def unverified(self) -> tuple[str, ...]:
        """Fields for which nothing vouches but whoever imported the codes; empty if vqgpt made them."""
        names = self.preprocessing.get("unverified", [])
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def has_log_prob(self) -> bool:
        """True if the rows know how likely the model that drew them found them."""
        return self.origin == "sampled" and self.sampling.get("log_prob") is True

    def layouts(self, split: str) -> dict[str, ArrayLayout]:
        """The arrays of a split, by name."""
        rows = next(item.rows for item in self.splits if item.name == split)
        bits = (len(self.class_names),) if self.label_kind == "bits" else ()
        codes = (rows, len(self.views), *self.grid)
        arrays = {
            "codes": self._layout(codes, code_dtype(self.codebook_size), ("row", "view", "h", "w")),
            "labels": self._layout((rows, *bits), "uint8" if bits else "int64", ("row", "bit")[: 1 + len(bits)]),
            "source_index": self._layout((rows,), "int64", ("row",)),
        }
        if self.has_log_prob:
            arrays["log_prob"] = self._layout((rows,), "float32", ("row",))
        return arrays

    def _layout(self, shape: tuple[int, ...], dtype: str, dimension_names: tuple[str, ...]) -> ArrayLayout:
        row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        return ArrayLayout(
            shape=shape,
            dtype=dtype,
            chunk_rows=default_chunk_rows(row_bytes, self.shard_rows),
            shard_rows=self.shard_rows,
            dimension_names=dimension_names,
        )

    def all_layouts(self) -> dict[str, ArrayLayout]:
        """Every array of the cache, by its folder."""
        arrays = {
            f"{split.name}/{name}": layout for split in self.splits for name, layout in self.layouts(split.name).items()
        }
        return {"codebook": self.codebook_layout(), **arrays}

    def codebook_layout(self) -> ArrayLayout:
        """The codebook, (K, D) float32, in one shard."""
        return ArrayLayout(
            shape=(self.codebook_size, self.code_dimension),
            dtype="float32",
            chunk_rows=self.codebook_size,
            shard_rows=self.codebook_size,
            dimension_names=("code", "dimension"),
        )


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of the cache, as it must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One committed shard: the same rows of every array of a split. `log_prob` is where the description has it."""

    rows: int
    max_code: int
    codes: StoredFile
    labels: StoredFile
    source_index: StoredFile
    log_prob: StoredFile | None = None


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """How a split uses the codebook, over all views: how often each code occurs (K,), and figures of that."""

    used_codes: int
    perplexity: float
    histogram: tuple[int, ...]

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description, and every committed file: metadata and codebook by path, shards by split and index.

    `statistics`, by split, come with the last shard.
    """

    description: Description
    versions: dict[str, str]
    files: dict[str, StoredFile]
    shards: dict[str, dict[int, Shard]]
    statistics: dict[str, SplitStatistics]

    __repr__ = one_line

    @property
    def has_all_shards(self) -> bool:
        """True if no shard of any split is missing."""
        description = self.description
        return all(
            len(self.shards[split.name]) == description.layouts(split.name)["codes"].num_shards
            for split in description.splits
        )

    @property
    def complete(self) -> bool:
        """True if every shard of every split is committed, and the statistics with them."""
        return self.has_all_shards and len(self.statistics) == len(self.description.splits)

    @property
    def body(self) -> dict[str, Any]:
        """All of it in JSON form, but for the digest."""
        status = "complete" if self.complete else "partial"
        body = {"format_version": FORMAT_VERSION, "status": status, **to_json(self)}
        for shards in body["shards"].values():
            for shard in shards.values():
                if shard["log_prob"] is None:
                    del shard["log_prob"]
        return body

    @property
    def digest(self) -> str:
        """SHA-256 over all of it: the identity of the cache's content."""
        return sha256(canonical_json(self.body))

    def with_shards(self, split_shards: Mapping[tuple[str, int], Shard]) -> "Manifest":
        """The manifest after more shards, by (split, index), were committed."""
        shards = {split: dict(of_split) for split, of_split in self.shards.items()}
        for (split, index), shard in split_shards.items():
            shards[split][index] = shard
        return replace(self, shards=shards)

    def without_shards(self, lost: set[tuple[str, int]]) -> "Manifest":
        """The manifest without the shards (split, index) in `lost`."""
        kept = {
            split: {index: shard for index, shard in shards.items() if (split, index) not in lost}
            for split, shards in self.shards.items()
        }
        return replace(self, shards=kept, statistics={} if lost else self.statistics)
