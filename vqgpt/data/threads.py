"""A `map` whose results come in order while threads work ahead. Must not import torch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def ordered_map(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int, ahead: int
) -> Iterator[ResultT]:
    """`map(function, items)` with up to `ahead` results made in advance by `workers` threads; with none, plain `map`.

    What `function` raises is raised here, in its turn. A consumer that leaves early cancels what is waiting.
    """
    if not workers:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
