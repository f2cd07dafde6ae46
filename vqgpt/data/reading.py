"""`read_dataset`: a dataset by name -> its splits, found or fetched, and checked. Must not import torch."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vqgpt.data.array_readers import read_digits, read_medmnist, read_torchvision
from vqgpt.data.checking import check_images
from vqgpt.data.downloads import existing_files, remedy
from vqgpt.data.folder import read_folder
from vqgpt.data.images import FileImages, ImageDataset, ImageSplit, digest, hold_out
from vqgpt.data.listings import Listing, read_celeba, read_dtd, read_imagenet, read_places365, read_tinyimagenet
from vqgpt.data.options import ImageOptions
from vqgpt.data.table import Dataset
from vqgpt.errors import InputError, MissingDataError, UsageError, VQGPTError, composed
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import check_is_not_special
from vqgpt.tokens.statistics import names_without, occurring

SHARE_HELD_OUT = 0.1  # of sets that have no split to judge on
NOT_OF_THE_MACHINE = (
    None,
    errno.EINVAL,
)  # parsers raise the one; a damaged table that points before its file, the other


def check_options(dataset: Dataset, options: ImageOptions) -> None:
    """Raise UsageError, MissingDataError or SpecialFileError for what is wrong before anything is read or fetched."""
    if dataset.reader == "folder" and options.data_root is None:
        raise UsageError("--dataset folder needs a folder", "give it with --data-root DIR")
    if dataset.reader == "folder" and not options.root.exists():
        raise MissingDataError(f"there is no {options.root}", "give the folder, zip or tar file of the images")
    check_is_not_special(options.root)
    if dataset.reader != "folder" and options.root.is_file():
        raise UsageError(f"{options.root} is a file", "give a folder, or --dataset folder for a zip of your own")
    if options.val_split is not None and "val" in dataset.rows:
        raise UsageError(f"{dataset.name} has a split val of its own", "leave --val-split out")


def read_dataset(dataset: Dataset, options: ImageOptions, size: int, report: Report) -> ImageDataset:
    """The dataset as `options` ask for it, for images of `size` pixels; what is missing is downloaded.

    Raises MissingDataError if it can be neither found nor fetched or is half there, InputError if its files are
    damaged, UsageError if the options do not fit it.
    """
    check_options(dataset, options)
    if not dataset.commercial:
        report(Notice(text=f"licence of {dataset.name}: {dataset.licence}"))
    with _damage_explained(dataset, options.root):
        splits, class_names = _listing(dataset, options, size, report)
    if options.val_split is not None and "val" in splits:
        raise UsageError(f"{options.root} has a split val of its own", "leave --val-split out")
    class_names = tuple(map(composed, class_names))
    _check_splits(dataset, splits, class_names, options.root, report)
    found = ImageDataset(splits=splits, class_names=class_names, channels=dataset.channels, sha256=digest(splits))
    of_files = all(isinstance(split.source, FileImages) for split in splits.values())
    if dataset.reader == "folder" or (of_files and options.on_error == "skip"):
        found = check_images(found, options.on_error == "skip", options.workers, report)
    if options.val_split is not None or not {"val", "test"} & set(splits):
        others = {name: split for name, split in found.splits.items() if name != "train"}
        try:
            train, val = hold_out(found.splits["train"], options.val_split or SHARE_HELD_OUT)
        except InputError as error:
            raise InputError(f"{dataset.name} in {options.root}: {error.message}", error.hint) from None
        found = replace(found, splits={"train": train, "val": val, **others})
    _tell_of_unseen(found, report)
    return found


def _tell_of_unseen(dataset: ImageDataset, report: Report) -> None:
    """A notice of the classes, or attributes, that no training image has: their numbers stay as they are."""
    unseen = names_without(occurring(dataset.splits["train"].labels), dataset.class_names)
    if unseen:
        report(Notice(text=f"no training image has the label {unseen}"))


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
            return read_folder(root, background, report)


def _check_splits(
    dataset: Dataset, splits: dict[str, ImageSplit], class_names: tuple[str, ...], root: Path, report: Report
) -> None:
    """Raise InputError for a split without images or with impossible labels; tell if it is not of its usual size."""
    for name, split in splits.items():
        if not len(split):
            raise InputError(
                f"split {name} of {dataset.name} in {root} has no images", "check the folder given by --data-root"
            )
        bits = dataset.label_kind == "bits"
        sound = split.labels.shape[1:] == (len(class_names),) if bits else split.labels.ndim == 1
        if not sound or split.labels.min() < -1 or split.labels.max() >= (2 if bits else len(class_names)):
            raise InputError(
                f"split {name} of {dataset.name} in {root} has labels {split.labels.min()} to {split.labels.max()}, "
                f"and {len(class_names)} {'attributes' if bits else 'classes'}",
                remedy(dataset, root, *existing_files(dataset, root)),
            )
        published = dataset.rows.get(name, len(split))
        if len(split) != published:
            report(Notice(text=f"{dataset.name} {name} has {len(split):,} images here, {published:,} as published"))


@contextmanager
def _damage_explained(dataset: Dataset, root: Path) -> Iterator[None]:
    """Turn what parsers raise over the files of a published dataset into an error that names them."""
    try:
        yield
    except VQGPTError:
        raise
    except Exception as error:
        is_of_the_machine = isinstance(error, OSError) and error.errno not in NOT_OF_THE_MACHINE
        if dataset.source not in ("download", "by hand") or is_of_the_machine:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" You can use download=True")[
            0
        ]
        raise InputError(
            f"{dataset.name} in {root} is damaged, or not as it was published ({reason})",
            remedy(dataset, root, *existing_files(dataset, root)),
        ) from error
