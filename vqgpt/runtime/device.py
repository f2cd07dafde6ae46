"""Devices, precision and random numbers, the same for both stages. Knows neither images nor tokens."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import torch

from vqgpt.errors import UsageError


def select_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here. Raises UsageError if it is not there.

    From here on float32 means float32 on it: TF32 would move codes that lie between two neighbours.
    """
    forbid_tf32()
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name!r}", "use auto, cpu, cuda, cuda:N or mps") from None
    present = {
        "cpu": True,
        "mps": mps,
        "cuda": cuda and (device.index or 0) < torch.cuda.device_count(),
    }
    if not present.get(device.type, False):
        raise UsageError(
            f"device {name!r} is not available on this machine",
            "use --device auto or cpu; `vqgpt doctor` lists devices",
        )
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """What `auto` means on this device: bf16 on a CUDA device that has it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which a network runs at `fp32`, `bf16` or `fp16`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Whether the block runs on deterministic operations alone: torch raises RuntimeError where there is none."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted == before:  # to ask torch imports its compiler, which takes seconds
        yield
        return
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS is not deterministic
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def forbid_tf32() -> None:
    """Compute float32 products in float32 on a GPU too."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch adds it at import


def derived_seed(seed: int, *stream: int | str) -> int:
    """A seed for one purpose: a pure function of the run's seed and a name such as ("order", epoch). 63 bits."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def epoch_order(seed: int, epoch: int, rows: int) -> torch.Tensor:
    """The order in which an epoch visits its rows, (rows,) int64 on the CPU: a pure function of (seed, epoch)."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(derived_seed(seed, "order", epoch)))


def new_workers(threads: int) -> ThreadPoolExecutor:
    """Threads that compute a pass each, in one thread each.

    Operations that are cut among threads wait for each other thousands of times in a step, which costs little on idle
    cores and nearly all the time on shared ones.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations of the block run in one thread each.

    For many small ones, as those of an optimiser: on shared cores two threads wait for each other in each of them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
