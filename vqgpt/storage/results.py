"""Results that a command writes in one step: over what it may write them, and that one run at a time does.

A run that was killed once its result was in place and before it ended leaves its lock, which says what it made: the
same command makes that again. Must not import torch.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.storage.files import is_vacant, sha256
from vqgpt.storage.write_lock import WriteLock


@contextmanager
def sole_writer(
    result: Path, config: Any, overwrite: bool, names: Collection[str] | None = None, flag: str = "--out"
) -> Iterator[None]:
    """Hold the right to write a result, from before the work to after the write; see `check_place` for what goes in.

    Raises what that raises, and InputError if another run is writing the result, or if nothing can be written there.
    """
    with _lock(result, config, flag) as lock:
        lock.take()
        check_place(result, config, overwrite, names, flag)
        yield


def check_place(
    result: Path, config: Any, overwrite: bool, names: Collection[str] | None = None, flag: str = "--out"
) -> None:
    """Raise UsageError if something is at `result` and is not to be replaced, or of another kind.

    The result is a file, or with `names` a folder of files of these names: InputError if it holds anything else, which
    would be lost. `config` is that of the command, whose option `flag` chooses the place.
    """
    lock = _lock(result, config, flag)
    place, elsewhere = lock.place, f"give another {flag}"
    if is_vacant(place) and (names is not None or not place.exists()):
        return
    if place.is_dir() != (names is not None) or not (place.is_dir() or place.is_file()):
        raise UsageError(f"{result} is {'a folder' if place.is_dir() else 'a file' if names else 'no file'}", elsewhere)
    if not overwrite and not lock.makes_what_is_there():
        raise UsageError(f"{result} exists", f"give --overwrite to replace it, or another {flag}")
    if names is not None:
        others = [path.name for path in sorted(place.iterdir()) if path.name not in names or not _is_plain(path)]
        if others:
            raise InputError(
                f"{result} holds {others[0]}, which this export would not replace", f"move it elsewhere, or {elsewhere}"
            )


def _lock(result: Path, config: Any, flag: str) -> WriteLock:
    work = sha256(repr(config).encode())
    return WriteLock(result, work=work, elsewhere=f"give another {flag}")


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
