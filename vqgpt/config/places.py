"""Where files lie if the user does not say where. Must not import torch."""

import os
from pathlib import Path

from vqgpt.files import user_cache_folder

CACHE_FOLDER = Path("cache")
RUNS_FOLDER = Path("runs")
HOMELESS_DATA_ROOT = Path("data")


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
