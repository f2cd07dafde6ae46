"""Reading a token cache: every byte is checked against the manifest before it is used.

    TokenCache(path).read_split("train") -> codes (N, V, h, w) uint8 or uint16, labels (N,) int64 or (N, L) uint8
    parts_of(cache, ...)                 -> rows in the parts that a decoder takes at once
    rows_by_shard(cache, ...)            -> any rows, by their numbers
    find_faults(path)                    -> what is wrong with any of its files, past the first fault

Imports numpy and zarr only.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, MissingDataError
from vqgpt.options.codec import one_line
from vqgpt.options.paths import CachePath, parse_cache_path
from vqgpt.storage.files import TooLargeError
from vqgpt.tokens.arrays import ArrayLayout, count_codes, decode_shard
from vqgpt.tokens.manifest import CODEBOOK_FILE, Description, Manifest, Shard, SplitStatistics, StoredFile
from vqgpt.tokens.store import (
    ROOT,
    Store,
    all_files,
    find_bad,
    from_document,
    metadata_faults,
    read_checked,
    store_at,
)

LARGEST_ROOT = 2**28  # bytes
SMALL_SPLIT = 2**30  # bytes in memory that are allowed in any case
LARGEST_RATIO = 1000  # of a larger split's bytes in memory to those on disk; beyond it, it is a decompression bomb
STRANGER = "does not belong to this cache"
UNFINISHED = "the cache is not finished"


@dataclass(frozen=True, kw_only=True)
class SplitTokens:
    """Rows in memory: codes (N, V, h, w), labels (N,) int64 (-1 for none) or (N, L) uint8, source_index (N,) int64.

    log_prob (N,) float32 is in nats, and None where the cache does not have it.
    """

    codes: NDArray[np.unsignedinteger]
    labels: NDArray[np.integer]
    source_index: NDArray[np.int64]
    log_prob: NDArray[np.float32] | None = None

    __repr__ = one_line


class TokenCache:
    """A finished cache, opened for reading."""

    def __init__(self, path: CachePath | str) -> None:
        """Open the folder or address at `path`; text is read as --cache is, but for `~`.

        Raises MissingDataError if there is nothing at `path`, InputError if it is no finished, intact cache.
        """
        self.path = path = parse_cache_path(path) if isinstance(path, str) else path
        self.store = store_at(path)
        self.manifest = read_manifest(path)
        if not self.manifest.complete:
            raise InputError(
                f"{path} is not finished: a run of `vqgpt {_command(self.description)[0]}` is still writing it, "
                "or was interrupted",
                continue_hint(path, self.description),
            )
        for key, fault in metadata_faults(self.store, self.manifest).items():
            raise self._damaged(key, fault)

    def __repr__(self) -> str:
        what = self.description
        rows = " + ".join(f"{split.rows:,} {split.name}" for split in what.splits)
        grid = f"grid {what.grid[0]} x {what.grid[1]}, {what.codebook_size} codes"
        return f"TokenCache({self.path}: {what.dataset}, {what.origin}, {rows} rows, {grid})"

    @property
    def description(self) -> Description:
        """What the cache holds."""
        return self.manifest.description

    @property
    def digest(self) -> str:
        """Identity of the content: SHA-256 over the manifest."""
        return self.manifest.digest

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits, in order."""
        return tuple(split.name for split in self.description.splits)

    def rows(self, split: str) -> int:
        """Rows of a split. Raises InputError if there is no such split."""
        self._check_split(split)
        return self.description.layouts(split)["labels"].shape[0]

    def codebook(self) -> NDArray[np.float32]:
        """(K, D) float32."""
        layout = self.description.codebook_layout()
        codebook = _empty(layout, layout.shape[0])
        self._read_into(codebook, layout, CODEBOOK_FILE, self.manifest.files[CODEBOOK_FILE])
        return codebook

    def read_split(self, split: str, shards: Sequence[int] | None = None) -> SplitTokens:
        """A whole split, or the rows of some of its shards, in the order given.

        Raises InputError that names the first file that is not as it was written.
        """
        self._check_split(split)
        return SplitTokens(**self._read_arrays(split, self.description.layouts(split), shards))

    def labels(self, split: str) -> NDArray[np.integer]:
        """The labels alone of a whole split. Raises InputError as `read_split` does."""
        self._check_split(split)
        return self._read_arrays(split, {"labels": self.description.layouts(split)["labels"]}, None)["labels"]

    def _read_arrays(
        self, split: str, layouts: dict[str, ArrayLayout], shards: Sequence[int] | None
    ) -> dict[str, NDArray[Any]]:
        one = layouts["labels"]  # of arrays that are all cut into the same rows
        wanted = range(one.num_shards) if shards is None else shards
        self._check_size(split, layouts, wanted)
        ends = np.cumsum([0, *(one.rows_in(index) for index in wanted)]).tolist()
        arrays = {name: _empty(layout, ends[-1]) for name, layout in layouts.items()}

        def read(position: int) -> None:
            index, rows = wanted[position], slice(ends[position], ends[position + 1])
            shard = self.manifest.shards[split][index]
            for name, layout in layouts.items():
                key = f"{split}/{name}/{layout.shard_key(index)}"
                self._read_into(arrays[name][rows], layout, key, getattr(shard, name))
                if fault := _value_fault(name, arrays[name][rows], shard, self.description):
                    raise self._damaged(key, fault)

        with ThreadPoolExecutor(self.store.threads) as pool:
            list(pool.map(read, range(len(wanted))))
        return arrays

    def _check_split(self, split: str) -> None:
        if split not in self.split_names:
            raise InputError(f"{self.path} has no split {split!r}", f"it has: {', '.join(self.split_names)}")

    def _check_size(self, split: str, layouts: dict[str, ArrayLayout], wanted: Sequence[int]) -> None:
        """Raise InputError, before anything is allocated, if files are missing, or claim to hold absurdly many rows."""
        keys = [f"{split}/{name}/{layouts[name].shard_key(index)}" for index in wanted for name in layouts]
        sizes = self.store.sizes(keys)
        for key in keys:
            if key not in sizes:
                raise self._damaged(key, "is missing")
        stored = sum(sizes.values())
        rows = sum(layouts["labels"].rows_in(index) for index in wanted)
        needed = rows * sum(layout.row_bytes for layout in layouts.values())
        if needed > max(SMALL_SPLIT, LARGEST_RATIO * stored):
            raise self._damaged(split, f"claims {needed} bytes of rows in {stored} bytes of files")

    def _read_into(self, out: NDArray[Any], layout: ArrayLayout, key: str, file: StoredFile) -> None:
        fault, data = read_checked(self.store, key, file)
        if fault:
            raise self._damaged(key, fault)
        try:
            decode_shard(layout, data, out)
        except ValueError as error:
            raise self._damaged(key, f"does not decode: {error}") from None

    def _damaged(self, key: str, fault: str) -> InputError:
        return InputError(f"{self.path}: {key} {fault}", repair_hint(self.path, self.description))


def _value_fault(array: str, values: NDArray[Any], shard: Shard, description: Description) -> str:
    """What in the rows of a shard, decoded, cannot be, or ""."""
    if array == "codes" and values.max() != shard.max_code:
        return f"holds codes up to {values.max()}, the manifest says {shard.max_code}"
    if array == "labels" and description.label_kind != "none":
        lowest, highest = (0, 1) if description.label_kind == "bits" else (-1, len(description.class_names) - 1)
        if not lowest <= values.min() <= values.max() <= highest:
            return f"holds labels outside {lowest}..{highest}"
    if array == "log_prob" and not (np.isfinite(values) & (values <= 0)).all():
        return "holds numbers that are no logarithms of probabilities"
    return ""


def _empty(layout: ArrayLayout, rows: int) -> NDArray[Any]:
    return np.empty((rows, *layout.shape[1:]), np.dtype(layout.dtype).newbyteorder("<"))


def read_manifest(path: CachePath) -> Manifest:
    """The manifest of a cache that may be unfinished."""
    store = store_at(path)
    root = read_root(store, path)
    if root is not None:
        return from_document(root, str(path))
    if store.exists():
        hint = "make one with `vqgpt tokenize`, or give another path"
        raise InputError(f"{path} is not a token cache (it has no {ROOT})", hint)
    raise MissingDataError(f"there is no token cache {path}", "make one with `vqgpt tokenize` or `vqgpt sample`")


def read_root(store: Store, path: CachePath) -> bytes | None:
    """The root document of what is at `path`, or None if there is none. Raises InputError if it is absurdly large."""
    try:
        return store.read(ROOT, LARGEST_ROOT)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except TooLargeError:
        raise InputError(f"{path} is not a token cache (its {ROOT} is too large)", "give another path") from None


def identity_to_record(path: CachePath, identities: Sequence[str]) -> str:
    """Of the identities of one tokenizer, the one that the cache at `path` has already, else the first."""
    try:
        recorded = read_manifest(path).description.tokenizer_sha256
    except (MissingDataError, InputError):
        return identities[0]
    return recorded if recorded in identities else identities[0]


def repair_hint(path: CachePath, description: Description) -> str:
    """What to do about a cache with missing or damaged files. One that was imported cannot be made from images."""
    if description.origin == "encoded" and description.unverified:
        return continue_hint(path, description)
    return f"make just what is damaged again: vqgpt cache verify --repair {path}"


def continue_hint(path: CachePath, description: Description) -> str:
    """What to do about a cache that is not finished."""
    command, flag = _command(description)
    same_command = f"vqgpt {command} --dataset {description.dataset} {flag} {path}"
    return f"run the command that made it again, with its flags; it makes just what is missing: {same_command}"


def _command(description: Description) -> tuple[str, str]:
    if description.origin == "sampled":
        return "sample", "--out"
    return ("cache import", "--cache") if description.unverified else ("tokenize", "--cache")


def find_faults(path: CachePath) -> list[str]:
    """Everything that is wrong with the cache at `path`, a line each; empty if it is whole.

    Raises InputError if it is not a cache at all, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    store, expected = store_at(path), all_files(manifest)
    bad = metadata_faults(store, manifest) | find_bad(store, expected)
    faults = [] if manifest.complete else [UNFINISHED]
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
        if SplitStatistics.of(histogram) != cache.manifest.statistics[split]:
            faults.append(f"the statistics of {split} are not those of its codes")
    try:
        cache.codebook()
    except InputError as error:
        faults.append(error.message)
    return faults


def rows_by_shard(cache: TokenCache, split: str, rows: NDArray[np.integer]) -> Iterator[SplitTokens]:
    """These rows of a split, given by their numbers in rising order, shard by shard: one shard is in memory."""
    shard_of_row = rows // cache.description.shard_rows
    for shard in np.unique(shard_of_row).tolist():
        tokens = cache.read_split(split, [shard])
        inside = rows[shard_of_row == shard] - shard * cache.description.shard_rows
        yield SplitTokens(
            codes=tokens.codes[inside], labels=tokens.labels[inside], source_index=tokens.source_index[inside]
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of a split, by number, in one view: codes (n, h, w), labels (n,) or (n, L)."""

    rows: range
    codes: NDArray[np.unsignedinteger]
    labels: NDArray[np.integer]

    __repr__ = one_line


def parts_of(cache: TokenCache, split: str, view: int, rows: range, at_once: int) -> Iterator[Part]:
    """The rows, shard by shard, `at_once` at a time: the same parts whenever the same rows are asked for."""
    shard_rows = cache.description.shard_rows
    for shard in range(rows.start // shard_rows, (rows.stop - 1) // shard_rows + 1):
        first = shard * shard_rows
        tokens = cache.read_split(split, [shard])
        inside = range(max(rows.start, first), min(rows.stop, first + len(tokens.codes)))
        for start in range(inside.start, inside.stop, at_once):
            part = range(start, min(start + at_once, inside.stop))
            here = slice(part.start - first, part.stop - first)
            yield Part(rows=part, codes=tokens.codes[here, view], labels=tokens.labels[here])
