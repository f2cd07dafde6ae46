"""Paths that users write, of files or of token caches on object stores; and where files lie where they write none.

Must not import torch.
"""

import os
import re
from pathlib import Path, PurePosixPath

from vqgpt.errors import UsageError
from vqgpt.storage.files import user_cache_folder

SCHEMES = ("s3", "gs", "az")
CACHE_FOLDER = Path("cache")
RUNS_FOLDER = Path("runs")
EVALUATION_FILE = "evaluation.json"
HOMELESS_DATA_ROOT = Path("data")
LONGEST_NAME = 200  # bytes: with what is added to it, a file system takes 255


class CacheURL(str):
    """The address of a token cache on an object store: s3://BUCKET/FOLDER/NAME.zarr."""

    @property
    def name(self) -> str:
        """What comes after the last slash."""
        return self.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> "CacheURL":
        """The address of something beside it."""
        return CacheURL(f"{self.rpartition('/')[0]}/{name}")


CachePath = Path | CacheURL


def parse_cache_path(text: str) -> CachePath:
    """A folder, or an address if that is what the text looks like. Raises UsageError for an address we cannot use."""
    scheme, is_address, rest = text.partition("://")
    if not is_address or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return Path(text)
    if scheme.lower() not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise UsageError(
            f"{text}: {scheme}:// is no object store that vqgpt knows", f"known: {known}; or give a folder"
        )
    parts = rest.removesuffix("/").split("/")
    if not all(parts) or {".", ".."} & set(parts) or re.search(r"[?#%\\\s]", rest):
        raise UsageError(f"{text} is not the address of a cache", f"give {scheme}://BUCKET/NAME.zarr")
    if len(parts) == 1 and parts[0].endswith(".zarr"):
        raise UsageError(f"{text} names a bucket, and no cache in it", f"give {scheme}://BUCKET/NAME.zarr")
    return CacheURL(f"{scheme.lower()}://{'/'.join(parts)}")


def expand_home(path: str, name: str) -> str:
    """A path that a user wrote, with the home that `~` or `~NAME` at its start means; `./~` is a folder of that name.

    The shell does the same in most places, and not in --out=~/x, in variables and in recipes. Raises UsageError, naming
    the option `name`, if that home is not known.
    """
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded == path:
        user = path.partition("/")[0]
        raise UsageError(
            f"{name} = {path} cannot be used: no home of {user} is known",
            f"give the whole path{', or set HOME' if user == '~' else ''}; ./{path} means a folder of the name {user}",
        )
    return expanded


def beside(cache: CachePath, name: str) -> Path:
    """A file that goes with a cache: next to its folder; if the cache is on an object store, in the current folder."""
    return cache.with_name(name) if isinstance(cache, Path) else Path(name)


def default_data_root() -> Path:
    """Where downloaded images are kept: in the user's cache folder, or beside cache/ and runs/ if there can be none.

    So it is where no home is known, and in containers that say HOME=/ for a user without a name.
    """
    try:
        root = user_cache_folder() / "data"
    except RuntimeError:
        return HOMELESS_DATA_ROOT
    nearest = next(place for place in (root, *root.parents) if os.path.lexists(place))
    can_be_made = nearest.is_dir() and os.access(nearest, os.W_OK)
    return root if nearest == root or can_be_made else HOMELESS_DATA_ROOT


def can_be_a_dataset(name: str) -> bool:
    """True for a name that results can be called by: it becomes a part of paths, and of commands that we advise."""
    return re.fullmatch(r"\w[\w-]*", name) is not None and len(name.encode()) <= LONGEST_NAME


def vqgan_path(dataset: str) -> Path:
    """The VQ-GAN that this project trained for a dataset."""
    return RUNS_FOLDER / dataset / "vqgan.pt"


def gpt_path(dataset: str) -> Path:
    """The GPT that this project trained for a dataset."""
    return RUNS_FOLDER / dataset / "gpt.pt"


def cache_path(dataset: str) -> Path:
    """The token cache of a dataset."""
    return CACHE_FOLDER / f"{dataset}.zarr"


def samples_path(dataset: str) -> Path:
    """The token cache that `vqgpt sample` writes for a dataset."""
    return RUNS_FOLDER / dataset / "samples.zarr"


def evaluation_path(dataset: str) -> Path:
    """The record of evaluations of a dataset's run."""
    return RUNS_FOLDER / dataset / EVALUATION_FILE
