"""`Batcher`: what is done together, in which order, and what becomes of jobs that fail, or that nobody waits for."""

import threading
import time

import pytest

from vqgpt.serve.batching import Batcher, ClosedError, QueueFullError


class Recorder:
    """Work that is done when it is let, and remembers what was done together."""

    def __init__(self):
        self.let = threading.Semaphore(0)
        self.batches = []

    def __call__(self, tasks, ended):
        self.let.acquire()
        self.batches.append((list(tasks), ended.is_set()))
        if "fails" in tasks:
            raise ValueError("broken")
        return [task.upper() for task in tasks]


def waiting_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_jobs_of_a_kind_are_done_together_and_the_oldest_first():
    work = Recorder()
    batcher = Batcher(work, most_at_once=4, most_waiting=100)
    first = batcher.submit("a", "x", 1)
    waiting_for(lambda: batcher.running)
    later = [
        batcher.submit(*job) for job in (("b", "x", 2), ("c", "y", 1), ("d", "x", 3), ("e", "x", 2), ("f", "y", 9))
    ]
    work.let.release(10)
    assert [job.result.result(10) for job in (first, *later)] == ["A", "B", "C", "D", "E", "F"]
    assert [tasks for tasks, _ in work.batches] == [["a"], ["b", "e"], ["c"], ["d"], ["f"]]
    batcher.close()


def test_what_nobody_waits_for_is_not_begun_or_is_ended():
    work = Recorder()
    batcher = Batcher(work, most_at_once=4, most_waiting=100)
    running = batcher.submit("a", "x", 1)
    waiting_for(lambda: batcher.running)
    waiting = batcher.submit("b", "x", 1)
    batcher.abandon(waiting)
    assert waiting.result.cancelled()
    assert not batcher.ended.is_set()
    batcher.abandon(running)
    work.let.release(10)
    batcher.close()
    assert work.batches == [(["a"], True)]


def test_a_failure_reaches_all_of_its_batch_and_no_other():
    work = Recorder()
    batcher = Batcher(work, most_at_once=4, most_waiting=100)
    work.let.release(10)
    failed = batcher.submit("fails", "x", 1)
    with pytest.raises(ValueError, match="broken"):
        failed.result.result(10)
    assert batcher.submit("a", "x", 1).result.result(10) == "A"
    batcher.close()
    with pytest.raises(ClosedError):
        batcher.submit("b", "x", 1)


def test_a_full_queue_takes_no_more_and_closing_does_what_waits():
    work = Recorder()
    batcher = Batcher(work, most_at_once=4, most_waiting=3)
    jobs = [batcher.submit("a", "x", 9)]
    waiting_for(lambda: batcher.running)
    jobs += [batcher.submit("b", "x", 2), batcher.submit("c", "x", 1)]
    with pytest.raises(QueueFullError):
        batcher.submit("d", "x", 1)
    work.let.release(10)
    batcher.close()
    assert [job.result.result(0) for job in jobs] == ["A", "B", "C"]
