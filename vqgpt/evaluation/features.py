"""Features of a set of images: computed once, kept beside the images, and read again in bounded memory.

    ImageSet, Extractor  --make_features-->  STEM-EXTRACTOR.npz  --read_features-->  Features

The file has features (N, d) float32, digests (N, 16) uint8 of the pixels, sharpness (N,) float32, and `about`: JSON
with the digests of the images and of the extractor's weights, and the preprocessing. Features are never taken from a
file whose `about` is another, or which is damaged. A run that is killed goes on where it was. Several processes share
the batches; the main one writes.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.data.image_sets import ImageSet, drawn_rows
from vqgpt.errors import InputError
from vqgpt.evaluation.distances import Moments, moments_of_batches
from vqgpt.evaluation.extractors import Extractor
from vqgpt.evaluation.pixels import DIGEST_BYTES, pixel_digests, sharpness
from vqgpt.options.codec import one_line
from vqgpt.options.paths import RUNS_FOLDER
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.device import gather_to_main, of_main, rank, world_size
from vqgpt.storage.files import (
    canonical_json,
    check_can_be_written,
    make_folder,
    open_atomically,
    open_regular,
    partial_path,
    place_of,
    user_cache_folder,
)
from vqgpt.storage.write_lock import WriteLock

FORMAT = 1
ROWS_IN_MEMORY = 50_000
ROWS_AT_ONCE = 4096
IMAGES_AT_ONCE = 64
DAMAGE = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # of a member too


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of `count` images: the moments of all, and of up to 50,000 their values (n, d) float32.

    `rows` (n,) are the numbers of those, which are drawn at random. `digests` (N, 16) of the pixels and `sharpness`
    (N,) are of all.
    """

    about: dict[str, Any]
    moments: Moments
    rows: NDArray[np.int64]
    values: Tensor
    digests: NDArray[np.uint8]
    sharpness: NDArray[np.float32]

    __repr__ = one_line

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.digests)


def about_features(images: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """What decides the features, and is kept with them."""
    return {
        "format": FORMAT,
        "images": images.sha256,
        "count": len(images),
        "dimensions": extractor.dimensions,
        "extractor": extractor.kind,
        "weights": extractor.sha256,
        "preprocessing": extractor.preprocessing,
    }


def make_features(images: ImageSet, extractor: Extractor, report: Report) -> Path:
    """The file with the features of these images, which is made if it is not there.

    All processes of a run call it together. Raises NonFiniteError for images of which the extractor makes no numbers,
    and what reading the images raises.
    """
    place = of_main(_place_for(images, extractor) if rank() == 0 else None)
    assert place is not None
    about = about_features(images, extractor)
    if rank() > 0:
        if not of_main(False):
            _compute(images, extractor, about, place, report)
        return place
    with WriteLock(place) as lock:
        lock.wait()  # another run may be making the same
        kept = of_main(is_kept(place, about))
        if kept:
            _rows_path(place).unlink(missing_ok=True)  # of a run that was killed at its very end
            report(Notice(text=f"features of {images.name} are taken from {place}"))
        else:
            _compute(images, extractor, about, place, report)
    return place


def features_of(images: ImageSet, extractor: Extractor, report: Report) -> Features | None:
    """The features of a set, made or kept; None but in the main process. All processes of a run call it together.

    Raises what `make_features` raises, and InputError if another run has put others in their place in between.
    """
    path = make_features(images, extractor, report)
    if rank() > 0:
        return None
    found = read_features(path)
    if found.about != about_features(images, extractor):
        raise InputError(f"{path} holds features of other images by now", "run the command again, alone")
    return found


def _place_for(images: ImageSet, extractor: Extractor) -> Path:
    """Beside the images; where nothing can be written there, in the user's cache folder."""
    if images.features_stem is not None:
        place = images.features_stem.with_name(f"{images.features_stem.name}-{extractor.kind}.npz")
        try:
            check_can_be_written(place)
        except OSError:
            pass
        else:
            return place
    name = f"{images.sha256[:24]}-{extractor.kind}.npz"
    try:
        return user_cache_folder() / "features" / name
    except RuntimeError:  # no home is known
        return RUNS_FOLDER / "features" / name


def is_kept(path: Path, about: dict[str, Any]) -> bool:
    """True if the file holds whole features of just this kind."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
            return stored and read_about(archive) == about and _fits(archive, about) and archive.testzip() is None
    except (OSError, *DAMAGE):
        return False


def _fits(archive: zipfile.ZipFile, about: dict[str, Any]) -> bool:
    """True if the arrays of an opened .npz file have the shapes and types of features like these."""
    count = about["count"]
    expected = {
        "features": ((count, about["dimensions"]), "<f4"),
        "digests": ((count, DIGEST_BYTES), "|u1"),
        "sharpness": ((count,), "<f4"),
    }
    found = {}
    for name in expected:
        with archive.open(f"{name}.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            found[name] = (shape, dtype.str)
    return found == expected


def read_about(archive: zipfile.ZipFile) -> dict[str, Any]:
    """What features in an opened .npz file are of. Raises KeyError or ValueError if it holds none."""
    with archive.open("about.npy") as member:
        text = np.lib.format.read_array(member, allow_pickle=False)
    found = json.loads(str(text))
    if not isinstance(found, dict):
        raise ValueError("about is no object")
    return found


def _compute(images: ImageSet, extractor: Extractor, about: dict[str, Any], place: Path, report: Report) -> None:
    """Compute what is not done yet: batches go around the processes; each row is kept as soon as it is there."""
    record = np.dtype(
        [("features", "<f4", (extractor.dimensions,)), ("digest", "u1", (DIGEST_BYTES,)), ("sharpness", "<f4")]
    )
    partial = _rows_path(place)
    header = json.dumps(about).encode() + b"\n"
    at_once, processes = IMAGES_AT_ONCE, world_size()
    done = of_main(_rows_done(partial, header, record, at_once) if rank() == 0 else 0)
    mine = images.batches(at_once, first=done // at_once + rank(), step=processes)
    while done < len(images):
        batch = next(mine, None)
        rows = b"" if batch is None else _rows_of(batch, extractor, record).tobytes()
        parts = gather_to_main(rows)
        if parts:
            with open(partial, "ab") as file:
                file.write(b"".join(parts))
        done += min(at_once * processes, len(images) - done)
        report(Progress(task=f"{extractor.kind} {images.name}", done=done, total=len(images), unit="images"))
    if rank() == 0:
        _finish(partial, len(header), record, about, place)
    of_main(None)  # the others wait until it is there


def _rows_path(place: Path) -> Path:
    """Where the rows of a computation are kept until all are there."""
    whole = place_of(place)
    return partial_path(whole.with_name(f"{whole.name}.rows"))


def _rows_done(partial: Path, header: bytes, record: np.dtype[Any], at_once: int) -> int:
    """How many rows an interrupted run left, in whole batches; the file then has those and nothing else."""
    make_folder(partial.parent)
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        partial.unlink()  # a link, or a pipe, is not ours
    with open(partial, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        done = 0
        if file.read(len(header)) == header:
            done = (size - len(header)) // record.itemsize // at_once * at_once
        else:
            file.truncate(0)
            file.write(header)
            file.flush()
        file.truncate(len(header) + done * record.itemsize)
    return done


def _rows_of(batch: NDArray[np.uint8], extractor: Extractor, record: np.dtype[Any]) -> NDArray[Any]:
    rows = np.empty(len(batch), record)
    rows["features"] = extractor.compute(torch.from_numpy(batch)).cpu().numpy()
    rows["digest"], rows["sharpness"] = pixel_digests(batch), sharpness(batch)
    return rows


def _finish(partial: Path, start: int, record: np.dtype[Any], about: dict[str, Any], place: Path) -> None:
    """Turn the rows of a computation into the .npz file."""
    rows = np.memmap(partial, record, "r", offset=start)
    with open_atomically(place) as file, zipfile.ZipFile(file, "w") as archive:
        for name, field in (("features", "features"), ("digests", "digest"), ("sharpness", "sharpness")):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                column = rows[field]
                header = {"descr": column.dtype.str, "fortran_order": False, "shape": column.shape}
                np.lib.format.write_array_header_1_0(member, header)
                for first in range(0, len(rows), ROWS_AT_ONCE):
                    member.write(np.ascontiguousarray(column[first : first + ROWS_AT_ONCE]).tobytes())
        with archive.open(zipfile.ZipInfo("about.npy"), "w") as member:
            np.lib.format.write_array(member, np.array(canonical_json(about).decode()), allow_pickle=False)
    partial.unlink()


def read_features(path: Path) -> Features:
    """What `make_features` has written. Raises InputError if it is damaged."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            about = read_about(archive)
            with archive.open("digests.npy") as member:
                digests = np.lib.format.read_array(member, allow_pickle=False)
            with archive.open("sharpness.npy") as member:
                of_pixels = np.lib.format.read_array(member, allow_pickle=False)
            chosen = drawn_rows(len(digests), ROWS_IN_MEMORY)
            kept: list[Tensor] = []
            with archive.open("features.npy") as member:
                moments = moments_of_batches(_batches(member, chosen, kept))
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({error})", "delete it, and run the command again") from None
    values = torch.cat(kept)
    return Features(about=about, moments=moments, rows=chosen, values=values, digests=digests, sharpness=of_pixels)


def _batches(member: IO[bytes], chosen: NDArray[np.int64], kept: list[Tensor]) -> Iterator[Tensor]:
    """The rows of an array in blocks; those that are `chosen` are added to `kept`."""
    np.lib.format.read_magic(member)
    (count, dimensions), _, dtype = np.lib.format.read_array_header_1_0(member)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, count - start)
        data = member.read(rows * dimensions * dtype.itemsize)
        block = torch.from_numpy(np.frombuffer(data, dtype).reshape(rows, dimensions).copy())
        here = chosen[(chosen >= start) & (chosen < start + rows)] - start
        kept.append(block[torch.from_numpy(here)])
        yield block
