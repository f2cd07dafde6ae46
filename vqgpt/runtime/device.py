"""Where work runs: devices, precision and random numbers; and several processes that do one work, started by torchrun.

The same for both stages. In a single process everything about several does nothing. Knows neither images nor tokens.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from vqgpt.errors import UsageError, VQGPTError
from vqgpt.runtime.process import (
    StopRequest,
    cut_short_on_signals,
    device_number,
    process_rank,
    processes,
    wait_for_address,
)

WAIT = timedelta(minutes=30)  # for the slowest rank, before the others give up
CONNECTION_LOST = ("closed by peer", "reset by peer", "Broken pipe")  # in what gloo says of a process that has ended
ValueT = TypeVar("ValueT")


def select_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here. Raises UsageError if it is not there.

    From here on float32 means float32 on it: TF32 would move codes that lie between two neighbours.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch adds it at import
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name!r}", "use auto, cpu, cuda, cuda:N or mps") from None
    present = {"cpu": True, "mps": mps, "cuda": cuda and (device.index or 0) < torch.cuda.device_count()}
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


def resolve_precision_of_products(precision: str, device: torch.device) -> str:
    """What `auto` means for work that is mostly matrix products, as the GPT's training: bf16 where those are fast."""
    return "bf16" if precision == "auto" and has_fast_bfloat16(device) else resolve_precision(precision, device)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 by instructions of its own."""
    match device.type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # which torch 2.10 may lack
            return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
        case _:
            return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which a network runs at `fp32`, `bf16` or `fp16`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Whether the block runs on deterministic operations alone: torch raises RuntimeError where there is none."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted == before:  # to set it, torch imports its compiler, which takes seconds
        yield
        return
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS is not deterministic
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


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


def rank() -> int:
    """The number of this process, 0 for the main one, which alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives the device of this one.

    Raises VQGPTError where another one ends while this one waits for it, and UsageError where they cannot meet.
    """
    if processes() == 1:
        yield device
        return
    process_rank()  # which checks what the processes need to meet
    wait_for_address()
    if str(device) == "cuda":
        device = torch.device("cuda", device_number(torch.cuda.device_count()))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        place = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the processes cannot meet at {place} ({reason})", "check both, or use torchrun") from error
    try:
        yield device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(words in str(error) for words in CONNECTION_LOST):
            raise _ended("another process") from error
        raise
    finally:
        dist.destroy_process_group()


def _ended(which: str) -> VQGPTError:
    return VQGPTError(f"{which} of this run has ended", "see its message; the same command continues what was saved")


def name_of_run() -> str:
    """A name, other at each call, that the processes of this run have in common."""
    return of_main(uuid.uuid4().hex)


def of_main(value: ValueT) -> ValueT:
    """The main process's value, on every rank. All wait here until the main process has come, and no longer."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def main_first() -> Iterator[None]:
    """The block runs in the main process, and then in the others. Raises VQGPTError in these if it failed there."""
    if rank() > 0:
        if not of_main(True):
            raise _ended("the main process")
        yield
        return
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # the others may have ended too
            of_main(False)
        raise
    of_main(True)


def cut_short_when_alone(request: StopRequest | None = None) -> AbstractContextManager[None]:
    """`cut_short_on_signals` for a single process; several finish together what they began."""
    return cut_short_on_signals(request) if world_size() == 1 else nullcontext()


def local_rows(rows: Tensor) -> Tensor:
    """The part of the rows (B,) of a batch for this rank; all of them where there are fewer rows than ranks."""
    return rows if len(rows) < world_size() else rows.tensor_split(world_size())[rank()]


def fewest_rows(rows: Tensor) -> int:
    """How many rows of a batch the rank with the fewest has."""
    return len(rows) // world_size() or len(rows)


def local_share(rows: Tensor) -> float:
    """The weight of this rank's mean in the mean over a batch of `rows`; the weights of all ranks sum to 1.

    Where there are fewer rows than ranks, all work on the same rows and only the main process counts.
    """
    return float(rank() == 0) if len(rows) < world_size() else len(local_rows(rows)) / len(rows)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all ranks, the same on each."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its sum over the ranks."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_main(tensor: Tensor) -> Tensor:
    """The main process's tensor, on every rank."""
    if world_size() > 1:
        tensor = tensor.contiguous().clone()
        dist.broadcast(tensor, src=0)
    return tensor


def gather_to_main(value: Any) -> list[Any]:
    """The values of all ranks, in order, on the main process; elsewhere an empty list."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.gather_object(value, gathered if rank() == 0 else None)
    return gathered if rank() == 0 else []


def largest_over_ranks(value: int) -> int:
    """The largest of the ranks' values, on every rank."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)
