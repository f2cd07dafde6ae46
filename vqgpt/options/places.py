"""Where files lie if the user does not say where. Must not import torch."""

import os
import re
from pathlib import Path

from vqgpt.storage.files import user_cache_folder

CACHE_FOLDER = Path("cache")
RUNS_FOLDER = Path("runs")
HOMELESS_DATA_ROOT = Path("data")
LONGEST_NAME = 200  # bytes: with what is added to it, a file system takes 255


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
