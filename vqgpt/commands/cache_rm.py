"""`vqgpt cache rm`: deletes a token cache, and nothing that is not one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.errors import InputError, UsageError
from vqgpt.options.definition import CACHE, DATA, Command, Flags, option
from vqgpt.options.paths import CachePath
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class RemoveConfig:
    """`vqgpt cache rm`."""

    cache: CachePath = CACHE
    yes: bool = option(False, "Delete it; without this, the command only says what it would delete.", group=DATA)


def run(config: RemoveConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Delete a cache, finished or not, if --yes is given."""
    from vqgpt.tokens import lock_of, remove_cache
    from vqgpt.tokens.writer import files_to_remove

    path = config.cache
    if isinstance(path, Path) and path.is_symlink():
        raise InputError(f"{path} is a link", "give the folder that it leads to")
    files_to_remove(path)  # refuses what is no cache, before a lock is left beside it
    with lock_of(path, report=report) as lock:
        lock.take()
        files = files_to_remove(path)
        size = sum(files.values())
        if not config.yes:
            raise UsageError(
                f"{path} ({len(files):,} files, {size:,} bytes) is deleted only if you say so",
                "give --yes to delete it",
            )
        remove_cache(path, lock.check)
    return {"deleted": path, "files": len(files), "bytes": size}


COMMAND = Command(words="cache rm", config=RemoveConfig, run=run, takes_recipe=False)
