"""C code of ours: compiled for this machine's cores at first use (a second), kept, and called without Python's lock.

A C file that lies beside a module -> its functions, or None where there is no C compiler.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from vqgpt.files import user_cache_folder

HEADERS = Path(__file__).parent
OPTIONS = ["-O3", "-march=native", "-shared", "-fPIC"]


@functools.cache
def compiled_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None where it cannot be compiled."""
    compiler = shutil.which("cc")
    name = _name(compiler, source) if compiler else None
    if compiler is None or name is None:
        return None
    # RuntimeError: no home is known; OSError: it is not there, or damaged, or lies where nothing may be run or written
    with suppress(OSError, RuntimeError):
        return ctypes.CDLL(str(_kept(name)))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        command = [compiler, *OPTIONS, "-I", str(HEADERS), "-o", str(made), str(source), "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
        library = ctypes.CDLL(str(made))
        with suppress(OSError, RuntimeError):
            _keep(made, _kept(name))
    return library


def _name(compiler: str, source: Path) -> str | None:
    """By all that a library follows from: code, compiler, and these cores, as machines may share a cache folder."""
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull]
    macros = subprocess.run(command, capture_output=True, check=False)
    if macros.returncode != 0:
        return None
    code = [file.read_bytes() for file in (source, *sorted(HEADERS.glob("*.h")))]
    digest = hashlib.sha256(b"\0".join([repr(OPTIONS).encode(), macros.stdout, *code])).hexdigest()
    return f"{source.stem}-{digest[:32]}.so"


def _kept(name: str) -> Path:
    """Where a library lies. Raises RuntimeError if there is no folder of the user's."""
    return user_cache_folder() / "compiled" / name


def _keep(made: Path, kept: Path) -> None:
    """Copy a library to its place, where it appears whole, though other processes may do the same."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder, open(Path(folder) / kept.name, "wb") as file:
        file.write(made.read_bytes())
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, kept)


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | int) -> int:
    """Call a function that takes pointers and longs; Python's other threads run meanwhile."""
    result: int = getattr(library, name)(
        *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) for a in arguments)
    )
    return result
