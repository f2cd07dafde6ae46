"""`vqgpt datasets`: what datasets there are, under which licence, and which are here. Must not import torch."""

import os
from pathlib import Path
from typing import Any

from vqgpt.data.downloads import existing_files, is_here
from vqgpt.data.table import DATASETS, Dataset
from vqgpt.progress import Notice, Report

LARGE = 10_000  # MB


def list_all(root: Path, report: Report) -> dict[str, Any]:
    """A row of facts for each dataset; whether it lies below `root`, and its size there and to download."""
    report(Notice(text=f"data root: {root}"))
    return {name: _row(dataset, root) for name, dataset in DATASETS.items()}


def _row(dataset: Dataset, root: Path) -> dict[str, Any]:
    images = " + ".join(f"{count:,} {split}" for split, count in dataset.rows.items())
    kind = "attributes" if dataset.label_kind == "bits" else "classes"
    here = is_here(dataset, root)
    return {
        "here": "yes" if here else "no" if dataset.source == "download" else dataset.source,
        "MB_on_disk": _megabytes_on_disk(dataset, root) if here else 0,
        "MB_to_get": dataset.megabytes,
        "images": images or "yours",
        "labels": f"{dataset.num_classes} {kind}" if dataset.num_classes else "class folders",
        "channels": dataset.channels,
        "size": dataset.default_size,
        "views": ", ".join(dataset.default_views),
        "licence": dataset.licence,
    }


def _megabytes_on_disk(dataset: Dataset, root: Path) -> int:
    """Of files and folders; for those of millions of files, as published."""
    if dataset.megabytes > LARGE:
        return dataset.megabytes
    paths = existing_files(dataset, root)
    inside = (Path(folder, name) for path in paths for folder, _, names in os.walk(path) for name in names)
    return round(sum(path.lstat().st_size for path in (*paths, *inside)) / 1e6)
