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
from vqgpt.errors import InputError
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
    outer = _outer_folder(tree, names)
    by_split = _by_split(names, outer, root, report)
    class_names = sorted({label for rows in by_split.values() for _, label in rows} - {FLAT})
    splits = {}
    for split, rows in by_split.items():
        labelled = [(name, label) for name, label in rows if label != FLAT]
        if labelled and len(labelled) < len(rows):
            flat = next(name for name, label in rows if label == FLAT)
            _tell_left_out(len(rows) - len(labelled), tree.path / flat, "in no class folder", report)
        labels = np.array([class_names.index(label) for _, label in labelled], dtype=np.int64)
        if not labelled:
            labels = np.full(len(rows), -1 if class_names else 0)
        source = FileImages(tree, tuple(name for name, _ in labelled or rows), background)
        splits[split] = ImageSplit.whole(source, labels)
    return splits, tuple(class_names) or (outer.rstrip("/") or root.resolve().stem,)


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


def _outer_folder(tree: FileTree, names: list[str]) -> str:
    """The one folder around everything, with its slash: archives have one often, folders only around train/."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if len(tops) != 1 or not all("/" in name for name in names):
        return ""
    (top,) = tops
    below = {name.split("/")[1].lower() for name in names}
    return f"{top}/" if top.lower() not in SPLIT_NAMES and (tree.path.is_file() or "train" in below) else ""


def _tell_left_out(count: int, example: Path, why: str, report: Report) -> None:
    number = f"{count:,} images are" if count > 1 else "1 image is"
    report(Notice(text=f"{number} left out, being {why} (the first: {example})"))


def _tell_of_other_files(tree: FileTree, report: Report) -> None:
    """A file that is no image may be one in a format that we do not read: say so."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "none" for name in tree.sizes if not is_image_name(name))
    if suffixes:
        kinds = ", ".join(f"{count:,} of suffix {suffix}" for suffix, count in suffixes.most_common(3))
        report(Notice(text=f"files in {tree.path} that are left out, being no images: {kinds}"))
