"""Metrics to Weights & Biases and to TensorBoard, whose packages are extras. Knows neither images nor tokens.

Weights & Biases is used where its package is set up: a thread of its own imports it, connects and sends, so that no
training waits for a network or ends with it. Where it sends to, and whether it sends at all (WANDB_MODE), is its own to
configure. TensorBoard is for those who ask for it; its logs lie beside the result, in the folder `tensorboard`.
"""

import importlib.util
import netrc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vqgpt.errors import MissingDataError
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import rank

PROJECT = "vqgpt"
SECONDS_TO_UPLOAD = 15  # what is left when a training is done
SECONDS_TO_LEAVE = 2  # when it is stopped

Log = Callable[[dict[str, Any]], None]
Records = queue.SimpleQueue[dict[str, Any] | None]  # None comes last


@contextmanager
def wandb_log(wanted: bool | None, result: Path, configuration: dict[str, Any], report: Report) -> Iterator[Log]:
    """A function that logs one record, which has a `step`; with `wanted` None, it does where wandb is set up.

    It does nothing where unwanted, under WANDB_MODE=disabled, and on ranks but the main. A training that continues is a
    run of its own, in one group with the run that it continues. Raises MissingDataError if it is wanted and cannot be.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    there = is_installed() and (mode == "offline" or has_login())
    if rank() > 0 or mode == "disabled" or wanted is False or (wanted is None and not there):
        yield lambda record: None
        return
    if not is_installed():
        raise MissingDataError("--wandb needs the package wandb", "pip install 'vqgpt[wandb]', or leave --wandb out")
    if not there:
        raise MissingDataError(
            "there is no account to log to Weights & Biases",
            "run `wandb login`, or set WANDB_MODE=offline, or leave --wandb out",
        )
    report(Notice(text=f"logging to Weights & Biases ({mode}); --no-wandb turns it off"))
    records: Records = queue.SimpleQueue()
    failures: list[str] = []
    sender = threading.Thread(target=_send, args=(records, failures, result, configuration), daemon=True)
    sender.start()

    def report_failure() -> None:
        if failures:
            report(Notice(text=f"no longer logging to Weights & Biases: {failures.pop()}"))

    def log(record: dict[str, Any]) -> None:
        records.put(record)
        report_failure()

    seconds = SECONDS_TO_LEAVE
    try:
        yield log
        seconds = SECONDS_TO_UPLOAD
    finally:
        records.put(None)
        sender.join(seconds)
        report_failure()


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


def is_installed() -> bool:
    """True if the package is there; a folder of logs, which has its name, is not it."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def has_login() -> bool:
    """True if the package will find a key, and so will not ask for one: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        logins = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser())
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: no home is known
        return False
    return host in logins.hosts


def _send(records: Records, failures: list[str], result: Path, configuration: dict[str, Any]) -> None:
    """Log the records until None comes. Whatever fails is reported, and does not end the training."""
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(SECONDS_TO_UPLOAD))  # or it waits for its network for ever
    try:
        import wandb

        result.parent.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=PROJECT,
            group=str(result.with_suffix("")),
            dir=result.parent,
            config=configuration,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        while (record := records.get()) is not None:
            run.log(record, step=record["step"])
        run.finish()
    except Exception as error:
        failures.append((str(error).strip() or type(error).__name__).splitlines()[0])
