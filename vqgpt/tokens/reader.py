"""Reading a token cache: every byte is checked against the manifest before it is used.

    TokenCache(path).read_split("train") -> codes (N, V, h, w) uint8 or uint16, labels (N,) int64 or (N, L) uint8

Imports numpy and zarr only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, MissingDataError
from vqgpt.tokens.layout import ArrayLayout, decode_shards
from vqgpt.tokens.manifest import Description, Manifest, StoredFile, from_document
from vqgpt.tokens.stored_files import ROOT, array_files, read_checked


@dataclass(frozen=True, kw_only=True)
class SplitTokens:
    """One split in memory: codes (N, V, h, w), labels (N,) int64 (-1 for none) or (N, L) uint8, source_index (N,)."""

    codes: NDArray[np.unsignedinteger]
    labels: NDArray[np.integer]
    source_index: NDArray[np.int64]


class TokenCache:
    """A finished cache, opened for reading."""

    def __init__(self, path: Path) -> None:
        """Raises MissingDataError if there is nothing at `path`, InputError if it is no finished, intact cache."""
        self.path = path
        self.manifest = read_manifest(path)
        if not self.manifest.complete:
            raise InputError(
                f"{path} is not finished: a run of `vqgpt tokenize` is still writing it, or was interrupted",
                repair_hint(path, self.description),
            )

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

    def codebook(self) -> NDArray[np.float32]:
        """(K, D) float32."""
        layout = self.description.codebook_layout()
        key = f"codebook/{layout.shard_key(0)}"
        return self._decode(layout, {key: self.manifest.files[key]}).astype(np.float32, copy=False)

    def read_split(self, split: str) -> SplitTokens:
        """A whole split. Raises InputError that names the first file that is not as it was written."""
        if split not in self.split_names:
            raise InputError(f"{self.path} has no split {split!r}", f"it has: {', '.join(self.split_names)}")
        arrays = {
            name: self._decode(layout, array_files(self.manifest, split, name))
            for name, layout in self.description.layouts(split).items()
        }
        if arrays["codes"].size and int(arrays["codes"].max()) >= self.description.codebook_size:
            raise self._damaged(f"{split}/codes", "holds codes beyond the codebook")
        if self.description.label_kind == "class" and arrays["labels"].size:
            classes = len(self.description.class_names)
            if not -1 <= int(arrays["labels"].min()) <= int(arrays["labels"].max()) < classes:
                raise self._damaged(f"{split}/labels", f"holds labels outside the {classes} classes")
        return SplitTokens(**arrays)  # type: ignore[arg-type]

    def _decode(self, layout: ArrayLayout, files: dict[str, StoredFile]) -> NDArray[np.generic]:
        data = [self._read(key, file) for key, file in files.items()]
        try:
            return decode_shards(layout, data)
        except (ValueError, RuntimeError):
            raise self._damaged(" or ".join(files), "does not decode") from None

    def _read(self, key: str, file: StoredFile) -> bytes:
        fault, data = read_checked(self.path / key, file)
        if fault:
            raise self._damaged(key, fault)
        return data

    def _damaged(self, key: str, fault: str) -> InputError:
        return InputError(f"{self.path}: {key} {fault}", repair_hint(self.path, self.description))


def read_manifest(path: Path) -> Manifest:
    """The manifest of a cache that may be unfinished."""
    root = path / ROOT
    if not path.exists():
        raise MissingDataError(f"there is no token cache {path}", "make one with `vqgpt tokenize` or `vqgpt sample`")
    if not root.is_file():
        raise InputError(
            f"{path} is not a token cache (it has no {ROOT})", "make one with `vqgpt tokenize`, or give another --cache"
        )
    return from_document(root.read_bytes(), str(path))


def repair_hint(path: Path, description: Description) -> str:
    """What to do about a cache with missing or damaged files."""
    command, flag = ("tokenize", "--cache") if description.origin == "encoded" else ("sample", "--out")
    same_command = f"vqgpt {command} --dataset {description.dataset} {flag} {path}"
    return f"run the command that made it again, with its flags; it makes just what is missing: {same_command}"
