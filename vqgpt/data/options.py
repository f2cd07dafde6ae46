"""Which images a command reads, and how an image becomes what the VQ-GAN is fed: options, and the exact rule, in words.

Must not import torch.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vqgpt.data.table import DATASETS
from vqgpt.errors import UsageError, nearest_hint
from vqgpt.options.definition import DATA, DATA_ROOT, RUN, check, option
from vqgpt.options.paths import default_data_root

Augment = Literal["crop", "hflip"]
IMAGES = "Images"
COLORS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}
ZOOM_OF_CROPS = 1.1  # a crop is a window of 1/1.1 of the sides of the whole (as in LlamaGen's ten-crop)
_WINDOWS = {
    "center": (0.5, 0.5),
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
}
MOST_WORKERS = 16  # unless an option says otherwise


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at an image: the whole, or a window at (top, left) of 0 to 1; mirrored left to right or not.

    Then turned, anticlockwise.
    """

    window: tuple[float, float] | None = None
    mirrored: bool = False
    quarter_turns: int = 0


_CROPS = {f"crop-{name}": View(window=window) for name, window in _WINDOWS.items()}
_MIRRORED_CROPS = {f"crop-{name}-hflip": View(window=window, mirrored=True) for name, window in _WINDOWS.items()}
_TURNS = {f"rot{90 * turns}": View(quarter_turns=turns) for turns in (1, 2, 3)}
_TRANSPOSE = {"transpose": View(mirrored=True, quarter_turns=1)}  # rows become columns
VIEWS = {"identity": View(), "hflip": View(mirrored=True), **_TURNS, **_TRANSPOSE, **_CROPS, **_MIRRORED_CROPS}
VIEW_SETS = {"five-crop": tuple(_CROPS), "ten-crop": (*_CROPS, *_MIRRORED_CROPS)}


def parse_views(given: tuple[str, ...]) -> tuple[str, ...]:
    """The views meant by `identity,hflip`, `ten-crop` and the like, in that order. Raises UsageError for an unknown."""
    views: list[str] = []
    for name in (word.strip().replace("_", "-") for word in ",".join(given).split(",")):
        if name not in VIEWS and name not in VIEW_SETS:
            raise UsageError(f"there is no view {name!r}", nearest_hint(name, [*VIEW_SETS, *VIEWS]))
        views += VIEW_SETS.get(name, (name,))
    if len(set(views)) < len(views):
        raise UsageError(f"--views {','.join(given)} names a view twice", "name each once")
    return tuple(views)


def parse_augment(given: tuple[str, ...]) -> tuple[Augment, ...]:
    """The augmentations meant by `crop,hflip` and the like, in a fixed order. Raises UsageError for an unknown one."""
    words = [word.strip() for word in ",".join(given).split(",")] if given else []
    for word in words:
        if word not in get_args(Augment):
            raise UsageError(f"there is no augmentation {word!r}", nearest_hint(word, get_args(Augment)))
    return tuple(kind for kind in get_args(Augment) if kind in words)


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """What users choose about it."""

    fit: Literal["crop", "stretch"] = option(
        "crop", "How an image becomes square: crop takes the centre, stretch the whole, distorted.", group=IMAGES
    )
    image_channels: int | None = option(
        None, "Make images grey (1) or RGB (3) (default: the dataset's own, or the VQ-GAN's).", group=IMAGES
    )
    background: str = option(
        "white", "What shows through transparent images: white, black, grey or #rrggbb.", group=IMAGES
    )

    def __post_init__(self) -> None:
        check(self.image_channels in (None, 1, 3), "image_channels", self.image_channels, "1 or 3")
        known = self.background in COLORS or re.fullmatch("#[0-9a-fA-F]{6}", self.background)
        check(bool(known), "background", self.background, "white, black, grey or a color like #ff8000")

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background as three levels, 0 to 255."""
        color = COLORS.get(self.background, self.background)
        return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """All that decides what the encoder sees of an image."""

    size: int
    channels: int
    options: PreprocessingOptions
    views: tuple[str, ...] = ("identity",)

    @property
    def record(self) -> dict[str, Any]:
        """What token caches record: the options, and the rule that follows from them."""
        return {"rule": self.rule, "fit": self.options.fit, "background": self.options.background}

    @property
    def rule(self) -> str:
        """The rule in words."""
        fit = {
            "crop": f"shorter side resized to {self.size} pixels, centre crop",
            "stretch": f"resized to {self.size} x {self.size} pixels",
        }[self.options.fit]
        colors = {1: "grey (ITU-R 601)", 3: "RGB"}[self.channels]
        return (
            f"EXIF rotation applied; transparency on {self.options.background}; {colors}; "
            f"{fit} (bilinear, antialiased); uint8 / 127.5 - 1"
        )


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images a command reads."""

    dataset: str = option("mnist", f"Dataset: {', '.join(DATASETS)}.", group=DATA)
    data_root: Path | None = DATA_ROOT
    val_split: float | None = option(
        None,
        "Hold out this share of the training images, of each class, as split val "
        "(default: the dataset's own val or test; 0.1 of a folder that has neither).",
        group=DATA,
    )
    on_error: Literal["stop", "skip"] = option(
        "stop", "What to do about a broken image. skip leaves it out and lists it; over 1 % is an error.", group=IMAGES
    )
    num_workers: int | None = option(
        None,
        f"Threads that decode images ahead of the network; 0 for none (default: the cores, {MOST_WORKERS} at most).",
        group=RUN,
    )
    preprocessing: PreprocessingOptions

    def __post_init__(self) -> None:
        check(self.val_split is None or 0 < self.val_split < 1, "val_split", self.val_split, "between 0 and 1")
        check(self.num_workers is None or self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")

    @property
    def root(self) -> Path:
        """The folder of this dataset's files."""
        return self.data_root or default_data_root()

    @property
    def workers(self) -> int:
        """Threads that decode images."""
        return min(os.cpu_count() or 1, MOST_WORKERS) if self.num_workers is None else self.num_workers
