"""Writing a token cache, shard by shard, so that it can be interrupted at any instant and continued.

For each shard: its files, whole and durable; then the manifest the same way. The manifest is the commit.
Opening a cache that exists continues it: listed shards whose files hold their digests stay, all others are missing.
Several processes may store shards of one cache; one of them commits. The caller holds the cache's lock; where that is
a lease, which can be lost, `check_may_write` is its `check`. Imports numpy and zarr only.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError
from vqgpt.options.codec import differences, to_json
from vqgpt.options.paths import CachePath
from vqgpt.storage.files import PARTIAL_SUFFIX, canonical_json, sha256
from vqgpt.storage.write_lock import may_always_write
from vqgpt.tokens.arrays import array_metadata, count_codes, decode_shard, encode_shard
from vqgpt.tokens.manifest import CODEBOOK_FILE, Description, Manifest, Shard, Split, SplitStatistics, StoredFile
from vqgpt.tokens.reader import read_manifest, read_root
from vqgpt.tokens.store import (
    ROOT,
    DamagedManifestError,
    Store,
    all_files,
    find_bad,
    from_document,
    read_checked,
    shard_files,
    store_at,
    to_document,
)

USUAL_SPLITS = ("train", "val", "test", "samples")
GROUP_DOCUMENT = canonical_json({"zarr_format": 3, "node_type": "group", "attributes": {}})


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """Which rows one shard holds: `start` to `stop` of `split`."""

    split: str
    index: int
    start: int
    stop: int


class CacheWriter:
    """A writer of a cache. Make it with `create_or_resume`; write `missing()` shards in any order.

    Further processes of the same run make theirs with `join`, and hand what they `store` to the first to `commit`.
    """

    def __init__(
        self, path: CachePath, manifest: Manifest, check_may_write: Callable[[], None] = may_always_write
    ) -> None:
        self.path = path
        self.place = store_at(path, check_may_write)
        self.manifest = manifest

    @classmethod
    def create_or_resume(
        cls,
        path: CachePath,
        description: Description,
        codebook: NDArray[np.float32],
        versions: dict[str, str],
        overwrite: bool = False,
        check_may_write: Callable[[], None] = may_always_write,
    ) -> "CacheWriter":
        """Start the cache at `path`, or continue the one that is there; `codebook` is (K, D) float32.

        With `overwrite`, a finished or different cache is removed first. Raises InputError if something else is there:
        without `overwrite` a cache of another description (both sides are shown), and in any case other files.
        """
        store = store_at(path, check_may_write)
        store.check_no_links()
        root = read_root(store, path)
        if overwrite and root is not None and not _is_unfinished(root, description):
            remove_cache(path, check_may_write)
            root = None
        if root is not None:
            manifest = from_document(root, str(path))
            _check_same_work(path, description, manifest.description)
        else:
            _remove_uncommitted_files(store, path, description)
            shards: dict[str, dict[int, Shard]] = {split.name: {} for split in description.splits}
            manifest = Manifest(description=description, versions=versions, files={}, shards=shards, statistics={})
        store.tidy()
        writer = cls(path, _without(find_bad(store, all_files(manifest)), manifest), check_may_write)
        writer._write_fixed_files(codebook)
        if not writer.manifest.has_all_shards:
            store.check_can_write()
        return writer

    @classmethod
    def join(
        cls, path: CachePath, description: Description, check_may_write: Callable[[], None] = may_always_write
    ) -> "CacheWriter":
        """A second writer of a cache that another process of this run has just set up. Raises InputError."""
        manifest = read_manifest(path)
        _check_same_work(path, description, manifest.description)
        return cls(path, manifest, check_may_write)

    def _write_fixed_files(self, codebook: NDArray[np.float32]) -> None:
        """All that does not depend on the images, but for what is there: metadata of groups and arrays, codebook."""
        description = self.manifest.description
        layouts = description.all_layouts()
        contents = {f"{split.name}/zarr.json": GROUP_DOCUMENT for split in description.splits}
        contents |= {f"{folder}/zarr.json": array_metadata(layout) for folder, layout in layouts.items()}
        contents[CODEBOOK_FILE] = encode_shard(layouts["codebook"], codebook)
        files = {key: self.manifest.files.get(key) or self._store(key, data) for key, data in contents.items()}
        self._commit(replace(self.manifest, files=files))

    def missing(self) -> Iterator[ShardRows]:
        """The shards that are not committed yet, in order."""
        for split in self.manifest.description.splits:
            layout = self.manifest.description.layouts(split.name)["codes"]
            for index in range(layout.num_shards):
                if index not in self.manifest.shards[split.name]:
                    rows = layout.shard_slice(index)
                    yield ShardRows(split=split.name, index=index, start=rows.start, stop=rows.stop)

    def write(
        self,
        shard: ShardRows,
        codes: NDArray[np.integer],
        labels: NDArray[np.integer],
        source_index: NDArray[np.integer],
        log_prob: NDArray[np.float32] | None = None,
    ) -> None:
        """Store and commit one shard."""
        self.commit({(shard.split, shard.index): self.store(shard, codes, labels, source_index, log_prob)})

    def store(
        self,
        shard: ShardRows,
        codes: NDArray[np.integer],
        labels: NDArray[np.integer],
        source_index: NDArray[np.integer],
        log_prob: NDArray[np.float32] | None = None,
    ) -> Shard:
        """Bring one shard of n rows to disk: codes (n, V, h, w), labels (n,) or (n, L), source_index (n,).

        log_prob (n,), in nats, is needed where the description has it.
        It is not part of the cache before it is committed. Codes out of 0..K-1 are a bug of the caller (zarr would wrap
        them silently), and raise ValueError.
        """
        description = self.manifest.description
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < description.codebook_size:
            raise ValueError(f"codes {codes.min()}..{codes.max()} are not all in 0..{description.codebook_size - 1}")
        rows: dict[str, NDArray[Any]] = {"codes": codes, "labels": labels, "source_index": source_index}
        if log_prob is not None:
            rows["log_prob"] = log_prob
        layouts = description.layouts(shard.split)
        assert set(rows) == set(layouts)
        files = {}
        for name, layout in layouts.items():
            assert len(rows[name]) == shard.stop - shard.start
            data = encode_shard(layout, rows[name].astype(layout.dtype))
            files[name] = self._store(f"{shard.split}/{name}/{layout.shard_key(shard.index)}", data)
        return Shard(rows=len(codes), max_code=int(codes.max()), **files)

    def commit(self, shards: Mapping[tuple[str, int], Shard]) -> None:
        """Make stored shards, by (split, index), part of the cache; with the last of them it is complete."""
        self._commit(self.manifest.with_shards(shards))

    def _store(self, key: str, data: bytes) -> StoredFile:
        self.place.write(key, data)
        return StoredFile(bytes=len(data), sha256=sha256(data))

    def _commit(self, manifest: Manifest) -> None:
        if manifest.has_all_shards and not manifest.complete:
            manifest = replace(manifest, statistics=self._read_back(manifest))
        document = to_document(manifest)
        if read_root(self.place, self.path) != document:
            self.place.write(ROOT, document)
        self.manifest = manifest

    def _read_back(self, manifest: Manifest) -> dict[str, SplitStatistics]:
        """The statistics of all splits, from what is on disk. Raises InputError if that is not what was written."""
        statistics = {}
        for split, shards in manifest.shards.items():
            layout = manifest.description.layouts(split)["codes"]
            histogram = np.zeros(manifest.description.codebook_size, np.int64)
            for index, shard in shards.items():
                key = f"{split}/codes/{layout.shard_key(index)}"
                fault, data = read_checked(self.place, key, shard.codes)
                if fault:
                    raise InputError(f"{self.path}: {key} {fault}", "check the disk, and run the same command again")
                codes = np.empty((shard.rows, *layout.shape[1:]), layout.dtype)
                decode_shard(layout, data, codes)
                histogram += count_codes(codes, len(histogram))
            statistics[split] = SplitStatistics.of(histogram)
        return statistics


def remove_cache(path: CachePath, check_may_write: Callable[[], None] = may_always_write) -> None:
    """Delete the cache at `path`; its root goes first, so that no half of a cache can be opened.

    Raises what `files_to_remove` raises, before anything is deleted.
    """
    store = store_at(path, check_may_write)
    if ROOT in files_to_remove(path):
        store.delete([ROOT])
    store.clear()


def files_to_remove(path: CachePath) -> dict[str, int]:
    """Every file of the cache at `path`, finished, unfinished, damaged or half deleted, with its bytes.

    Raises MissingDataError if there is nothing, InputError if it is no token cache of ours, or holds anything else.
    """
    store = store_at(path)
    splits: tuple[Split, ...] = ()
    half_deleted = False
    with contextlib.suppress(InputError):  # the place is a file
        half_deleted = store.exists() and path.suffix == ".zarr" and not stranger_among(store.files(), ())
    if read_root(store, path) is not None or not half_deleted:
        with contextlib.suppress(DamagedManifestError):
            splits = read_manifest(path).description.splits
    files = store.files()
    if stranger := stranger_among(files, splits):
        raise InputError(f"{path} holds {stranger}, which does not belong to a token cache", "move it elsewhere")
    store.check_no_links()
    return files


def _without(bad: Mapping[str, str], manifest: Manifest) -> Manifest:
    """The manifest without the bad files, and without shards that have any."""
    shards: dict[str, dict[int, Shard]] = {split: {} for split in manifest.shards}
    for split, of_split in manifest.shards.items():
        for index, shard in of_split.items():
            if bad.keys().isdisjoint(shard_files(manifest.description, split, index, shard)):
                shards[split][index] = shard
    files = {key: file for key, file in manifest.files.items() if key not in bad}
    statistics = manifest.statistics if shards == manifest.shards else {}
    return replace(manifest, files=files, shards=shards, statistics=statistics)


def _is_unfinished(root: bytes, description: Description) -> bool:
    """True if the cache with this root document is the same work, begun, and can be continued."""
    try:
        manifest = from_document(root, "")
    except InputError:
        return False
    return manifest.description == description and not manifest.complete


def _check_same_work(path: CachePath, ours: Description, theirs: Description) -> None:
    if different := differences(to_json(ours), to_json(theirs)):
        raise InputError(f"{path} holds other tokens ({different})", "give another path, or --overwrite to replace it")


def _remove_uncommitted_files(store: Store, path: CachePath, description: Description) -> None:
    """Clear what a run left that was killed before its first commit. Raises InputError if any other file is there."""
    files = store.files()
    if stranger := stranger_among(files, description.splits):
        raise InputError(f"{path} is not a token cache (it holds {stranger})", "give another path")
    store.delete(files)


def stranger_among(keys: Iterable[str], splits: Iterable[Split]) -> str:
    """The first of the files that no writer of a cache of these splits, or of the usual ones, makes; "" if none is."""
    names = "|".join(map(re.escape, {"codebook", *USUAL_SPLITS, *(split.name for split in splits)}))
    partial = rf"(.*/)?\.[^/]*{re.escape(PARTIAL_SUFFIX)}"
    own_file = re.compile(rf"{re.escape(ROOT)}|({names})/(\w+/)?(zarr\.json|c(/\d+)+)|{partial}")
    return next((key for key in keys if not own_file.fullmatch(key)), "")
