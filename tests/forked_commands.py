"""A program that has imported everything and forks a child for each command it reads: processes to kill, at no cost.

A line of stdin is a JSON object; a line of stdout says how the child ended. Shards are small, so that there are many.

    {"folder": "/tmp/a", "arguments": [...], "signal": 9, "after": 0.3, "file_limit": 9000}
        ->  {"code": -9, "seconds": 0.3, "err": "..."}
    {"folder": "/tmp/a", "kill_before": 17, "arguments": [...]}, or "cache": "x.zarr" for made-up codes
        ->  {"code": -9, "operation": "fsync train/codes/c/0/0"}
    The same with "full_from" instead of "kill_before": from that operation on the disk is full.
"""

import errno
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import tests.preloaded  # noqa: F401
import vqgpt.stages.tokenize as stage
from tests.conftest import description, rows_of
from tests.disk_operations import before_each_operation, named
from vqgpt.cli.app import main
from vqgpt.progress import silent
from vqgpt.stages.shards import fill_cache
from vqgpt.tokens import Split, layout

layout.MAX_SHARD_ROWS = 8
os.fsync = lambda descriptor: None  # it is slow, and the kernel keeps what a killed process wrote
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
    stage.encode_batch = counted(stage.encode_batch)
    main(request["arguments"])


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


def work_until(request):
    """Do it up to a disk operation, at which the process is killed, or from which on the disk is full."""
    count = 0
    killed = "kill_before" in request
    place = request["kill_before"] if killed else request["full_from"]

    def act(operation):
        nonlocal count
        count += 1
        if count == place + 1:
            Path("operation").write_text(named(operation, Path(request.get("cache", "."))))
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
        if not killed and count > place and operation[0] != "unlink":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation[1]))

    with before_each_operation(act):
        if "cache" in request:
            fill_small_cache(Path(request["cache"]))
        else:
            run_command(request)


def in_child(request) -> dict:
    os.chdir(request["folder"])
    start = time.monotonic()
    is_cut_off = "kill_before" in request or "full_from" in request
    with tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(err.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 0
            try:
                (work_until if is_cut_off else run_command)(request)
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
    if is_cut_off and answer["code"]:
        answer["operation"] = Path("operation").read_text()
    return answer


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), flush=True)
