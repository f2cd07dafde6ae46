"""`vqgpt cache rm`: deletes a token cache, and nothing that is not one. Must not import torch."""

from pathlib import Path
from typing import Any

from vqgpt.config.cache_commands import RemoveConfig
from vqgpt.config.cache_path import CachePath
from vqgpt.errors import InputError, UsageError
from vqgpt.tokens import lock_of, read_manifest, remove_cache
from vqgpt.tokens.document import DamagedManifestError
from vqgpt.tokens.store import store_at
from vqgpt.tokens.writer import StrangerError, own_files


def run(config: RemoveConfig) -> dict[str, Any]:
    """Delete the cache, finished, unfinished or damaged; the result names it, and its files and bytes.

    Raises MissingDataError if there is nothing, InputError if it is no token cache of ours, holds other files, or is
    being written, and UsageError, with what would be deleted, if --yes was not given.
    """
    path = config.cache
    if isinstance(path, Path):
        if path.is_symlink():
            raise InputError(f"{path} is a link", "give the folder that it leads to")
        path = path.resolve()  # `.` has no name that a lock could have
    splits = _split_names(config.cache)
    with lock_of(path) as lock:
        lock.take()
        try:
            files = own_files(store_at(path), splits)
        except StrangerError as error:
            raise InputError(
                f"{config.cache} holds {error.name}, which does not belong to a token cache",
                "move it elsewhere",
            ) from None
        size = sum(files.values())
        if not config.yes:
            raise UsageError(
                f"{config.cache} ({len(files):,} files, {size:,} bytes) is deleted only if you say so",
                "give --yes to delete it",
            )
        remove_cache(path)
    return {"deleted": config.cache, "files": len(files), "bytes": size}


def _split_names(path: CachePath) -> tuple[str, ...]:
    """The splits of the cache; none, beside the usual ones, if the damaged manifest does not tell."""
    try:
        return tuple(split.name for split in read_manifest(path).description.splits)
    except DamagedManifestError:
        return ()
