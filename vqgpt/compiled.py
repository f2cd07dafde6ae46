"""C code of ours: compiled for this machine's cores at first use (a second), and called without Python's lock.

A C file that lies beside a module -> its functions, or None where there is no C compiler.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

HEADERS = Path(__file__).parent


@functools.cache
def compiled_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None where it cannot be compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / source.with_suffix(".so").name
        options = ["-O3", "-march=native", "-shared", "-fPIC", "-I", str(HEADERS), "-o", str(library)]
        command = [compiler, *options, str(source), "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
        return ctypes.CDLL(str(library))


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | int) -> int:
    """Call a function that takes pointers and longs; Python's other threads run meanwhile."""
    result: int = getattr(library, name)(
        *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) for a in arguments)
    )
    return result
