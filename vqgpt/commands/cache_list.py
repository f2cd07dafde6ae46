"""`vqgpt cache list`: what each token cache in a folder holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqgpt.errors import VQGPTError
from vqgpt.options.definition import DATA, Command, Flags, option
from vqgpt.options.paths import CACHE_FOLDER, CachePath
from vqgpt.progress import Notice, Report


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """`vqgpt cache list`."""

    folder: CachePath = option(CACHE_FOLDER, "The folder of token caches, or s3://BUCKET/FOLDER.", group=DATA)


def run(config: ListConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """List the token caches in cache/, or in another folder."""
    from vqgpt.api.sources import list_caches

    caches = list_caches(config.folder)
    if not caches:
        report(Notice(text=f"there is no token cache in {config.folder}/; `vqgpt tokenize` makes one"))
    return {path.name: _summary(path) for path in caches}


def _summary(path: CachePath) -> dict[str, Any]:
    """What a cache holds; of one that cannot be read, why."""
    from vqgpt.tokens import read_manifest

    try:
        manifest = read_manifest(path)
    except VQGPTError as error:
        return {"status": error.message}
    except OSError as error:
        return {"status": f"{path}: {error.strerror or error}"}
    description = manifest.description
    return {
        "status": "complete" if manifest.complete else "not finished",
        "origin": description.origin,
        "rows": sum(split.rows for split in description.splits),
        "grid": description.grid,
        "codebook_size": description.codebook_size,
    }


COMMAND = Command(words="cache list", config=ListConfig, run=run, takes_recipe=False)
