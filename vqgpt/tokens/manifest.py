"""What a token cache says about itself, and whether that can be true.

The manifest is the only commit point of a cache: a shard that it does not list does not exist. Nothing in it depends
on the clock, on paths, or on the order of events, so that equal caches are equal byte for byte. It is not trusted even
if its digest holds, for whoever made the cache made the digest: `manifest_fault` is asked before anything that it
claims is allocated, read, or used as a path. Imports numpy and zarr only.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqgpt.options.codec import one_line, to_json
from vqgpt.options.paths import can_be_a_dataset
from vqgpt.storage.files import canonical_json, sha256
from vqgpt.tokens.arrays import ArrayLayout, code_dtype, default_chunk_rows, statistics_of_counts

FORMAT_VERSION = 1
UNKNOWN_TOKENIZER = "unknown"  # in place of the digest, where codes were imported without their VQ-GAN

CODEBOOK_FILE = "codebook/c/0/0"  # its only shard

Origin = Literal["encoded", "sampled"]
LabelKind = Literal["none", "class", "bits"]
LARGEST_ARRAY = 2**40  # elements
LARGEST_SHARD = 2**30  # bytes, decoded
LARGEST_METADATA = 2**20  # bytes
LARGEST_SIDE = 2**16  # pixels, channels
LONGEST_TEXT = 2**12  # characters of a name
MOST_NAMES = 2**20
MOST_SPLITS = 100
PERPLEXITY_DIGITS = 3  # fewer than machines could disagree on
DIGEST = re.compile("[0-9a-f]{64}")


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
        layouts = {"codebook": self.codebook_layout()}
        for split in self.splits:
            layouts |= {f"{split.name}/{name}": layout for name, layout in self.layouts(split.name).items()}
        return layouts

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

    @classmethod
    def of(cls, histogram: NDArray[np.int64]) -> "SplitStatistics":
        """From how often each code occurs, (K,)."""
        figures = statistics_of_counts(histogram)
        return cls(
            used_codes=figures.used_codes,
            perplexity=round(figures.perplexity, PERPLEXITY_DIGITS),
            histogram=tuple(histogram.tolist()),
        )


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
        splits = {split.name: self.description.layouts(split.name)["codes"] for split in self.description.splits}
        return all(len(self.shards[name]) == codes.num_shards for name, codes in splits.items())

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


def description_fault(description: Description) -> str:
    """What in a description cannot be, or ""."""
    image_sizes = (*description.image_size, description.image_channels)
    sizes = (
        *image_sizes,
        *description.grid,
        description.codebook_size,
        description.code_dimension,
        description.shard_rows,
        1 if description.limit is None else description.limit,
    )
    names = [split.name for split in description.splits]
    texts = (*description.class_names, *description.views, description.precision, description.tokenizer_sha256)
    if not can_be_a_dataset(description.dataset):
        return "a name of a dataset that cannot be"
    if description.label_kind == "bits" and not description.class_names:
        return "bits without names"
    if min(sizes) <= 0 or max(sizes) > LARGEST_ARRAY or any(split.rows < 0 for split in description.splits):
        return "impossible sizes"
    if max(image_sizes) > LARGEST_SIDE or description.codebook_size > 2**16:
        return "impossible sizes"
    if not description.views or len(set(names)) < len(names) or len(names) > MOST_SPLITS:
        return "no views, too many splits, or two of one name"
    if max(map(len, texts)) > LONGEST_TEXT or len(description.class_names) > MOST_NAMES:
        return "names that are too long, or too many"
    if description.val_split is not None and not 0 < description.val_split < 1:
        return "an impossible share of held-out images"
    if fault := _preprocessing_fault(description) or _sampling_fault(description):
        return fault
    sound = (can_be_a_dataset(name) and name.isascii() and name.isidentifier() for name in names)
    if "codebook" in names or not all(sound):
        return "names of splits that cannot be"
    for layout in description.all_layouts().values():
        rows = max(layout.shape[0], layout.shard_rows)
        if rows * math.prod(layout.shape[1:]) > LARGEST_ARRAY:
            return "impossible sizes"
        if layout.shard_rows * layout.row_bytes > LARGEST_SHARD:
            return "shards of impossible sizes"
    return ""


def _preprocessing_fault(description: Description) -> str:
    """What of how images were prepared cannot be; each setting may be absent."""
    recorded = description.preprocessing
    unverified = recorded.get("unverified", [])
    texts = [recorded.get(name, "") for name in ("rule", "fit", "background")]
    sound = isinstance(unverified, list) and all(isinstance(text, str) for text in texts + unverified)
    return "" if sound else "a preprocessing that cannot be"


def _sampling_fault(description: Description) -> str:
    """What in the labels and prompts that sampling cycled through cannot be; both may be absent."""
    if description.origin == "encoded":
        return "settings of sampling, and images that were encoded" if description.sampling else ""
    labels, prompts = description.sampling.get("classes"), description.sampling.get("prompts", [])
    number, bits = len(description.class_names), description.label_kind == "bits"
    if labels is None and bits:
        return "sampled images without the bits they were drawn for"
    highest = {"none": -1, "class": number - 1, "bits": 1}[description.label_kind]
    if labels is not None and not (labels and _are_arrays((number,) if bits else (), labels, highest)):
        return "sampled images of impossible labels"
    if not _are_arrays(description.grid, prompts, description.codebook_size - 1):
        return "impossible prompts"
    return ""


def _are_arrays(shape: tuple[int, ...], value: Any, highest: int) -> bool:
    """Whether a value out of JSON is a list, of nested lists of this shape, of whole numbers in -1..highest."""
    return isinstance(value, list) and all(_is_array(shape, element, highest) for element in value)


def _is_array(shape: tuple[int, ...], value: Any, highest: int) -> bool:
    if not shape:
        return type(value) is int and -1 <= value <= highest
    return isinstance(value, list) and len(value) == shape[0] and _are_arrays(shape[1:], value, highest)


def manifest_fault(manifest: Manifest) -> str:
    """What in a manifest, whose description is sound, cannot be, or ""."""
    description = manifest.description
    names = [split.name for split in description.splits]
    if set(manifest.shards) != set(names) or not set(manifest.statistics) <= set(names):
        return "other splits than it describes"
    layouts = description.all_layouts()
    metadata = {f"{folder}/zarr.json" for folder in (*names, *layouts)}
    if set(manifest.files) != {CODEBOOK_FILE, *metadata}:
        return "paths of files that are not of this format"
    limits = {**dict.fromkeys(metadata, LARGEST_METADATA), CODEBOOK_FILE: _largest_file(layouts["codebook"])}
    if not all(_can_be(file, limits[key]) for key, file in manifest.files.items()):
        return "impossible files"
    for split, shards in manifest.shards.items():
        for index, shard in shards.items():
            codes = layouts[f"{split}/codes"]
            within = 0 <= index < codes.num_shards and 0 <= shard.max_code < description.codebook_size
            if not within or shard.rows != codes.rows_in(index):
                return f"impossible shard {split}/{index}"
            files = {name: getattr(shard, name) for name in description.layouts(split)}
            sound = all(
                file and _can_be(file, _largest_file(layouts[f"{split}/{name}"])) for name, file in files.items()
            )
            if not sound or (shard.log_prob and not description.has_log_prob):
                return f"impossible files of shard {split}/{index}"
    for split, statistics in manifest.statistics.items():
        histogram, most = statistics.histogram, description.codebook_size
        if len(histogram) != most or min(histogram) < 0 or sum(histogram) > LARGEST_ARRAY:
            return f"a histogram of {split} that cannot be"
        if not 0 <= statistics.used_codes <= most or not 0 <= statistics.perplexity <= most + 1:
            return f"statistics of {split} that cannot be"
    return ""


def _largest_file(layout: ArrayLayout) -> int:
    """More bytes than the file of a shard can have, by far."""
    return 2 * layout.shard_rows * layout.row_bytes + 64 * layout.chunks_per_shard + LARGEST_METADATA


def _can_be(file: StoredFile, most: int) -> bool:
    return 0 <= file.bytes <= most and DIGEST.fullmatch(file.sha256) is not None
