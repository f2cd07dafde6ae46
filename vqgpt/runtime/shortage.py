"""What the machine had too little of when something failed: disk, memory, open files, threads.

Must not import torch: without memory for that, it could not tell.
"""

import errno

from vqgpt.errors import ResourceError
from vqgpt.storage.files import DISK_FULL

NO_MEMORY = ("not enough memory", "allocate memory", "failed to map segment", "out of memory")  # in what systems say
NO_THREAD = "can't start new thread"


def out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed, on a CPU or a GPU, or a library found no room to be loaded."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)


def shortage(error: BaseException) -> ResourceError | None:
    """What ran out, for users; None if `error` is something else."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number in DISK_FULL:
        return ResourceError(
            f"no space left to write {error.filename or 'the file'}", "make room, then run the same command again"
        )
    if isinstance(error, OSError) and number in (errno.EMFILE, errno.ENFILE):
        return ResourceError(
            f"too many open files, at {error.filename or 'the next one'}",
            "allow more (`ulimit -n 1024`), then run the same command again",
        )
    if number == errno.EAGAIN or NO_THREAD in str(error):
        return ResourceError(
            "no more threads or processes can be started", "allow more (`ulimit -u`, `ulimit -v`), or stop others"
        )
    if out_of_memory(error):
        return ResourceError(
            "out of memory",
            "use smaller settings (--batch-size, --size), a larger machine, or a higher limit (`ulimit -v`)",
        )
    return None
