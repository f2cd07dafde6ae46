"""Stands between `vqgpt.storage.files` and the system: names every change to the disk just before it happens.

A test looks on (order of fsync and rename), fails the operation (full disk), or kills the process there. Nothing is
flushed in fact: that is slow, and the kernel keeps what a killed process wrote.
"""

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import vqgpt.storage.files

Operation = tuple[str, Path, Path | None]  # what, on which file, and for a replacement its new name


@contextmanager
def before_each_operation(act: Callable[[Operation], None]) -> Iterator[None]:
    """Within this block, `act` is called before every change: of names, and half of each write."""
    names: dict[int, Path] = {}
    real = {name: getattr(os, name) for name in ("open", "pwrite", "replace", "mkdir", "unlink", "rmdir")}

    class InHalves:
        def __init__(self, path, mode):
            act(("open", Path(path), None))
            self.path, self.file = Path(path), builtins.open(path, mode)  # noqa: SIM115
            names[self.file.fileno()] = self.path

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                act(("write", self.path, None))
                self.file.write(half)
                self.file.flush()

        def flush(self):
            self.file.flush()

        def __getattr__(self, name):  # of tell and seek, for archives
            return getattr(self.file, name)

    def os_open(path, flags, *arguments, **keywords):
        if flags & os.O_CREAT:
            act(("open", Path(path), None))
        descriptor = real["open"](path, flags, *arguments, **keywords)
        names[descriptor] = Path(path)
        return descriptor

    def pwrite(descriptor, data, offset):
        act(("write", names[descriptor], None))
        return real["pwrite"](descriptor, data, offset)

    def fsync(descriptor):
        act(("fsync", names[descriptor], None))

    def replace(source, target):
        act(("replace", Path(source), Path(target)))
        real["replace"](source, target)

    def mkdir(path, *arguments, **keywords):
        act(("mkdir", Path(path), None))
        real["mkdir"](path, *arguments, **keywords)

    def unlink(path, *arguments, **keywords):
        act(("unlink", Path(path), None))
        real["unlink"](path, *arguments, **keywords)

    def rmdir(path, *arguments, **keywords):
        act(("rmdir", Path(path), None))
        real["rmdir"](path, *arguments, **keywords)

    changes = {"open": os_open, "pwrite": pwrite, "fsync": fsync, "replace": replace, "mkdir": mkdir}
    with (
        mock.patch.multiple(os, **changes, unlink=unlink, rmdir=rmdir),
        mock.patch.object(vqgpt.storage.files, "open", InHalves, create=True),
    ):
        yield


def named(operation: Operation, folder: Path) -> str:
    """An operation in words, its file below `folder`."""
    what, path, _ = operation
    return f"{what} {os.path.relpath(path, folder)}"
