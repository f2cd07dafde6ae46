"""Keeping memory pages between steps, on Linux with glibc. Must not import torch: it acts before torch allocates."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
NEVER = 2**31 - 1


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
