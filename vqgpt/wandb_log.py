"""Metrics to Weights & Biases, for those who ask for it with --wandb. Knows neither images nor tokens.

The package is an extra and is imported only then. Where it sends to, and whether it sends at all (WANDB_MODE=offline),
is its own to configure.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqgpt.distributed import rank
from vqgpt.errors import MissingDataError

PROJECT = "vqgpt"

Log = Callable[[dict[str, Any]], None]


@contextmanager
def wandb_log(wanted: bool, result: Path, configuration: dict[str, Any]) -> Iterator[Log]:
    """A function that logs one record, which has a `step`; it does nothing unless wanted, nor on ranks but the main.

    A training that continues is a run of its own, in one group with the run that it continues. Raises
    MissingDataError if the package is not there or has no account to log to.
    """
    if not wanted or rank() > 0:
        yield lambda record: None
        return
    try:
        import wandb
    except ImportError:
        raise MissingDataError(
            "--wandb needs the package wandb", "pip install 'vqgpt[wandb]', or leave --wandb out"
        ) from None
    result.parent.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=PROJECT,
            group=str(result.with_suffix("")),
            dir=result.parent,
            config=configuration,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
    except wandb.Error as error:
        raise MissingDataError(
            f"Weights & Biases cannot be logged to ({str(error).splitlines()[0]})",
            "run `wandb login`, or set WANDB_MODE=offline, or leave --wandb out",
        ) from None
    try:
        yield lambda record: run.log(record, step=record["step"])
    finally:
        run.finish()
