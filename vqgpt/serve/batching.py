"""What many ask for at once, done together, in one thread.

    jobs of the same kind  ->  one call of `work` for all of them  ->  a result each

A batch is the job that has waited longest, and those of its kind that fit beside it. Knows neither HTTP nor networks.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

TaskT = TypeVar("TaskT")

LONGEST_GATHERING = 0.1  # seconds that a batch waits for those who got an answer a moment ago, and may ask again


class QueueFullError(Exception):
    """As much is waiting as may wait."""


class ClosedError(Exception):
    """Nothing new is taken."""


@dataclass(kw_only=True, eq=False)
class Job(Generic[TaskT]):
    """A task of a kind, of so many images. Once it is `abandoned`, nobody waits for its result."""

    task: TaskT
    kind: Hashable
    images: int
    result: Future[Any] = field(default_factory=Future)
    abandoned: bool = False


class Batcher(Generic[TaskT]):
    """Does jobs, in a thread of its own, until it is closed.

    `work(tasks, ended)` returns a result for each of some tasks of one kind; once `ended` is set, nobody waits for any.
    """

    def __init__(
        self, work: Callable[[Sequence[TaskT], threading.Event], Sequence[Any]], most_at_once: int, most_waiting: int
    ) -> None:
        self.work, self.most_at_once, self.most_waiting = work, most_at_once, most_waiting
        self.changed = threading.Condition()
        self.waiting: list[Job[TaskT]] = []
        self.running: list[Job[TaskT]] = []
        self.ended = threading.Event()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self.thread.start()

    def submit(self, task: TaskT, kind: Hashable, images: int) -> Job[TaskT]:
        """A job, to be done in its turn. Raises QueueFullError or ClosedError.

        What is alone is taken however large it is.
        """
        job = Job(task=task, kind=kind, images=images)
        with self.changed:
            if self.closed:
                raise ClosedError
            if self.waiting and sum(each.images for each in self.waiting) + images > self.most_waiting:
                raise QueueFullError
            self.waiting.append(job)
            self.changed.notify_all()
        return job

    def abandon(self, job: Job[TaskT]) -> None:
        """Nobody waits for the result of a job any more: it is not begun, or ended if nobody waits for its batch."""
        with self.changed:
            job.abandoned = True
            if job in self.waiting:
                self.waiting.remove(job)
                job.result.cancel()
            if self.running and all(each.abandoned for each in self.running):
                self.ended.set()

    def close(self) -> None:
        """Do what is waiting, take nothing new, and return when all is done."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()

    def _run(self) -> None:
        in_flight, took, ended = 0, 0.0, 0.0  # jobs when the batch before ended, its own included; its seconds; when
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
                self._gather(in_flight, ended + min(took, LONGEST_GATHERING))
                self.running = self._next_batch()
                self.ended.clear()
                if not self.running:
                    continue
            batch, begun = self.running, time.monotonic()
            try:
                results = self.work([job.task for job in batch], self.ended)
            except BaseException as error:
                for job in batch:
                    if not job.abandoned:  # asyncio complains of an error that nobody asks for
                        job.result.set_exception(error)
            else:
                for job, result in zip(batch, results, strict=True):
                    job.result.set_result(result)
            with self.changed:
                ended = time.monotonic()
                in_flight, took = len(batch) + len(self.waiting), ended - begun
                self.running = []

    def _gather(self, jobs: int, end: float) -> None:
        """Wait for as many jobs as there were before, with the lock, until a time on the monotonic clock."""
        while len(self.waiting) < jobs and not self.closed and (left := end - time.monotonic()) > 0:
            self.changed.wait(left)

    def _next_batch(self) -> list[Job[TaskT]]:
        """Take the first job, and in order those of its kind that fit beside it."""
        batch: list[Job[TaskT]] = []
        room = self.most_at_once
        for job in list(self.waiting):
            if not batch or (job.kind == batch[0].kind and job.images <= room):
                self.waiting.remove(job)
                if job.result.set_running_or_notify_cancel():  # from here on it cannot be cancelled
                    batch.append(job)
                    room -= job.images
        return batch
