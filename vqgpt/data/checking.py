"""One pass over image files before they are encoded: their content's digest, and which are broken.

A broken image is found here, and not after hours of encoding. Must not import torch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from vqgpt.data.decoding import BrokenImageError, no_decoder_warnings
from vqgpt.data.images import FileImages, ImageDataset
from vqgpt.data.threads import ordered_map
from vqgpt.errors import InputError, printable
from vqgpt.progress import Notice, Progress, Report

MOST_BROKEN = 0.01  # share of the images that may be left out
FILES_AHEAD_PER_WORKER = 8


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a file told; `fault` is empty if it can be used."""

    sha256: bytes
    grey: bool = True
    fault: str = ""


def check_images(dataset: ImageDataset, skip_broken: bool, workers: int, report: Report) -> ImageDataset:
    """The dataset with its content in its digest, and 1 channel if no image has colors.

    Every image is decoded. Raises InputError that names the first broken one or, with `skip_broken`, if more than 1 %
    are; else those are left out, listed and told. Raises OSError for one that may not be read: that is no fault of it.
    """
    total = sum(len(split) for split in dataset.splits.values())
    digest = hashlib.sha256(dataset.sha256.encode())
    splits, skipped, grey, done = {}, [], True, 0
    for name, split in dataset.splits.items():
        assert isinstance(split.source, FileImages)
        usable = []
        for row, seen in enumerate(_looks(split.source, workers)):
            done += 1
            digest.update(seen.sha256)
            grey = grey and seen.grey
            if not seen.fault:
                usable.append(row)
            elif skip_broken:
                skipped.append((printable(split.source.names[row]), seen.fault))
            else:
                raise split.source.broken(row, seen.fault)
            report(Progress(task="check images", done=done, total=total, unit="images"))
        splits[name] = split.subset(usable)
    _tell_of_broken(skipped, total, report)
    names = tuple(name for name, _ in skipped)
    channels = 1 if grey else dataset.channels
    return replace(dataset, splits=splits, sha256=digest.hexdigest(), skipped=names, channels=channels)


def _looks(source: FileImages, workers: int) -> Iterator[Look]:
    with no_decoder_warnings():
        yield from ordered_map(partial(_look, source), range(len(source)), workers, FILES_AHEAD_PER_WORKER * workers)


def _look(source: FileImages, index: int) -> Look:
    sha256 = b""
    try:
        data = source.tree.read(source.names[index])
        sha256 = hashlib.sha256(data).digest()
        return Look(sha256=sha256, grey=source.decoded(data).mode == "L")
    except BrokenImageError as error:
        return Look(sha256=sha256, fault=str(error))


def _tell_of_broken(skipped: list[tuple[str, str]], total: int, report: Report) -> None:
    if not skipped:
        return
    some = ", ".join(f"{name} ({fault})" for name, fault in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    number = f"{len(skipped):,} of {total:,} images {'is' if len(skipped) == 1 else 'are'} broken"
    if len(skipped) > MOST_BROKEN * total:
        raise InputError(f"{number}, more than 1 %: {some}", "replace or remove them")
    report(Notice(text=f"{number} and left out: {some}"))
