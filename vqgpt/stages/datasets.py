"""`vqgpt datasets`: what datasets there are, under which licence, and which are here. Must not import torch."""

import os
from pathlib import Path
from typing import Any

from vqgpt.config.dataset_files import FILES
from vqgpt.config.datasets import DATASETS, MEDMNIST_SIZES, Dataset
from vqgpt.progress import Notice, Report


def list_all(root: Path, report: Report) -> dict[str, Any]:
    """A row of facts for each dataset; sizes in MB, on disk for what lies below `root`, else of the download."""
    report(Notice(text=f"data root: {root}"))
    return {name: _row(dataset, root) for name, dataset in DATASETS.items()}


def _row(dataset: Dataset, root: Path) -> dict[str, Any]:
    there = _paths_here(dataset, root)
    images = " + ".join(f"{count:,} {split}" for split, count in dataset.rows.items())
    kind = "attributes" if dataset.label_kind == "bits" else "classes"
    return {
        "here": "yes" if there else "no" if dataset.source == "download" else dataset.source,
        "MB": round(sum(map(_bytes_on_disk, there)) / 1e6) if there else dataset.megabytes,
        "images": images or "yours",
        "labels": f"{dataset.num_classes} {kind}" if dataset.num_classes else "class folders",
        "channels": dataset.channels,
        "size": dataset.default_size,
        "views": ", ".join(dataset.default_views),
        "licence": dataset.licence,
    }


def _paths_here(dataset: Dataset, root: Path) -> list[Path]:
    """What there is of a dataset, if that is enough to read it."""
    if dataset.reader == "medmnist":
        suffixes = ["" if size == MEDMNIST_SIZES[0] else f"_{size}" for size in MEDMNIST_SIZES]
        return [path for suffix in suffixes if (path := root / f"{dataset.name}{suffix}.npz").exists()]
    found = []
    for file in FILES.get(dataset.name, ()):
        paths = [root / path for path in (file.path, file.content) if path]
        there = [path for path in paths if path.exists()]
        if not there:
            return []
        found += there
    return found


def _bytes_on_disk(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
