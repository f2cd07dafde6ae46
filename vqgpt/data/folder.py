"""The user's own images: a folder, zip or tar file with class folders in it, or flat -> splits of files by name.

DIR/cat/1.jpg  DIR/dog/a/2.png            class folders; what is deeper belongs to the class
DIR/1.jpg  DIR/2.jpg                      one class, named like DIR
DIR/train/cat/1.jpg  DIR/val/cat/2.jpg    either of them, below train/ and val/ or test/
"""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from vqgpt.data.decoding import SUFFIXES, is_image_name
from vqgpt.data.file_trees import FileTree, open_tree
from vqgpt.data.images import FileImages, ImageSplit
from vqgpt.data.listings import Color, Listing
from vqgpt.errors import InputError, printable
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
FLAT = ""  # stands for the class folder of images that are in none


def read_folder(root: Path, background: Color, report: Report) -> Listing:
    """The images below `root`, in the order of their names. What is left out is told.

    Raises InputError if there are none, or no training images.
    """
    tree = open_tree(root)
    names = [name for name in tree.sizes if is_image_name(name)]
    if not names:
        raise InputError(f"there are no images in {root}", f"give a folder with files of {' '.join(SUFFIXES)}")
    _tell_of_other_files(tree, report)
    outer = _outer_folder(names)
    by_split = _by_split(names, outer, root, report)
    class_names = sorted({label for rows in by_split.values() for _, label in rows} - {FLAT})
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, rows in by_split.items():
        labelled = [(name, label) for name, label in rows if label != FLAT]
        if labelled and len(labelled) < len(rows):
            flat = next(name for name, label in rows if label == FLAT)
            _tell_left_out(len(rows) - len(labelled), tree.path / flat, "in no class folder", report)
        labels = np.array([label_of[label] for _, label in labelled], dtype=np.int64)
        if not labelled and class_names:
            _accept_without_classes(split, root, report)
        if not labelled:
            labels = np.full(len(rows), -1 if class_names else 0)
        source = FileImages(tree, tuple(name for name, _ in labelled or rows), background)
        splits[split] = ImageSplit.whole(source, labels)
    names_shown = [printable(name) for name in class_names] or [printable(_name_of(root, outer))]
    _tell_what_was_found(splits, names_shown, report)
    return splits, tuple(names_shown)


def _by_split(names: list[str], outer: str, root: Path, report: Report) -> dict[str, list[tuple[str, str]]]:
    """The (name, class folder) of each image, by split; without train/ all are training images."""
    parts_of = {name: name.removeprefix(outer).split("/") for name in names}
    tops = {parts[0].lower() for parts in parts_of.values() if len(parts) > 1}
    known = {SPLIT_NAMES[top] for top in tops if top in SPLIT_NAMES}
    if known and tops <= set(SPLIT_NAMES) and "train" not in known:
        raise InputError(
            f"{root} has {' and '.join(sorted(known))}, but no train", "name the training images' folder train"
        )
    has_splits = "train" in known and (len(known) > 1 or len(tops) == 1)
    by_split: dict[str, list[tuple[str, str]]] = {}
    left_out = []
    for name, parts in parts_of.items():
        split = "train"
        if has_splits:
            split, parts = SPLIT_NAMES.get(parts[0].lower(), "") if len(parts) > 1 else "", parts[1:]
        if split:
            by_split.setdefault(split, []).append((name, parts[0] if len(parts) > 1 else FLAT))
        else:
            left_out.append(name)
    if left_out:
        _tell_left_out(len(left_out), root / left_out[0], "neither in train nor in val or test", report)
    return {split: by_split[split] for split in ("train", "val", "test") if split in by_split}


def _outer_folder(names: list[str]) -> str:
    """The one folder around everything, with its slash, as archives often have; "" if there is none.

    It is one if no folder is beside it and there are folders in it: those are the classes then, or the splits.
    """
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if len(tops) != 1 or not any(name.count("/") > 1 for name in names):
        return ""
    (top,) = tops
    return "" if top.lower() in SPLIT_NAMES else f"{top}/"


def _name_of(root: Path, outer: str) -> str:
    """What to call the one class of a flat folder."""
    return outer.rstrip("/") or (root.resolve().name if root.is_dir() else root.stem)


def _accept_without_classes(split: str, root: Path, report: Report) -> None:
    """Images to test on may have no classes where others have; those to train on may not."""
    if split == "train":
        raise InputError(f"the images in {root}/train are in no class folders, others are", "put them into such")
    report(Notice(text=f"split {split} has no class folders: its images have no class"))


def _tell_what_was_found(splits: dict[str, ImageSplit], class_names: list[str], report: Report) -> None:
    counts = ", ".join(f"{len(split):,} in {name}" for name, split in splits.items())
    shown = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    kinds = f"{len(class_names):,} class{'es'[: 2 * (len(class_names) > 1)]} ({shown})"
    report(Notice(text=f"images: {counts}; {kinds}"))


def _tell_left_out(count: int, example: Path, why: str, report: Report) -> None:
    number = f"{count:,} images are" if count > 1 else "1 image is"
    report(Notice(text=f"{number} left out, being {why} (the first: {example})"))


def _tell_of_other_files(tree: FileTree, report: Report) -> None:
    """A file that is no image may be one in a format that we do not read: say so."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "none" for name in tree.sizes if not is_image_name(name))
    if suffixes:
        kinds = ", ".join(f"{count:,} of suffix {suffix}" for suffix, count in suffixes.most_common(3))
        report(Notice(text=f"files in {tree.path} that are left out, being no images: {kinds}"))
