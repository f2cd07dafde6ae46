"""A program that has imported everything and forks a child for each command it reads: processes to kill, at no cost.

A line of stdin is a JSON object; a line of stdout says how the child ended. Shards are small, so that there are many.

    {"folder": "/tmp/a", "arguments": [...], "signal": 9, "after": 0.3, "file_limit": 9000}
        ->  {"code": -9, "seconds": 0.3, "err": "..."}
    {"folder": "/tmp/a", "kill_before": 17, "cache": "x.zarr"}        a small cache, without a command
    {"folder": "/tmp/a", "kill_before": 17, "arguments": [...]}
        ->  {"code": -9, "operations": ["mkdir x.zarr", ..., "fsync x.zarr/train/codes/c/0/0"]}
    {"folder": "/tmp/a", "full_before": 17, "arguments": [...]}       the disk is full from that operation on
"""

import errno
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tests.preloaded  # noqa: F401
import vqgpt.api.tokenize as stage
from tests.conftest import description, rows_of
from tests.disk_operations import before_each_operation, named
from vqgpt.api.filling import fill_cache
from vqgpt.cli.app import main
from vqgpt.gpt import generate
from vqgpt.progress import silent
from vqgpt.tokens import Split, arrays

arrays.MAX_SHARD_ROWS = generate.IMAGES_ON_CPU = 8
os.fsync = lambda descriptor: None  # it is slow, and the kernel keeps what a killed process wrote
TAKES_SPACE = {"mkdir", "open", "write", "fsync", "replace"}
CALLS = "calls.log"  # a byte for every shard that any child began to make
SMALL = description(splits=(Split(name="train", rows=40),))


def log_call() -> None:
    with open(CALLS, "ab") as file:
        file.write(b".")


def counted(encode):
    def encode_and_count(*arguments):
        log_call()
        return encode(*arguments)

    return encode_and_count


def run_command(request):
    if "file_limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    stage.encode_images = counted(stage.encode_images)
    with disturbed(request):
        if "cache" in request:
            fill_small_cache(Path(request["cache"]))
        else:
            main(request["arguments"])


@contextmanager
def disturbed(request) -> Iterator[None]:
    """Tell the operations as they come, and kill the process before one, or refuse what takes space from it on."""
    if "operations" not in request:
        yield
        return
    count = 0

    def act(operation):
        nonlocal count
        os.write(request["operations"], named(operation, Path.cwd()).encode() + b"\n")
        if count == request.get("kill_before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if count >= request.get("full_before", math.inf) and operation[0] in TAKES_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device", str(operation[1]))
        count += 1

    with before_each_operation(act):
        yield


def fill_small_cache(cache: Path) -> None:
    """What `vqgpt tokenize` does, with made-up codes."""

    def codes_of(shard):
        log_call()
        yield rows_of(shard, SMALL)[:1]

    def labels_of(shard):
        return rows_of(shard, SMALL)[1:]

    import numpy as np

    codebook = np.arange(32, dtype=np.float32).reshape(16, 2)
    fill_cache(cache, SMALL, codebook, False, "test", codes_of, labels_of, silent)


def in_child(request) -> dict:
    os.chdir(request["folder"])
    start = time.monotonic()
    with tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as operations:
        if {"kill_before", "full_before"} & set(request):
            request["operations"] = operations.fileno()
        child = os.fork()
        if child == 0:
            os.dup2(err.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 0
            try:
                run_command(request)
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            sys.stderr.flush()
            os._exit(code)
        if "signal" in request:
            time.sleep(request["after"])
            os.kill(child, request["signal"])
        _, status = os.waitpid(child, 0)
        err.seek(0)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        answer["err"] = err.read().decode()
        operations.seek(0)
        answer["operations"] = operations.read().decode().splitlines()
    return answer


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), flush=True)
