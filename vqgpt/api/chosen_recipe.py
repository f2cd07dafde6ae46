"""A recipe for one's own images, by their size, their number and the device. Scaled from the recipes in pipelines/."""

import json
import statistics
from pathlib import Path

from vqgpt.data.folder import read_folder
from vqgpt.data.images import ImageSplit
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import check_options
from vqgpt.data.table import find_dataset
from vqgpt.options.definition import resolve
from vqgpt.progress import Report
from vqgpt.runtime.device import select_device

LOOKED_AT = 25  # images, for their size
SIZES = (16, 32, 64, 128)
LARGEST_SIZE = {"cpu": 32, "mps": 64}  # which trains in hours; elsewhere the largest of SIZES
ARCHITECTURE = {  # of the VQ-GAN: a grid of 8 x 8 or 16 x 16 codes
    16: "channels = 32\nz_channels = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\nattn_resolutions = []",
    32: "channels = 32\nz_channels = 32\nch_mult = [1, 2, 2]\nnum_res_blocks = 1\nattn_resolutions = []",
    64: "channels = 64\nz_channels = 64\nch_mult = [1, 2, 2]\nnum_res_blocks = 2\nattn_resolutions = [16]",
    128: "channels = 64\nz_channels = 64\nch_mult = [1, 1, 2, 2]\nnum_res_blocks = 2\nattn_resolutions = [16]",
}
PASSES = {16: 300_000, 32: 150_000, 64: 1_000_000, 128: 500_000}  # of an image through a network, in a whole training
PASSES_ON_A_GPU = 10  # times as many of small images
MOST_EPOCHS = 200
MOST_IMAGES = 200_000  # that a VQ-GAN is trained on: they are held in memory


def choose_recipe(data_root: Path | None, device_name: str, report: Report) -> str:
    """The text of a recipe for the images in a folder, zip or tar file.

    Looks at the names of all and at the size of some. Raises what reading them raises.
    """
    options = resolve(ImageOptions, {"dataset": "folder", "data_root": data_root})
    check_options(find_dataset("folder"), options)
    splits, class_names = read_folder(options.root, options.preprocessing.background_rgb, report)
    images, side = len(splits["train"]), shorter_side(splits["train"])
    device = select_device(device_name).type
    return recipe_text(options.root, images, len(class_names) > 1, side, device)


def shorter_side(split: ImageSplit) -> int:
    """The median of the shorter sides of some images, in pixels."""
    rows = range(0, len(split), max(1, len(split) // LOOKED_AT))
    return int(statistics.median(min(split.image(row).size) for row in rows))


def recipe_text(data_root: Path, images: int, classes: bool, side: int, device: str) -> str:
    """A recipe for so many training images, with or without `classes`, whose shorter side has `side` pixels."""
    largest = min(side, LARGEST_SIZE.get(device, SIZES[-1]))
    size = max((each for each in SIZES if each <= largest), default=SIZES[0])
    small = size <= LARGEST_SIZE["cpu"]
    passes = PASSES[size] * (PASSES_ON_A_GPU if small and device != "cpu" else 1)
    vqgan_images = min(images, MOST_IMAGES)
    vqgan_epochs, gpt_epochs = epochs(passes, vqgan_images), epochs(passes, images)
    batch_size = max(1, min(64 if size < 128 else 32, images // 8))
    codes = 64 if images < 5_000 else 256 if small else 512
    layers, width = (6, 128) if small and device == "cpu" else (8, 256) if images < 100_000 else (12, 512)
    limit = f"limit = {MOST_IMAGES}\n" if images > MOST_IMAGES else ""
    return f"""\
# Chosen for {images} images, of {side} pixels or so, on {device}. The figures are guesses: edit them.
dataset = "folder"
data_root = {json.dumps(str(data_root), ensure_ascii=False)}

[vqgan-train]
size = {size}
{ARCHITECTURE[size]}
n_embed = {codes}
embed_dim = 8
batch_size = {batch_size}
n_epochs = {vqgan_epochs}
lr = {"1e-3" if small else "5e-4"}
lr_schedule = "cosine"
disc_weight = 0
perceptual_weight = 0
{limit}sample_and_save_freq = {max(1, vqgan_epochs // 5)}

[train]
condition = "{"class" if classes else "none"}"
n_layer = {layers}
n_head = {4 if layers == 6 else 8}
embed_dim_t = {width}
dropout_t = 0.1
batch_size = {batch_size}
n_epochs = {gpt_epochs}
order = "raster"
optimizer = "muon"
lr = {"2e-2" if width == 128 else "1e-2"}
warmup = {min(1, gpt_epochs - 1)}
sample_and_save_freq = {max(1, gpt_epochs // 5)}

[sample]
num_samples = 100
"""


def epochs(passes: int, images: int) -> int:
    """Over how many epochs so many passes are spread."""
    return max(1, min(MOST_EPOCHS, round(passes / images)))
