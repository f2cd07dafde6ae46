"""The check of one's own image files: one pass over all of them, before they are encoded.

    ImageDataset  ->  the same, with its content in its digest and without the images that are broken

So what is broken is known then, and not after hours of encoding. Must not import torch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from vqgpt.data.decoding import BrokenImageError, decode, no_decoder_warnings
from vqgpt.data.images import FILES_AHEAD_PER_WORKER, FileImages, ImageDataset, ordered_map
from vqgpt.errors import InputError, printable
from vqgpt.progress import Notice, Progress, Report

MOST_BROKEN = 0.01  # share of the images that may be left out


def check_images(dataset: ImageDataset, skip_broken: bool, workers: int, report: Report) -> ImageDataset:
    """The dataset with its content in its digest, and 1 channel if no image has colors.

    Every image is decoded. Raises InputError that names the first broken one or, with `skip_broken`, if more than 1 %
    are; else they are left out and reported. Raises OSError for one that may not be read: that is no fault of it.
    """
    total = sum(len(split) for split in dataset.splits.values())
    content = hashlib.sha256(dataset.sha256.encode())
    splits, skipped, grey, done = {}, [], True, 0
    for name, split in dataset.splits.items():
        assert isinstance(split.source, FileImages)
        usable = []
        for row, (sha256, is_grey, fault) in enumerate(_inspections(split.source, workers)):
            done += 1
            content.update(sha256)
            grey = grey and is_grey
            if not fault:
                usable.append(row)
            elif skip_broken:
                skipped.append((printable(split.source.names[row]), fault))
            else:
                raise split.source.broken(row, fault)
            report(Progress(task="check images", done=done, total=total, unit="images"))
        splits[name] = split.subset(usable)
    _report_broken(skipped, total, report)
    names = tuple(name for name, _ in skipped)
    channels = 1 if grey else dataset.channels
    return replace(dataset, splits=splits, sha256=content.hexdigest(), skipped=names, channels=channels)


def _inspections(source: FileImages, workers: int) -> Iterator[tuple[bytes, bool, str]]:
    ahead = FILES_AHEAD_PER_WORKER * workers
    with no_decoder_warnings():
        yield from ordered_map(partial(_inspect, source), range(len(source)), workers, ahead)


def _inspect(source: FileImages, index: int) -> tuple[bytes, bool, str]:
    """A file's SHA-256 digest, False if it has colors, and what is wrong with it: "" if it can be used."""
    sha256 = b""
    try:
        data = source.tree.read(source.names[index])
        sha256 = hashlib.sha256(data).digest()
        return sha256, decode(data, source.background).mode == "L", ""
    except BrokenImageError as error:
        return sha256, True, str(error)


def _report_broken(skipped: list[tuple[str, str]], total: int, report: Report) -> None:
    if not skipped:
        return
    some = ", ".join(f"{name} ({fault})" for name, fault in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    number = f"{len(skipped):,} of {total:,} images {'is' if len(skipped) == 1 else 'are'} broken"
    if len(skipped) > MOST_BROKEN * total:
        raise InputError(f"{number}, more than 1 %: {some}", "replace or remove them")
    report(Notice(text=f"{number} and left out: {some}"))
