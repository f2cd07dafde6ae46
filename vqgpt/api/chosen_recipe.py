"""A recipe for one's own images: that of the nearest measured set, whose trainings see as many images in all.

    a folder, zip or tar file of images, and the device  ->  the text of a recipe

The networks for 128 pixels, and those and the lengths on a GPU, are guesses that were not run.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.data.folder import read_folder
from vqgpt.data.images import ImageSplit
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import check_options
from vqgpt.data.table import find_dataset
from vqgpt.options.definition import resolve
from vqgpt.options.recipe import OWN_IMAGES, load_recipe, recipe_toml, recipes
from vqgpt.progress import Report
from vqgpt.runtime.device import select_device

LOOKED_AT = 25  # images or so, for their size and colours
LARGEST_SIZE = {"cpu": 64, "mps": 64}  # which trains in an hour on a CPU; elsewhere the largest there is
PASSES_ON_A_GPU = 10  # times as many
GPT_ON_A_GPU = {"n_layer": 8, "n_head": 8, "embed_dim_t": 256, "lr": 1e-2}
FEW_IMAGES = 10_000  # which a GPT learns by heart without noise
MOST_EPOCHS = 200
MOST_IMAGES = 200_000  # that a VQ-GAN is trained on: they are held in memory


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A recipe, the images that it was run on, and what of the VQ-GAN differs at another size."""

    recipe: str
    images: int
    vqgan: Mapping[str, Any]


NEAREST = {  # by the side of the images in pixels
    16: Measured(recipe="digits", images=1_433, vqgan={}),
    32: Measured(recipe="cifar10", images=45_000, vqgan={}),
    64: Measured(recipe="emoji", images=3_071, vqgan={}),
    128: Measured(recipe="emoji", images=3_071, vqgan={"size": 128, "ch_mult": [1, 1]}),
}
NEAREST_OF_GREY = NEAREST | {32: Measured(recipe="mnist", images=54_000, vqgan={"size": 32})}
SIZES = tuple(NEAREST)


def choose_recipe(data_root: Path | None, device_name: str, report: Report) -> str:
    """The text of a recipe for the images in a folder, zip or tar file.

    Looks at the names of all and at the size of some. Raises what reading them raises.
    """
    options = resolve(ImageOptions, {"dataset": OWN_IMAGES, "data_root": data_root})
    check_options(find_dataset(OWN_IMAGES), options)
    splits, class_names = read_folder(options.root, options.preprocessing.background_rgb, report)
    images, (side, in_color) = len(splits["train"]), look_at(splits["train"])
    return recipe_text(options.root, images, len(class_names) > 1, side, in_color, select_device(device_name).type)


def look_at(split: ImageSplit) -> tuple[int, bool]:
    """Of some images: the median of the shorter sides in pixels, and whether any is not grey."""
    sides, modes = [], set()
    for row in range(0, len(split), max(1, len(split) // LOOKED_AT)):
        image = split.image(row)  # one at a time: they may be large
        sides.append(min(image.size))
        modes.add(image.mode)
    return int(statistics.median(sides)), modes != {"L"}


def recipe_text(data_root: Path, images: int, classes: bool, side: int, in_color: bool, device: str) -> str:
    """A recipe for so many training images, with or without `classes`, whose shorter side has `side` pixels."""
    largest = min(side, LARGEST_SIZE.get(device, SIZES[-1]))
    size = max((each for each in SIZES if each <= largest), default=SIZES[0])
    nearest = (NEAREST if in_color else NEAREST_OF_GREY)[size]
    recipe = load_recipe(recipes()[nearest.recipe])
    vqgan, train = recipe["vqgan-train"] | nearest.vqgan, recipe["train"]
    times = 1 if device == "cpu" else PASSES_ON_A_GPU
    warmup = train["warmup"] / train["n_epochs"]  # share of the training
    vqgan |= length(vqgan, times * nearest.images, min(images, MOST_IMAGES))
    vqgan |= {"limit": MOST_IMAGES} if images > MOST_IMAGES else {}
    train |= length(train, times * nearest.images, images)
    steps = train.get("max_steps", train["n_epochs"] * images / train["batch_size"])
    train |= {"condition": "class" if classes else "none"}
    train |= {"warmup": round(warmup * steps * train["batch_size"] / images, 3)}
    train |= {"token_noise": 0.5 if images < FEW_IMAGES else 0.0}
    train |= {} if device == "cpu" else GPT_ON_A_GPU
    sample = {key: value for key, value in recipe["sample"].items() if classes or key != "cfg_scale"}
    tables = {"vqgan-train": vqgan, "train": train, "sample": sample}
    content = {"dataset": OWN_IMAGES, "data_root": str(data_root), **tables}
    told = f"# Chosen for {images} images of {side} pixels or so, on {device}: the recipe {nearest.recipe}, scaled."
    told += "" if device == "cpu" else " Its length and width on a GPU were not measured."
    return f"{told} It is yours to edit.\n{recipe_toml(content)}"


def length(training: Mapping[str, Any], measured_on: int, images: int) -> dict[str, int]:
    """Of a training that was measured on so many images, for others: as many passes of an image in all."""
    passes = training["n_epochs"] * measured_on
    epochs = max(1, min(MOST_EPOCHS, round(passes / images)))
    batch_size = max(1, min(training["batch_size"], images // 8))
    less = {} if passes >= images else {"max_steps": max(1, passes // batch_size)}
    return {"n_epochs": epochs, **less, "batch_size": batch_size, "sample_and_save_freq": max(1, epochs // 5)}
