"""`vqgpt datasets`: what datasets there are, under which licence, and which are here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.data.table import DATASETS, Dataset
from vqgpt.options.definition import DATA_ROOT, Command, Flags
from vqgpt.options.paths import default_data_root
from vqgpt.progress import Notice, Report

LARGE = 10_000  # MB


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig:
    """`vqgpt datasets`."""

    data_root: Path | None = DATA_ROOT


def run(config: DatasetsConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """List the datasets: their splits, licences, and whether they are here."""
    root = config.data_root or default_data_root()
    report(Notice(text=f"data root: {root}"))
    return {name: _row(dataset, root) for name, dataset in DATASETS.items()}


def _row(dataset: Dataset, root: Path) -> dict[str, Any]:
    from vqgpt.data.downloads import is_here

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
    from vqgpt.data.downloads import existing_files

    if dataset.megabytes > LARGE:
        return dataset.megabytes
    paths = existing_files(dataset, root)
    inside = (Path(folder, name) for path in paths for folder, _, names in os.walk(path) for name in names)
    return round(sum(path.lstat().st_size for path in (*paths, *inside)) / 1e6)


COMMAND = Command(words="datasets", config=DatasetsConfig, run=run, takes_recipe=False)
