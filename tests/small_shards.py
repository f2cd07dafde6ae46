"""A program: `vqgpt` with shards of 16 rows. DIE_AT=RANK:N kills that rank when it is to store its N-th shard."""

import os
import signal
import sys

from vqgpt.__main__ import run
from vqgpt.tokens import CacheWriter, arrays

arrays.MAX_SHARD_ROWS = 16
store = CacheWriter.store
count = 0


def store_or_die(*arguments):
    global count
    count += 1
    if os.environ.get("DIE_AT") == f"{os.environ.get('RANK')}:{count}":
        os.kill(os.getpid(), signal.SIGKILL)
    return store(*arguments)


CacheWriter.store = store_or_die
run(sys.argv[1:])
