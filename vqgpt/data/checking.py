"""One pass over image files before they are encoded: their content's digest, and which are broken.

Must not import torch.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import partial

from vqgpt.data.decoding import BrokenImageError, decode, is_grey, no_decoder_warnings
from vqgpt.data.images import FileImages, ImageDataset
from vqgpt.data.threads import ordered_map
from vqgpt.errors import InputError
from vqgpt.progress import Progress, Report

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

    With `skip_broken` every image is decoded, and those that cannot be are left out and listed; without it only their
    headers are read, and InputError names the first broken one. InputError too if more than 1 % are broken.
    """
    total = sum(len(split) for split in dataset.splits.values())
    digest = hashlib.sha256(dataset.sha256.encode())
    splits, skipped, grey, done = {}, [], True, 0
    with no_decoder_warnings():
        for name, split in dataset.splits.items():
            assert isinstance(split.source, FileImages)
            ahead = FILES_AHEAD_PER_WORKER * workers
            look_at = partial(look, split.source, thoroughly=skip_broken)
            usable: list[bool] = []
            for seen in ordered_map(look_at, range(len(split.source)), workers, ahead):
                row, done = len(usable), done + 1
                usable.append(not seen.fault)
                if seen.fault and not skip_broken:
                    raise split.source.broken(row, seen.fault)
                if seen.fault:
                    skipped.append(split.source.names[row])
                digest.update(seen.sha256)
                grey = grey and seen.grey
                report(Progress(task="check images", done=done, total=total, unit="images"))
            splits[name] = split.subset([row for row, good in enumerate(usable) if good])
    if len(skipped) > MOST_BROKEN * total:
        raise InputError(
            f"{len(skipped):,} of {total:,} images are broken, more than 1 % ({', '.join(skipped[:5])}, ...)",
            "replace or remove them",
        )
    channels = 1 if grey else dataset.channels
    return replace(dataset, splits=splits, sha256=digest.hexdigest(), skipped=tuple(skipped), channels=channels)


def look(source: FileImages, index: int, thoroughly: bool) -> Look:
    """Read one file, and decode it or its header."""
    sha256 = b""
    try:
        data = source.tree.read(source.names[index])
        sha256 = hashlib.sha256(data).digest()
        grey = is_grey(data)
        if thoroughly:
            decode(data, source.background)
    except (BrokenImageError, OSError) as error:
        return Look(sha256=sha256, fault=str(error))
    return Look(sha256=sha256, grey=grey)
