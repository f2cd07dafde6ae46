"""Datasets that fit into memory, one function per kind of file -> splits with all their pixels.

torchvision parses idx files, CIFAR's pickles (after their digests were checked) and SVHN's .mat files. Of MedMNIST we
take the facts from medmnist and read the .npz ourselves: importing medmnist takes seconds, and makes folders.
"""

import importlib.util
import runpy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.data.downloads import ensure_files, existing_files
from vqgpt.data.images import ArrayImages, ImageSplit
from vqgpt.data.remote_files import FILES, RemoteFile
from vqgpt.data.table import Dataset, nearest_stored_size
from vqgpt.progress import Notice, Report
from vqgpt.runtime.libraries import import_torchvision
from vqgpt.storage.files import check_is_not_special, open_regular

HELD_OUT_EVERY = 5  # digits: of each class, its images 0, 5, 10, ... are the test split

Splits = dict[str, ImageSplit]


def read_digits() -> Splits:
    """The 8 x 8 digits of scikit-learn, 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = ArrayImages(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    held_out = np.zeros(len(source), dtype=bool)
    for label in np.unique(digits.target):
        held_out[np.flatnonzero(digits.target == label)[::HELD_OUT_EVERY]] = True
    everything = ImageSplit.whole(source, digits.target.astype(np.int64))
    return {"train": everything.subset(~held_out), "test": everything.subset(held_out)}


def read_torchvision(dataset: Dataset, root: Path, report: Report) -> tuple[Splits, tuple[str, ...]]:
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


def read_medmnist(dataset: Dataset, root: Path, size: int, report: Report) -> tuple[Splits, tuple[str, ...]]:
    """A set of MedMNIST, at the stored resolution that is nearest to `size` pixels, with the names of its classes."""
    stored = nearest_stored_size(size)
    about = medmnist_facts(dataset.name)
    file = medmnist_file(about, dataset.name, stored)
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
    package = importlib.util.find_spec("medmnist")
    assert package is not None
    assert package.origin is not None
    return dict(runpy.run_path(str(Path(package.origin).with_name("info.py")))["INFO"][name])


def medmnist_file(about: dict[str, Any], name: str, stored: int) -> RemoteFile:
    """The file of a set at one of its resolutions."""
    suffix = "" if stored == 28 else f"_{stored}"
    return RemoteFile(path=f"{name}{suffix}.npz", url=about[f"url{suffix}"], md5=about[f"MD5{suffix}"])


def _whole_numbers(labels: NDArray[Any]) -> NDArray[np.integer[Any]]:
    if labels.dtype.kind not in "bui" or labels.ndim != 2 or labels.min(initial=0) < 0 or labels.max(initial=0) > 255:
        raise ValueError(f"labels of type {labels.dtype} and shape {labels.shape}, {labels.min()} to {labels.max()}")
    return labels


def _as_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (3, 4)
        or 0 in pixels.shape[1:]
        or pixels.shape[3:] not in ((), (3,))
    ):
        raise ValueError(f"images of type {pixels.dtype} and shape {pixels.shape}")
    return pixels
