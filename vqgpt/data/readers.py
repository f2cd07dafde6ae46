"""Reading a dataset's files: name, folder -> uint8 images and labels of every split, in the order of the files.

One function per file format; torchvision and medmnist do the parsing and downloading where they read a set well.
"""

import contextlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.config.datasets import Dataset
from vqgpt.errors import InputError, MissingDataError
from vqgpt.progress import Notice, Report
from vqgpt.torchvision_import import import_torchvision

HELD_OUT_EVERY = 5  # digits: of each class, its images 0, 5, 10, ... are the test split


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """Images (N, C, H, W) uint8; labels (N,) int64 or (N, L) uint8; source_index (N,): places in the source's order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]
    source_index: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """All splits of a dataset, as its files hold them."""

    splits: dict[str, RawSplit]
    class_names: tuple[str, ...]


def read_dataset(dataset: Dataset, root: Path, report: Report) -> RawDataset:
    """Read all splits; what is not below `root` is downloaded to it.

    Raises MissingDataError if it can be neither found nor fetched, InputError if its files are damaged.
    """
    if dataset.reader == "digits":
        return _read_digits(dataset)
    with _explained_failures(dataset, root):
        root.mkdir(parents=True, exist_ok=True)
        if dataset.reader == "torchvision":
            return _read_torchvision(dataset, root, report)
        return _read_medmnist(dataset, root, report)


def _read_digits(dataset: Dataset) -> RawDataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    held_out = np.zeros(len(images), dtype=bool)
    for label in np.unique(digits.target):
        held_out[np.flatnonzero(digits.target == label)[::HELD_OUT_EVERY]] = True
    splits = {
        name: RawSplit(
            images=images[rows], labels=digits.target[rows].astype(np.int64), source_index=np.flatnonzero(rows)
        )
        for name, rows in (("train", ~held_out), ("test", held_out))
    }
    return RawDataset(splits=splits, class_names=dataset.class_names)


def _read_torchvision(dataset: Dataset, root: Path, report: Report) -> RawDataset:
    reader = getattr(import_torchvision("datasets"), dataset.reader_class)
    splits = {}
    class_names = dataset.class_names
    for split in dataset.splits:
        which = {"split": split} if dataset.name == "svhn" else {"train": split == "train"}
        try:
            source = reader(root, **which)
        except RuntimeError:
            report(_download_notice(dataset, root))
            with contextlib.redirect_stdout(io.StringIO()):
                source = reader(root, **which, download=True)
        labels = source.labels if dataset.name == "svhn" else source.targets
        splits[split] = _raw_split(np.asarray(source.data), np.asarray(labels), channels_first=dataset.name == "svhn")
        class_names = class_names or tuple(source.classes)
    return RawDataset(splits=splits, class_names=class_names)


def _read_medmnist(dataset: Dataset, root: Path, report: Report) -> RawDataset:
    import medmnist

    present = (root / f"{dataset.name}.npz").exists()
    if not present:
        report(_download_notice(dataset, root))
    splits = {}
    for split in dataset.splits:
        with contextlib.redirect_stdout(io.StringIO()):
            source = getattr(medmnist, dataset.reader_class)(split=split, root=str(root), size=28, download=not present)
        labels = source.labels.astype(np.uint8) if dataset.label_kind == "bits" else source.labels[:, 0]
        splits[split] = _raw_split(source.imgs, labels)
    return RawDataset(splits=splits, class_names=tuple(medmnist.INFO[dataset.name]["label"].values()))


def _download_notice(dataset: Dataset, root: Path) -> Notice:
    size = f"about {dataset.download_megabytes} MB"
    return Notice(text=f"downloading {dataset.name} to {root} ({size}; licence: {dataset.licence})")


def _raw_split(images: NDArray[Any], labels: NDArray[Any], channels_first: bool = False) -> RawSplit:
    if images.ndim == 3:
        images = images[:, None]
    elif not channels_first:
        images = images.transpose(0, 3, 1, 2)
    labels = labels if labels.ndim == 2 else labels.astype(np.int64)
    return RawSplit(
        images=np.ascontiguousarray(images, dtype=np.uint8), labels=labels, source_index=np.arange(len(images))
    )


@contextlib.contextmanager
def _explained_failures(dataset: Dataset, root: Path) -> Iterator[None]:
    """Turn what torchvision, medmnist and urllib raise into errors that say what to do."""
    try:
        yield
    except (OSError, RuntimeError, ImportError) as error:
        if isinstance(error, PermissionError):
            raise
        raise MissingDataError(
            f"{dataset.name} is not in {root} and could not be downloaded ({_first_line(error)})",
            f"run the same command on a machine with a network and copy {root} here, "
            "or give their folder by --data-root",
        ) from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        raise InputError(
            f"the files of {dataset.name} in {root} are damaged ({_first_line(error)})",
            "delete them and run the command again",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
