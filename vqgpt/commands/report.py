"""`vqgpt report`: the page of a run, or of several side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqgpt.api.options import SourceOptions
from vqgpt.errors import UsageError
from vqgpt.options.definition import DATA, Command, Flags, argument, check, option, out_option
from vqgpt.options.paths import RUNS_FOLDER, expand_home
from vqgpt.progress import Report
from vqgpt.storage.files import check_can_be_written, open_regular, write_atomically

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """`vqgpt report`."""

    runs: tuple[str, ...] = argument("The folder of a run, runs/NAME; with --compare, of several.")
    compare: bool = option(
        False, "Put runs side by side: their curves in one chart, their figures in one table.", group=DATA
    )
    out: Path | None = out_option("The page to write", "report.html in the folder of the run, or runs/comparison.html")
    sources: SourceOptions

    def __post_init__(self) -> None:
        check(self.out is None or self.out.suffix == ".html", "out", self.out, "a file name that ends in .html")
        several = len(self.runs) > 1
        if several and not self.compare:
            raise UsageError(f"{len(self.runs)} runs were given", "give --compare to put them side by side, or one run")
        if self.compare and not several:
            raise UsageError("--compare needs two runs or more", "name their folders, as in: --compare runs/a runs/b")

    @property
    def folders(self) -> list[Path]:
        """The folders of the runs."""
        return [Path(expand_home(name, "runs")) for name in self.runs]

    @property
    def result(self) -> Path:
        """The page to write."""
        return self.out or (RUNS_FOLDER / "comparison.html" if self.compare else self.folders[0] / PAGE)


def run(config: ReportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a page that shows a run: pictures, curves, figures, and what looks wrong."""
    from vqgpt.report.diagnosis import findings
    from vqgpt.report.gather import gather
    from vqgpt.report.page import page

    check_replaceable(config.result, flags.overwrite)
    if flags.dry_run:
        return {"page": config.result, "runs": config.folders}
    check_can_be_written(config.result)
    runs = [gather(folder, config.sources, report) for folder in config.folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(run.folder)) for run in runs]
    write_atomically(config.result, page(runs).encode(errors="replace"))
    return {"page": config.result, "findings": [finding for run in runs for finding in findings(run)]}


def check_replaceable(page: Path, overwrite: bool) -> None:
    """Raise UsageError if something is at `page` that is not a page of ours, and is not to be replaced."""
    from vqgpt.report.page import MARK

    if not page.exists() or overwrite:
        return
    with open_regular(page) as file:
        ours = MARK.encode() in file.read(2000)
    if not ours:
        raise UsageError(f"{page} exists, and is no page of a run", "give --overwrite to replace it, or another --out")


COMMAND = Command(words="report", config=ReportConfig, run=run)
