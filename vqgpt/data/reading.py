"""`read_dataset`: a dataset by name -> its splits, found or fetched, and checked. Must not import torch."""

import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vqgpt.config.commands import ImageOptions
from vqgpt.config.datasets import Dataset
from vqgpt.data.array_readers import read_digits, read_medmnist, read_torchvision
from vqgpt.data.checking import check_images
from vqgpt.data.folder import read_folder
from vqgpt.data.images import FileImages, ImageDataset, ImageSplit, digest, hold_out
from vqgpt.data.listings import Listing, read_celeba, read_dtd, read_imagenet, read_places365, read_tinyimagenet
from vqgpt.errors import InputError, UsageError
from vqgpt.progress import Notice, Report

PARSER_ERRORS = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)
SHARE_HELD_OUT = 0.1  # of sets that have no split to judge on


def read_dataset(dataset: Dataset, options: ImageOptions, size: int, report: Report) -> ImageDataset:
    """The dataset as `options` ask for it, for images of `size` pixels; what is missing is downloaded.

    Raises MissingDataError if it can be neither found nor fetched or is half there, InputError if its files are
    damaged, UsageError if the options do not fit it.
    """
    if not dataset.commercial:
        report(Notice(text=f"licence of {dataset.name}: {dataset.licence}"))
    with _damage_explained(dataset, options.root):
        splits, class_names = _listing(dataset, options, size, report)
    if options.val_split is not None and "val" in splits:
        raise UsageError(f"{dataset.name} has a split val of its own", "leave --val-split out")
    _check_counts(dataset, splits, report)
    found = ImageDataset(splits=splits, class_names=class_names, channels=dataset.channels, sha256=digest(splits))
    of_files = all(isinstance(split.source, FileImages) for split in splits.values())
    if dataset.reader == "folder" or (of_files and options.on_error == "skip"):
        found = check_images(found, options.on_error == "skip", options.workers, report)
    if options.val_split is None and {"val", "test"} & set(splits):
        return found
    others = {name: split for name, split in found.splits.items() if name != "train"}
    train, val = hold_out(found.splits["train"], options.val_split or SHARE_HELD_OUT)
    return replace(found, splits={"train": train, "val": val, **others})


def _listing(dataset: Dataset, options: ImageOptions, size: int, report: Report) -> Listing:
    root, background = options.root, options.preprocessing.background_rgb
    match dataset.reader:
        case "digits":
            return read_digits(), dataset.class_names
        case "torchvision":
            return read_torchvision(dataset, root, report)
        case "medmnist":
            return read_medmnist(dataset, root, size, report)
        case "dtd":
            return read_dtd(dataset, root, background, report)
        case "places365":
            return read_places365(dataset, root, background, report)
        case "tinyimagenet":
            return read_tinyimagenet(dataset, root, background, report)
        case "imagenet":
            return read_imagenet(dataset, root, background, report)
        case "celeba":
            return read_celeba(dataset, root, background, report)
        case "folder":
            if options.data_root is None:
                raise UsageError("--dataset folder needs a folder", "give it with --data-root DIR")
            return read_folder(root, background, report)


def _check_counts(dataset: Dataset, splits: dict[str, ImageSplit], report: Report) -> None:
    """Raise InputError for a split without images, and say so if there are not as many as were published."""
    for name, split in splits.items():
        if not len(split):
            raise InputError(f"split {name} of {dataset.name} has no images", "check the folder given by --data-root")
        published = dataset.rows.get(name, len(split))
        if len(split) != published:
            report(Notice(text=f"{dataset.name} {name} has {len(split):,} images here, {published:,} as published"))


@contextmanager
def _damage_explained(dataset: Dataset, root: Path) -> Iterator[None]:
    """Turn what parsers raise over bad files into an error that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, *PARSER_ERRORS) as error:
        if isinstance(error, OSError) and error.errno:  # not the file's content, but the disk or a permission
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" You can use download=True")[
            0
        ]
        raise InputError(
            f"the files of {dataset.name} in {root} are damaged, or not the published ones ({reason})",
            "delete them and fetch them again",
        ) from error
