"""`vqgpt cache export`: a token cache in formats that others read.

    npy          SPLIT_codes.npy (N, V, h, w) uint8 or uint16, SPLIT_labels.npy, SPLIT_source_index.npy, codebook.npy
    npz          the same arrays in one file, uncompressed
    bin          SPLIT.bin: raw little-endian uint16, h*w tokens per view, V views per image; SPLIT_labels.npy
    webdataset   SPLIT-NNNNNN.tar: per image KEY.codes.npy (V, h, w) and KEY.cls, or KEY.labels.npy of bits

Beside them lies about.json (in the npz: the array `about`): the description of the cache, and its digest. The rows pass
shard by shard, each checked as it is read.
"""

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from vqgpt.options.codec import to_json
from vqgpt.options.definition import CACHE, DATA, ONLY_SPLIT, Command, Flags, check, option, out_option
from vqgpt.options.paths import CachePath, beside
from vqgpt.progress import Progress, Report
from vqgpt.storage.files import canonical_json, folder_atomically, open_atomically
from vqgpt.storage.write_lock import check_place, sole_writer

if TYPE_CHECKING:
    import tarfile

    from vqgpt.tokens import SplitTokens, TokenCache

ABOUT = "about.json"

Files = dict[str, Callable[[BinaryIO], Any]]  # what writes each file, by name


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`vqgpt cache export`."""

    cache: CachePath = CACHE
    format: Literal["npy", "npz", "bin", "webdataset"] = option(
        "npy",
        "What to write. npy: a file per array; npz: all arrays in one file; bin: raw tokens as nanoGPT reads them; "
        "webdataset: tar files with a sample per image.",
        group=DATA,
    )
    split: str | None = ONLY_SPLIT
    out: Path | None = out_option("The folder to write, or the .npz file", "the cache's name with -FORMAT, or .npz")

    def __post_init__(self) -> None:
        named = self.out is None or (self.out.suffix == ".npz") == (self.format == "npz")
        check(named, "out", self.out, "a file name that ends in .npz for --format npz, and a folder for the others")

    @property
    def result(self) -> Path:
        """The file or folder to write."""
        ending = ".npz" if self.format == "npz" else f"-{self.format}"
        return self.out or beside(self.cache, self.cache.stem + ending)


def run(config: ExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a cache in a format that others read: npy, npz, nanoGPT's bin, WebDataset."""
    from vqgpt.tokens import TokenCache

    cache = TokenCache(config.cache)
    splits = cache.split_names if config.split is None else (config.split,)
    rows = sum(cache.rows(split) for split in splits)
    about = _about(cache, splits, config.format)
    files = _files(config, cache, splits, about)
    names = None if config.format == "npz" else files.keys()
    check_place(config.result, config, flags.overwrite, names)
    plan = {"out": config.result, "rows": rows, "files": sorted(files)}
    if flags.dry_run:
        return plan
    with sole_writer(config.result, config, flags.overwrite, names):
        if names is None:
            _write_files(files, config.result.parent, report)
        else:
            with folder_atomically(config.result) as folder:
                _write_files(files, folder, report)
    return plan


def _write_files(files: Files, folder: Path, report: Report) -> None:
    for done, (name, write) in enumerate(files.items(), start=1):
        with open_atomically(folder / name) as file:
            write(file)
        report(Progress(task="export", done=done, total=len(files), unit="files"))


def _about(cache: "TokenCache", splits: tuple[str, ...], form: str) -> dict[str, Any]:
    description = cache.description
    return {
        "format": form,
        "cache_digest": cache.digest,
        "splits": {split: cache.rows(split) for split in splits},
        "views_height_width": [len(description.views), *description.grid],
        "vocab_size": description.codebook_size,
        "description": to_json(description),
    }


def _files(config: ExportConfig, cache: "TokenCache", splits: tuple[str, ...], about: Mapping[str, Any]) -> Files:
    """Every file of the export, in the order of writing."""
    match config.format:
        case "npz":
            return {config.result.name: partial(_write_npz, cache, splits, about)}
        case "npy":
            files: Files = {
                f"{split}_{name}.npy": partial(_write_npy, cache, split, name)
                for split in splits
                for name in cache.description.layouts(split)
            }
            files["codebook.npy"] = lambda file: file.write(_npy_bytes(cache.codebook()))
        case "bin":
            files = {f"{split}.bin": partial(_write_bin, cache, split) for split in splits}
            files |= {f"{split}_labels.npy": partial(_write_npy, cache, split, "labels") for split in splits}
        case "webdataset":
            files = {
                f"{split}-{index:06d}.tar": partial(_write_tar, cache, split, index)
                for split in splits
                for index in sorted(cache.manifest.shards[split])
            }
    return {**files, ABOUT: lambda file: file.write(canonical_json(about))}


def _shards(cache: "TokenCache", split: str) -> Iterator["SplitTokens"]:
    for index in sorted(cache.manifest.shards[split]):
        yield cache.read_split(split, [index])


def _write_npy(cache: "TokenCache", split: str, name: str, file: BinaryIO) -> None:
    """One array of a split, as a .npy file."""
    import numpy as np

    layout = cache.description.layouts(split)[name]
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    header = {"descr": dtype.str, "fortran_order": False, "shape": layout.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for tokens in _shards(cache, split):
        file.write(getattr(tokens, name).astype(dtype, copy=False).tobytes())


def _write_bin(cache: "TokenCache", split: str, file: BinaryIO) -> None:
    for tokens in _shards(cache, split):
        file.write(tokens.codes.astype("<u2").tobytes())


def _write_npz(cache: "TokenCache", splits: tuple[str, ...], about: Mapping[str, Any], file: BinaryIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:

        def member(name: str) -> Any:
            return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # no time of day in it

        for split in splits:
            for name in cache.description.layouts(split):
                with member(f"{split}_{name}") as inner:
                    _write_npy(cache, split, name, inner)
        with member("codebook") as inner:
            inner.write(_npy_bytes(cache.codebook()))
        with member("about") as inner:
            inner.write(_npy_bytes(canonical_json(about).decode()))


def _write_tar(cache: "TokenCache", split: str, index: int, file: BinaryIO) -> None:
    """One shard: a sample per image, whose key is the split and the row."""
    import tarfile

    kind = cache.description.label_kind
    tokens = cache.read_split(split, [index])
    first = cache.description.layouts(split)["codes"].shard_slice(index).start
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row, (codes, label) in enumerate(zip(tokens.codes, tokens.labels, strict=True), start=first):
            key = f"{split}-{row:09d}"
            _add(archive, f"{key}.codes.npy", _npy_bytes(codes))
            if kind == "class":
                _add(archive, f"{key}.cls", str(label).encode())
            elif kind == "bits":
                _add(archive, f"{key}.labels.npy", _npy_bytes(label))


def _add(archive: "tarfile.TarFile", name: str, data: bytes) -> None:
    import tarfile

    member = tarfile.TarInfo(name)  # whose time, owner and group are 0
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _npy_bytes(values: Any) -> bytes:
    """An array, or what makes one, as a .npy file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


COMMAND = Command(words="cache export", config=ExportConfig, run=run)
