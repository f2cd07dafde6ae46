"""`vqgpt cache rm`: deletes a token cache, and nothing that is not one. Must not import torch."""

from pathlib import Path
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report
from vqgpt.tokens import lock_of, remove_cache
from vqgpt.tokens.writer import files_to_remove


def run(path: CachePath, yes: bool, report: Report) -> dict[str, Any]:
    """Delete the cache, finished, unfinished, damaged or half deleted; the result names it, and its files and bytes.

    Raises MissingDataError if there is nothing, InputError if it is no token cache of ours, holds other files, or is
    being written, and UsageError, with what would be deleted, if --yes was not given.
    """
    if isinstance(path, Path) and path.is_symlink():
        raise InputError(f"{path} is a link", "give the folder that it leads to")
    files_to_remove(path)  # before a lock is left beside what is none
    with lock_of(path, report=report) as lock:
        lock.take()
        files = files_to_remove(path)
        size = sum(files.values())
        if not yes:
            raise UsageError(
                f"{path} ({len(files):,} files, {size:,} bytes) is deleted only if you say so",
                "give --yes to delete it",
            )
        remove_cache(path, lock.check)
    return {"deleted": path, "files": len(files), "bytes": size}
