"""Datasets of image files, one function per layout -> splits of files by name, nothing decoded yet.

All are read where they lie, in folders or in the archives as they are published (`file_trees`).
"""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqgpt.data.decoding import is_image_name
from vqgpt.data.downloads import ensure_files, is_present, missing_files, remedy
from vqgpt.data.file_trees import LARGEST_FILE, FileTree, open_tree, report_left_out
from vqgpt.data.images import FileImages, ImageSplit
from vqgpt.data.table import FILES, Dataset, RemoteFile
from vqgpt.errors import InputError, MissingDataError
from vqgpt.progress import Report
from vqgpt.storage.files import is_vacant, open_regular, read_regular

Color = tuple[int, int, int]
WNID = re.compile(r"n\d{8}")  # a class of ImageNet
LISTED_TO_TRY = 100  # files of a list, to find the folder that it speaks of
Listing = tuple[dict[str, ImageSplit], tuple[str, ...]]  # the splits, and the names of classes or attributes


def read_dtd(dataset: Dataset, root: Path, background: Color, report: Report) -> Listing:
    """Describable Textures: images/<class>/<file>.jpg, and the first of ten partitions in labels/."""
    place = next((path for path in (root, root / "dtd") if (path / "labels/train1.txt").exists()), None)
    if place is None:
        ensure_files(dataset, FILES["dtd"], root, report)
        place = root / FILES["dtd"][0].content
    tree = open_tree(place)
    lists = {split: _lines(tree, f"labels/{split}1.txt") for split in dataset.rows}
    class_names = tuple(sorted({line.partition("/")[0] for lines in lists.values() for line in lines}))
    splits = {}
    for split, lines in lists.items():
        labels = [class_names.index(line.partition("/")[0]) for line in lines]
        splits[split] = _listed(dataset, root, tree, [f"images/{line}" for line in lines], labels, background)
    return splits, class_names


def read_places365(dataset: Dataset, root: Path, background: Color, report: Report) -> Listing:
    """Places365 at 256 pixels: lists of `file class`, images in two tar files or the folders they unpack to."""
    unpacked = {
        "train": _first_existing(root, ["data_256_standard", "data_256"]),
        "val": _first_existing(root, ["val_256"]),
    }
    lists, *archives = FILES["places365"]
    needed = [archive for archive, folder in zip(archives, unpacked.values(), strict=True) if folder is None]
    ensure_files(dataset, (lists, *needed), root, report)
    about = open_tree(root / lists.path if (root / lists.path).exists() else root)
    labels_by_name = {name: int(label) for name, label in map(str.split, _lines(about, "categories_places365.txt"))}
    splits = {}
    for (split, folder), archive, name in zip(unpacked.items(), archives, ("train_standard", "val"), strict=True):
        pairs = [line.split() for line in _lines(about, f"places365_{name}.txt")]
        tree = _open(archive, folder or _place(archive, root))
        names = [file.lstrip("/") for file, _ in pairs]
        splits[split] = _listed(dataset, root, tree, names, [int(label) for _, label in pairs], background)
    names_in_order = sorted(labels_by_name, key=lambda name: labels_by_name[name])
    return splits, tuple(name.split("/", 2)[-1] for name in names_in_order)


def read_tinyimagenet(dataset: Dataset, root: Path, background: Color, report: Report) -> Listing:
    """Tiny ImageNet: train/<wnid>/images/, and val/images/ with the classes in val_annotations.txt.

    Class i is line i of wnids.txt, named by words.txt. Raises MissingDataError for a folder that was half unpacked.
    """
    if (root / "wnids.txt").exists():
        tree = open_tree(root)
    else:
        ensure_files(dataset, FILES["tinyimagenet"], root, report)
        archive = FILES["tinyimagenet"][0]
        tree = _open(archive, _place(archive, root))
    prefix = _folder_of(tree, ["wnids.txt"])
    wnids = _lines(tree, prefix + "wnids.txt")
    has_words = prefix + "words.txt" in tree.sizes
    words = dict(line.split("\t", 1) for line in _lines(tree, prefix + "words.txt")) if has_words else {}
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    pattern = re.compile(re.escape(prefix) + r"train/([^/]+)/images/\1_\d+\.\w+")
    found = [(name, match[1]) for name in tree.sizes if (match := pattern.fullmatch(name)) and is_image_name(name)]
    train = sorted((label_of[wnid], name) for name, wnid in found if wnid in label_of)
    annotations = (line.split("\t")[:2] for line in _lines(tree, prefix + "val/val_annotations.txt"))
    listed = ((f"{prefix}val/images/{file}", wnid) for file, wnid in annotations)
    val = [(label_of[wnid], name) for name, wnid in listed if name in tree.sizes and wnid in label_of]
    _check_equal_counts(dataset, root, tree, [label for label, _ in train], [label for label, _ in val])
    splits = {
        split: _listed(dataset, root, tree, [name for _, name in rows], [label for label, _ in rows], background)
        for split, rows in (("train", train), ("val", val))
    }
    return splits, tuple(words.get(wnid, wnid) for wnid in wnids)


def read_celeba(dataset: Dataset, root: Path, background: Color, report: Report) -> Listing:
    """Aligned CelebA: 40 attributes of +1 and -1 as bits, and the split of each image, in .txt (or Kaggle's .csv)."""
    spellings = (
        ["img_align_celeba", "img_align_celeba.zip"],
        ["list_attr_celeba.txt", "list_attr_celeba.csv"],
        ["list_eval_partition.txt", "list_eval_partition.csv"],
    )
    places = [_first_existing(root, [f"celeba/{name}" for name in names] + names) for names in spellings]
    missing = [file for file, place in zip(FILES["celeba"], places, strict=True) if place is None]
    if missing:
        raise missing_files(dataset, missing, root, "it has to be asked for by hand")
    images, attributes, partition = (place for place in places if place)
    tree = _open(FILES["celeba"][0], images)
    header, *rows = _table(attributes, lines_above=1)
    split_of = dict(_table(partition, lines_above=0)[1 if partition.suffix == ".csv" else 0 :])
    splits = {}
    for number, split in enumerate(dataset.rows):
        chosen = [row for row in rows if split_of.get(row[0]) == str(number)]
        bits = np.array([[value == "1" for value in row[1:]] for row in chosen], dtype=np.uint8)
        names = [row[0] for row in chosen]
        splits[split] = _listed(dataset, root, tree, names, bits.reshape(len(chosen), -1), background)
    return splits, tuple(header[-dataset.num_classes :])


def read_imagenet(dataset: Dataset, root: Path, background: Color, report: Report) -> Listing:
    """ImageNet 2012 from its archives, with the devkit, or from class folders train/ and val/; classes by wnid."""
    base = root / "imagenet" if (root / "imagenet").is_dir() else root
    *images, devkit = FILES["imagenet"]
    there = all(is_present(file, base) for file in images)
    ensure_files(dataset, tuple(images if there else (*images, devkit)), base, report)
    train, val = (_open(file, _place(file, base)) for file in images)
    train_wnids, val_wnids = _wnids_by_name(train), _wnids_by_name(val)
    empty = {folder for folder in train.folders if WNID.fullmatch(folder)}
    wnids = tuple(sorted({*train_wnids.values(), *empty}))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for tree in (train, val):
        report_left_out(tree, report)
    if not set(wnids) & set(val_wnids.values()):
        val_wnids = _from_devkit(dataset, devkit, base, [name for name in val.sizes if is_image_name(name)])
    unknown = sorted(set(val_wnids.values()) - set(wnids))
    if unknown:
        raise InputError(
            f"{val.path} has images of {len(unknown)} classes that {train.path} lacks ({unknown[0]}, ...)",
            "unpack both completely, or give a part of ImageNet as --dataset folder",
        )
    splits = {}
    for split, tree, by_name in (("train", train, train_wnids), ("val", val, val_wnids)):
        labels = [label_of[wnid] for wnid in by_name.values()]
        splits[split] = _listed(dataset, base, tree, list(by_name), labels, background)
    return splits, wnids


def _wnids_by_name(tree: FileTree) -> dict[str, str]:
    """The class of each image in the folders of ImageNet's classes, where most lie side by side; no other counts."""
    above: dict[str, dict[str, str]] = {}
    for name in tree.sizes:
        *outer, folder, _ = ("", *name.split("/"))
        if is_image_name(name) and WNID.fullmatch(folder):
            above.setdefault("/".join(outer), {})[name] = folder
    return max(above.values(), key=len, default={})


def _from_devkit(dataset: Dataset, devkit: RemoteFile, root: Path, names: Sequence[str]) -> dict[str, str]:
    """The wnid of each flat validation image, in the order of their numbers, from the devkit."""
    from scipy.io import loadmat

    if not is_present(devkit, root):
        reason = "the validation images are flat, and their classes are in the devkit"
        raise missing_files(dataset, [devkit], root, reason)
    folder, archive = root / devkit.content, root / devkit.path

    def read(name: str) -> bytes:
        if folder.is_dir():
            return read_regular(folder / "data" / name, LARGEST_FILE)
        with open_regular(archive) as file, tarfile.open(fileobj=file) as tar:
            member = tar.extractfile(f"{devkit.content}/data/{name}")
            assert member is not None
            return member.read(LARGEST_FILE)

    try:
        synsets = loadmat(io.BytesIO(read("meta.mat")), squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        wnids = [wnid_of[int(line)] for line in read("ILSVRC2012_validation_ground_truth.txt").split()]
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, IndexError, EOFError, AssertionError, tarfile.TarError) as error:
        raise InputError(
            f"the devkit in {root} is damaged ({error})", f"get {archive.name} again from {devkit.url}"
        ) from None
    by_number = {int(found[1]): name for name in names if (found := re.search(r"_(\d{8})\.", name))}
    missing = [number for number in range(1, len(wnids) + 1) if number not in by_number]
    if missing:
        raise _not_whole(dataset, root, root / "val", len(missing), len(wnids), f"number {missing[0]}")
    return {by_number[number]: wnid for number, wnid in enumerate(wnids, start=1)}


def _listed(
    dataset: Dataset,
    root: Path,
    tree: FileTree,
    listed: list[str],
    labels: Sequence[int] | NDArray[np.uint8],
    background: Color,
) -> ImageSplit:
    """A split of the files that a list names. Raises MissingDataError if some are not there."""
    folder = _folder_of(tree, listed)
    names = [folder + name for name in listed]
    missing = [name for name in names if name not in tree.sizes]
    if missing:
        raise _not_whole(dataset, root, tree.path, len(missing), len(names), missing[0])
    array = labels if isinstance(labels, np.ndarray) else np.array(labels, dtype=np.int64)
    return ImageSplit.whole(FileImages(tree, tuple(names), background), array)


def _not_whole(dataset: Dataset, root: Path, path: Path, missing: int, listed: int, example: str) -> MissingDataError:
    return MissingDataError(
        f"{path} is only partly unpacked: {missing:,} of {listed:,} images are missing (the first: {example})",
        remedy(dataset, root, path),
    )


def _check_equal_counts(dataset: Dataset, root: Path, tree: FileTree, *labels_of_splits: list[int]) -> None:
    """Every class of Tiny ImageNet has as many images as any other, also in a part of it, unless it is half there.

    Raises MissingDataError then.
    """
    classes = set().union(*labels_of_splits)
    for labels in labels_of_splits:
        counts = Counter(labels)
        expected = len(classes) * max(counts.values(), default=1)
        if len(labels) < expected:
            fewest = min(classes, key=lambda label: counts[label])
            raise _not_whole(dataset, root, tree.path, expected - len(labels), expected, f"one of class {fewest}")


def _place(file: RemoteFile, root: Path) -> Path:
    """Where a file that is read in place is: unpacked, else as it came."""
    return root / (file.path if is_vacant(root / file.content) else file.content)


def _open(file: RemoteFile, path: Path) -> FileTree:
    """A file of a dataset, packed or unpacked. Raises InputError, with its source, if it is damaged."""
    try:
        return open_tree(path)
    except InputError as error:
        raise InputError(error.message, f"get it again from {file.url} (md5 {file.md5})") from None


def _first_existing(root: Path, names: list[str]) -> Path | None:
    """The first that is there, and no empty folder."""
    return next((root / name for name in names if not is_vacant(root / name)), None)


def _folder_of(tree: FileTree, listed: Sequence[str]) -> str:
    """The folder, with its slash, below which most of the listed files lie: "" for the tree itself, or one in it.

    Archives often have one around everything. Whatever else lies beside it does not count.
    """
    some = listed[:: max(1, len(listed) // LISTED_TO_TRY)]
    folders = ["", *(f"{folder}/" for folder in sorted(tree.folders, key=lambda name: (name.count("/"), name)))]
    return max(folders, key=lambda folder: sum(folder + name in tree.sizes for name in some))


def _lines(tree: FileTree, name: str) -> list[str]:
    """The lines of a text file. Raises MissingDataError if it is not there."""
    if name not in tree.sizes:
        raise MissingDataError(f"there is no {tree.path / name}", "unpack the dataset again, and run the same command")
    return tree.read(name).decode().splitlines()


def _table(path: Path, lines_above: int) -> list[list[str]]:
    """The rows of one of CelebA's lists, in either of its two spellings; a .txt has `lines_above` them."""
    lines = read_regular(path, LARGEST_FILE).decode("utf-8-sig").splitlines()
    rows = [re.split(r"[,\s]+", line.strip()) for line in lines if line.strip()]
    return rows if path.suffix == ".csv" else rows[lines_above:]
