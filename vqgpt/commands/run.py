"""`vqgpt run`: the whole pipeline of a recipe, or of one that is chosen for one's own images.

It is chosen by the size of the images, their number and the device, and scaled from the recipes in pipelines/.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgpt.api.options import RunConfig
from vqgpt.data.options import ImageOptions
from vqgpt.data.table import find_dataset
from vqgpt.errors import UsageError
from vqgpt.options.definition import Command, Flags, resolve
from vqgpt.options.paths import RUNS_FOLDER
from vqgpt.options.recipe import LARGEST_RECIPE, load_recipe, recipe_path, recipe_toml, recipes
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import canonical_json, read_regular, sha256, write_atomically

if TYPE_CHECKING:
    from vqgpt.data.images import ImageSplit

LOOKED_AT = 25  # images, for their size
SIZES = (16, 32, 64, 128)
LARGEST_SIZE = {"cpu": 32, "mps": 64}  # which trains in hours; elsewhere the largest of SIZES
ARCHITECTURE = {  # of the VQ-GAN: a grid of 8 x 8 or 16 x 16 codes
    16: "channels = 32\nz_channels = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\nattn_resolutions = []",
    32: "channels = 32\nz_channels = 32\nch_mult = [1, 1]\npatch = 2\nnum_res_blocks = 1\nattn_resolutions = []",
    64: "channels = 64\nz_channels = 64\nch_mult = [1, 2, 2]\nnum_res_blocks = 2\nattn_resolutions = [16]",
    128: "channels = 64\nz_channels = 64\nch_mult = [1, 1, 2, 2]\nnum_res_blocks = 2\nattn_resolutions = [16]",
}
PASSES = {16: 300_000, 32: 150_000, 64: 1_000_000, 128: 500_000}  # of an image through a network, in a whole training
PASSES_ON_A_GPU = 10  # times as many of small images
WHAT_A_PLAN_IS_FOR = ("dataset", "data_root", "device", "evaluate")  # beside the recipe
MOST_EPOCHS = 200
MOST_IMAGES = 200_000  # that a VQ-GAN is trained on: they are held in memory


def run(config: RunConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Run the whole pipeline of a recipe: every stage that is not up to date, from images to pictures."""
    from vqgpt.api import run
    from vqgpt.commands import all_commands

    recipe, content = recipe_of(config, flags, report)
    if config.budget is not None:
        recipe, content = plan_of(config, recipe, content, flags, report)
    return run.run(config, recipe, content, flags, all_commands(), report)


def recipe_of(config: RunConfig, flags: Flags, report: Report) -> tuple[Path, dict[str, Any]]:
    """The recipe to run and what it says: the one given, that of the dataset, or one that is chosen for it and saved.

    Raises UsageError if neither a recipe nor a dataset is given, and what reading one's own images raises.
    """
    known = recipes()
    if flags.recipe is not None:
        path = recipe_path(flags.recipe)
    elif config.dataset is None:
        remedy = f"give --recipe, one of {', '.join(known)}, or a .toml file; or --dataset folder --data-root DIR"
        raise UsageError("no recipe and no dataset was given", remedy)
    elif config.dataset in known:
        path = known[config.dataset]
    else:
        find_dataset(config.dataset)
        path = RUNS_FOLDER / config.dataset / "recipe.toml"
        if not path.exists():
            text = choose_recipe(config.data_root, config.device, report)
            saved = "" if flags.dry_run else f" and saved as {path}"
            for line in (f"{config.dataset} has no recipe; this one is chosen{saved}:", *text.splitlines()):
                report(Notice(text=line))
            if not flags.dry_run:
                write_atomically(path, text.encode())
            return path, tomllib.loads(text)
    report(Notice(text=f"recipe: {path}"))
    return path, load_recipe(path)


def plan_of(
    config: RunConfig, recipe: Path, content: dict[str, Any], flags: Flags, report: Report
) -> tuple[Path, dict[str, Any]]:
    """The recipe scaled to `--budget`: the plan that was saved, or one that is made, shown and saved.

    Raises UsageError if the one that was saved is of another recipe, or if the time is too short.
    """
    from vqgpt.api.budget import planned
    from vqgpt.api.run import stages_of
    from vqgpt.commands import all_commands

    first = stages_of(config, content, str(recipe), all_commands())[0]
    path = first.record.with_name(f"budget-{config.budget}.toml")
    asked = {"recipe": content, **{name: str(getattr(config, name)) for name in WHAT_A_PLAN_IS_FOR}}
    planned_for = f"# Planned for: {sha256(canonical_json(asked))}"
    if path.exists() and not flags.overwrite:
        if planned_for not in read_regular(path, LARGEST_RECIPE).decode(errors="replace").splitlines():
            raise UsageError(
                f"{path} was planned for another recipe than {recipe} is now, or with other options",
                "give --overwrite to plan anew, or run it with --recipe",
            )
        report(Notice(text=f"plan: {path}, as saved"))
        return path, load_recipe(path)
    plan, expected = planned(config, content, str(recipe), all_commands(), report)
    stages = ", ".join(f"{table} {value:.0f} s" for table, value in expected.items())
    told = f"# The recipe {recipe.stem}, scaled to {config.budget} on this machine. Expected: {stages}."
    text = f"{told}\n{planned_for}\n{recipe_toml(plan)}"
    where = "" if flags.dry_run else f", saved as {path}"
    for line in (f"the plan for {config.budget}{where}:", *text.splitlines()):
        report(Notice(text=line))
    if not flags.dry_run:
        write_atomically(path, text.encode())
    return path, plan


def choose_recipe(data_root: Path | None, device_name: str, report: Report) -> str:
    """The text of a recipe for the images in a folder, zip or tar file.

    Looks at the names of all and at the size of some. Raises what reading them raises.
    """
    from vqgpt.data.folder import read_folder
    from vqgpt.data.reading import check_options
    from vqgpt.runtime.device import select_device

    options = resolve(ImageOptions, {"dataset": "folder", "data_root": data_root})
    check_options(find_dataset("folder"), options)
    splits, class_names = read_folder(options.root, options.preprocessing.background_rgb, report)
    images, side = len(splits["train"]), shorter_side(splits["train"])
    device = select_device(device_name).type
    return recipe_text(options.root, images, len(class_names) > 1, side, device)


def shorter_side(split: "ImageSplit") -> int:
    """The median of the shorter sides of some images, in pixels."""
    import statistics

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


COMMAND = Command(words="run", config=RunConfig, run=run)
