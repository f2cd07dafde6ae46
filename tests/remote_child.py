"""What the processes do that the tests of object stores start and kill: fill a small cache on an object store."""

import os
import sys
from pathlib import Path

import numpy as np

from tests.conftest import description, rows_of
from vqgpt.api import filling as shards
from vqgpt.errors import VQGPTError
from vqgpt.options.paths import parse_cache_path
from vqgpt.progress import silent
from vqgpt.tokens import Split

SMALL = description(splits=(Split(name="train", rows=70),))


def fill(place: str) -> None:
    """What `vqgpt tokenize` does, with made-up codes."""
    codebook = np.arange(32, dtype=np.float32).reshape(16, 2)

    def codes_of(shard):
        yield rows_of(shard, SMALL)[:1]

    def labels_of(shard):
        return rows_of(shard, SMALL)[1:]

    shards.fill_cache(parse_cache_path(place), SMALL, codebook, False, "test", codes_of, labels_of, silent)


def fill_and_leave(place: str, environment: dict[str, str], seconds_to_leave: float, err: str) -> None:
    """The same as a process of its own, which writes an error to a file and leaves with its exit code."""
    os.environ.update(environment)
    shards.SECONDS_TO_LEAVE = seconds_to_leave
    try:
        fill(place)
    except VQGPTError as error:
        Path(err).write_text(str(error))
        sys.exit(int(error.exit_code))
