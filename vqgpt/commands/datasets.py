"""`vqgpt datasets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.options.command import Command, Flags
from vqgpt.options.paths import default_data_root
from vqgpt.options.shared import DATA_ROOT
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig:
    """`vqgpt datasets`."""

    data_root: Path | None = DATA_ROOT

    @property
    def root(self) -> Path:
        """The folder of downloaded images."""
        return self.data_root or default_data_root()


def run(config: DatasetsConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """List the datasets: their splits, licences, and whether they are here."""
    from vqgpt.api import datasets

    return datasets.list_all(config.root, report)


COMMAND = Command(words="datasets", config=DatasetsConfig, run=run, takes_recipe=False)
