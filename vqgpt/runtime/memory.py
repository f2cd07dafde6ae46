"""Keeping memory pages between steps, on Linux with glibc; and limits that are too low.

Must not import torch: it acts before torch allocates.
"""

import ctypes
import platform
import resource

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
NEVER = 2**31 - 1
TORCH_NEEDS = 2**30  # bytes of addresses, to load it and its libraries


def keep_memory_pages() -> bool:
    """Tell glibc's allocator to keep what is freed; True if it will.

    By default it returns each large block to the kernel at once, and every step of a network on a CPU then waits for
    the same pages to be mapped and zeroed again. All threads share one heap: what one frees, another can use, and the
    heaps that glibc gives to further threads would shrink again. Elsewhere (macOS, musl) this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_ARENA_MAX, 1))


def low_limit() -> str:
    """What to say of a limit of this process's memory that is too low for torch, "" if there is none.

    Its libraries end the process by themselves then, with words of their own.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= TORCH_NEEDS:
        return ""
    return f"memory is limited to {limit // 2**20:,} MiB (`ulimit -v`), and torch needs about {TORCH_NEEDS // 2**20:,}"
