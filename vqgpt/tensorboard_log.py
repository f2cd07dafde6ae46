"""Metrics for TensorBoard, for those who ask for it with --tensorboard. Knows neither images nor tokens.

The package is an extra and is imported only then. The logs lie beside the result, in the folder `tensorboard`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqgpt.distributed import rank
from vqgpt.errors import MissingDataError

Log = Callable[[dict[str, Any]], None]


@contextmanager
def tensorboard_log(wanted: bool, result: Path) -> Iterator[Log]:
    """A function that logs the numbers of one record, which has a `step`; it does nothing unless wanted.

    Nor does it on ranks but the main. Raises MissingDataError if the package is not there.
    """
    if not wanted or rank() > 0:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDataError(
            "--tensorboard needs the package tensorboard",
            "pip install 'vqgpt[tensorboard]', or leave --tensorboard out",
        ) from None

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, record["step"])

    with SummaryWriter(str(result.parent / "tensorboard" / result.stem)) as writer:
        yield log
