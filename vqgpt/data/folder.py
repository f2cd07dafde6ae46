"""The user's own images: a folder, zip or tar file with class folders in it, or flat -> splits of files by name.

DIR/cat/1.jpg  DIR/dog/a/2.png            class folders; what is deeper belongs to the class
DIR/1.jpg  DIR/2.jpg                      one class, named like DIR
DIR/train/cat/1.jpg  DIR/val/cat/2.jpg    either of them, below train/ and val/ or test/
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from vqgpt.data.decoding import SUFFIXES, is_image_name
from vqgpt.data.file_trees import FileTree, is_hidden, open_tree, report_left_out
from vqgpt.data.images import FileImages, ImageSplit
from vqgpt.data.listings import Color, Listing
from vqgpt.errors import InputError, composed, printable
from vqgpt.progress import Notice, Report

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
WITHOUT_CLASS = "without-class"
LONGEST_NAME = 200  # bytes of a folder's name, without its number; file systems take 255
FLAT = ""  # stands for the class folder of images that are in none


def read_folder(root: Path, background: Color, report: Report) -> Listing:
    """The images below `root`, in the order of their names. What is left out is reported.

    Classes are numbered as torchvision's ImageFolder numbers them: in the order of their folders' names as they are
    stored, those without images too. Raises InputError if there are no images, or none to train on, or if two folders
    of a split have names that look the same.
    """
    tree = open_tree(root)
    report_left_out(tree, report)
    names = [name for name in tree.sizes if is_image_name(name)]
    if not names:
        raise InputError(f"there are no images in {root}", f"give a folder with files of {' '.join(SUFFIXES)}")
    _report_other_files(tree, report)
    _report_folders_without_images(tree, names, report)
    outer = _outer_folder(tree, names)
    has_splits = _has_splits(names, outer, root)
    by_split = _by_split(names, outer, has_splits, root, report)
    folders = {split: {label for _, label in rows} - {FLAT} for split, rows in by_split.items()}
    for split, folder in _class_folders(tree, outer, has_splits):
        if folders.get(split):
            folders[split].add(folder)
    class_names = _class_names(folders, tree.path)
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, rows in by_split.items():
        labelled = [(name, label) for name, label in rows if label != FLAT]
        if labelled and len(labelled) < len(rows):
            flat = next(name for name, label in rows if label == FLAT)
            _report_left_out_images(len(rows) - len(labelled), tree.path / flat, "in no class folder", report)
        labels = np.array([label_of[composed(label)] for _, label in labelled], dtype=np.int64)
        if not labelled:
            labels = np.full(len(rows), -1 if class_names else 0)
            if class_names:
                _accept_without_classes(split, root, report)
        source = FileImages(tree, tuple(name for name, _ in labelled or rows), background)
        splits[split] = ImageSplit.whole(source, labels)
    name_if_flat = outer.rstrip("/") or (root.resolve().name if root.is_dir() else root.stem)
    names_shown = [printable(name) for name in class_names or [composed(name_if_flat)]]
    _report_found(splits, names_shown, report)
    return splits, tuple(names_shown)


def _has_splits(names: list[str], outer: str, root: Path) -> bool:
    """True if the topmost folders are splits. Raises InputError if they are all splits, and none is train."""
    tops = {top.lower() for top, _, rest in (name.removeprefix(outer).partition("/") for name in names) if rest}
    known = {SPLIT_NAMES[top] for top in tops if top in SPLIT_NAMES}
    if known and tops <= set(SPLIT_NAMES) and "train" not in known:
        raise InputError(
            f"{root} has {' and '.join(sorted(known))}, but no train", "name the training images' folder train"
        )
    return "train" in known and (len(known) > 1 or len(tops) == 1)


def _by_split(
    names: list[str], outer: str, has_splits: bool, root: Path, report: Report
) -> dict[str, list[tuple[str, str]]]:
    """The (name, class folder) of each image, by split; without train/ all are training images."""
    by_split: dict[str, list[tuple[str, str]]] = {}
    left_out = []
    for name in names:
        split, parts = "train", name.removeprefix(outer).split("/")
        if has_splits:
            split, parts = SPLIT_NAMES.get(parts[0].lower(), "") if len(parts) > 1 else "", parts[1:]
        if split:
            by_split.setdefault(split, []).append((name, parts[0] if len(parts) > 1 else FLAT))
        else:
            left_out.append(name)
    if left_out:
        _report_left_out_images(len(left_out), root / left_out[0], "neither in train nor in val or test", report)
    return {split: by_split[split] for split in ("train", "val", "test") if split in by_split}


def _class_folders(tree: FileTree, outer: str, has_splits: bool) -> Iterator[tuple[str, str]]:
    """Split and name of each folder where those of classes are, with images or without."""
    for folder in tree.folders:
        *above, name = folder.removeprefix(outer).split("/")
        if folder.startswith(outer) and len(above) == has_splits and (not above or above[0].lower() in SPLIT_NAMES):
            yield SPLIT_NAMES[above[0].lower()] if above else "train", name


def _class_names(folders: dict[str, set[str]], path: Path) -> list[str]:
    """The classes of all splits, in the order of their folders' names as they are stored.

    Raises InputError if two folders of a split differ only in how their letters are stored.
    """
    stored: dict[str, str] = {}
    for of_split in folders.values():
        here: dict[str, str] = {}
        for name in sorted(of_split):
            other = here.setdefault(composed(name), name)
            if other != name:
                raise InputError(
                    f"{path} has two folders {composed(name)!r}, whose names look the same and are stored as "
                    f"{other!a} and {name!a}",
                    "put their images into one folder, or rename one",
                )
        stored = here | stored
    return sorted(stored, key=lambda name: stored[name])


def _outer_folder(tree: FileTree, names: list[str]) -> str:
    """The one folder around everything, with its slash, as archives often have; "" if there is none.

    It is one if there are folders in it, and beside it none with images and no empty one: those are the classes then,
    or the splits.
    """
    tops = {name.partition("/")[0] for name in names if "/" in name}
    empty = {folder for folder in tree.folders if "/" not in folder} - {name.partition("/")[0] for name in tree.sizes}
    if len(tops) != 1 or empty or not any(name.count("/") > 1 for name in names):
        return ""
    (top,) = tops
    return "" if top.lower() in SPLIT_NAMES else f"{top}/"


def _accept_without_classes(split: str, root: Path, report: Report) -> None:
    """Images to test on may have no classes where others have; those to train on may not."""
    if split == "train":
        raise InputError(
            f"the images in {root}/train are not in class folders, but others are", "put them into class folders"
        )
    report(Notice(text=f"split {split} has no class folders: its images have no class"))


def _report_found(splits: dict[str, ImageSplit], class_names: list[str], report: Report) -> None:
    counts = ", ".join(f"{len(split):,} in {name}" for name, split in splits.items())
    shown = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    kinds = f"{len(class_names):,} class{'es'[: 2 * (len(class_names) > 1)]} ({shown})"
    report(Notice(text=f"images: {counts}; {kinds}"))


def _report_folders_without_images(tree: FileTree, names: list[str], report: Report) -> None:
    holding = {PurePosixPath(folder) for folder in {name.rpartition("/")[0] for name in names}}
    with_images = {"", *(str(folder) for path in holding for folder in (path, *path.parents))}
    without = sorted(tree.folders - with_images)
    outermost = [folder for folder in without if folder.rpartition("/")[0] in with_images]
    if outermost:
        number = f"{len(outermost):,} folders have" if len(outermost) > 1 else "1 folder has"
        first = printable(str(tree.path / outermost[0]))
        report(Notice(text=f"{number} no images (the first: {first})"))


def _report_left_out_images(count: int, example: Path, why: str, report: Report) -> None:
    number = f"{count:,} images are" if count > 1 else "1 image is"
    report(Notice(text=f"{number} left out: {why} (the first: {printable(str(example))})"))


def _report_other_files(tree: FileTree, report: Report) -> None:
    """A file that is no image may be one in a format that we do not read: say so."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "none" for name in tree.sizes if not is_image_name(name))
    if suffixes:
        kinds = ", ".join(f"{count:,} of suffix {suffix}" for suffix, count in suffixes.most_common(3))
        report(Notice(text=f"files in {tree.path} left out because they are not images: {kinds}"))


def class_folders(names: Sequence[str]) -> list[str]:
    """A folder's name for each class, in the order of their numbers when sorted; WITHOUT_CLASS comes after.

    `read_folder` gives the classes of such folders the same numbers again.
    They are the classes' own names if a file system and those who read the folders take all of them so, else each
    begins with its number.
    """
    safe = [_safe_name(name) for name in names]
    if _can_stand(safe):
        return safe
    digits = len(str(len(names) - 1))
    return [f"{number:0{digits}}-{name}".strip("-") for number, name in enumerate(safe)]


def _safe_name(name: str) -> str:
    """A name with letters, their marks, digits and a few signs alone, of up to 200 bytes."""
    kept = "".join(
        char if re.match(r"[\w ,()+-]", char) or unicodedata.category(char)[0] == "M" else "\0"
        for char in composed(name)
    )
    return re.sub("\0+", "_", kept).encode()[:LONGEST_NAME].decode(errors="ignore").strip(" _")


def _can_stand(folders: list[str]) -> bool:
    """True if names of folders are in order, and neither equal but for their case nor taken for something else."""
    taken_otherwise = any(is_hidden(folder) or folder.lower() in SPLIT_NAMES for folder in folders)
    everything = [*folders, WITHOUT_CLASS]
    different = len({folder.casefold() for folder in everything}) == len(everything)
    return all(folders) and different and everything == sorted(everything) and not taken_otherwise
