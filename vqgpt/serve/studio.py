"""A pair at work for many: requests become tasks, which wait, are done together, and are watched meanwhile.

SampleRequest  ->  Draw  ->  Drawn, or lines of JSON while it is drawn
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from vqgpt.errors import VQGPTError
from vqgpt.gpt.labels import NONE, NUMBER
from vqgpt.gpt.options import SamplingOptions
from vqgpt.serve import schema
from vqgpt.serve.answers import drawn_images, line
from vqgpt.serve.batching import Batcher, Job, QueueFullError
from vqgpt.serve.pair import Draw, Pair, Task, kind_of

SECONDS_BETWEEN_LOOKS = 0.1  # at what has been drawn, for those who watch
SECONDS_BETWEEN_CHECKS = 0.5  # of whether a client is still there
MOST_SEARCHES_WAITING = 32
LONGEST_AT_ONCE = 64  # letters of classes that are understood in no time, without another thread
BYTES_WRITTEN_AT_ONCE = 2**13
CODES_PER_SECOND = 500_000  # that are sent to one who watches
WITHOUT_CLASS = f"{NUMBER}{NONE}"
ResultT = TypeVar("ResultT")
FAILED = VQGPTError("the server failed", "its terminal says why; report it as a bug")


class Studio:
    """A pair at work for many: what is asked for at the same time is done together."""

    def __init__(self, pair: Pair, most_images: int, most_waiting: int) -> None:
        self.pair, self.most_images = pair, most_images
        self.batcher: Batcher[Task] = Batcher(pair.do, most_images, most_waiting)
        self.searches = CapacityLimiter(1)  # through all training rows
        self.readers = CapacityLimiter(2)  # of what was sent, and of rows

    async def search(self, work: Callable[[], ResultT]) -> ResultT:
        """The result of work that goes through all training rows, in its turn. Raises QueueFullError."""
        if self.searches.statistics().tasks_waiting >= MOST_SEARCHES_WAITING:
            raise QueueFullError
        return await to_thread.run_sync(work, limiter=self.searches)

    def submit(self, task: Task, images: int) -> Job[Task]:
        """A job, in its turn. Raises QueueFullError."""
        return self.batcher.submit(task, kind_of(task), images)

    async def done(self, task: Task, images: int, request: Request) -> Any:
        """The result of a task. A client that leaves abandons it."""
        job = self.submit(task, images)
        result = asyncio.wrap_future(job.result)
        try:
            while not (await asyncio.wait([result], timeout=SECONDS_BETWEEN_CHECKS))[0]:
                if await request.is_disconnected():
                    raise HTTPException(499, "the client left")
            return result.result()
        finally:
            if not result.done():
                self.batcher.abandon(job)

    def check_number(self, images: int) -> None:
        """Raise UnfitError for more images than a request may have."""
        if images > self.most_images:
            raise schema.UnfitError(f"{images} images are too many", f"ask for at most {self.most_images} at once")

    async def draw(self, asked: schema.SampleRequest, known: NDArray[np.int64] | None = None) -> Draw:
        """What a request asks to be drawn. Raises UsageError, or UnfitError for too many images."""
        self.check_number(asked.num_samples)
        if sum(len(str(word)) for word in asked.classes) <= LONGEST_AT_ONCE:
            return self._draw(asked, known)
        return await to_thread.run_sync(self._draw, asked, known, limiter=self.readers)

    def _draw(self, asked: schema.SampleRequest, known: NDArray[np.int64] | None) -> Draw:
        numbers = range(asked.first, asked.first + asked.num_samples)
        options = asked.model_dump(exclude={"classes", "first", "seed", "known", "num_samples"})
        classes = asked.classes if known is None or asked.classes else [WITHOUT_CLASS]
        grids = None if known is None else np.broadcast_to(known, (len(numbers), *known.shape))
        images = self.pair.generator.asked(numbers, classes, asked.seed, SamplingOptions(**options), grids)
        return Draw.of(images, self.pair.grid)


async def written(images: NDArray[np.uint8], work: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """The result of work that writes images as PNG files: in a thread where that takes longer than to hand it over."""
    if images.nbytes <= BYTES_WRITTEN_AT_ONCE:
        return work(*arguments)
    return await to_thread.run_sync(work, *arguments)


def streamed(studio: Studio, task: Draw, notices: Sequence[str]) -> StreamingResponse:
    """Lines of JSON while a task is done. Raises QueueFullError before the first."""
    job = studio.submit(task, len(task.canvas))
    return StreamingResponse(lines_of(studio, job, task, notices), media_type="application/x-ndjson")


async def lines_of(studio: Studio, job: Job[Task], task: Draw, notices: Sequence[str]) -> AsyncIterator[str]:
    """`progress` whenever more is drawn, then `image` for each image."""
    result, seen = asyncio.wrap_future(job.result), -1
    seconds = max(SECONDS_BETWEEN_LOOKS, task.canvas.size / CODES_PER_SECOND)
    try:
        for text in notices:
            yield line("notice", text=text)
        while not (await asyncio.wait([result], timeout=seconds))[0]:
            codes = task.canvas.copy()
            drawn = int((codes >= 0).sum())
            if drawn != seen:
                seen = drawn
                yield line("progress", drawn=drawn, tokens=codes.size, codes=codes.tolist())
        try:
            drawn = result.result()
            images = await written(drawn.images, drawn_images, studio.pair, task, drawn)
        except Exception as error:  # the first line has gone with status 200
            known = error if isinstance(error, VQGPTError) else FAILED
            yield line("problem", error=known.message, hint=known.hint)
            if known is FAILED:
                raise
            return
        for place, image in enumerate(images):
            yield line("image", place=place, image=image.model_dump())
    finally:
        if not result.done():
            studio.batcher.abandon(job)
