"""How good the pictures of a dataset are: by its recipe, or by GenerativeZoo's settings in the same time.

    python benchmarks/results.py mnist --data-root DATA_ROOT [--baseline] [--seeds 0 1 2] [--work results]
    python benchmarks/results.py cifar10 --data-root FOLDER

The FOLDER of one's own images has train/CLASS/*.png and test/CLASS/*.png. Each run has a folder of its own below
--work: `vqgpt run` takes it from images to pictures. The baseline has the time that the recipe took, or is meant for
where it has not run; what its other stages leave of it is shared equally by its two trainings. Then `vqgpt sample`
draws as many images as there are to be judged, the first ones of seed 0, and the three `vqgpt evaluate` say how good
they are. The test split judges; what was chosen, was chosen on parts of the training split.

Figures of a run are appended to the --figures as they come, and what is there is not run again. Prints a table in
Markdown and draws two pictures beside the runs: NAME.png, the first real test images of each class and the first
samples of it, and NAME-nearest.png, the first samples, each beside the training image with the most equal tokens. For a
machine that does nothing else.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import table
from PIL import Image

from vqgpt.api.estimates import gpt_schedule, known_images, measured, stage_seconds, vqgan_schedule
from vqgpt.api.image_sets import find_images
from vqgpt.api.options import RunConfig, SourceOptions
from vqgpt.api.run import NETWORKS, stages_of
from vqgpt.commands import all_commands
from vqgpt.data.image_sets import ImageSet
from vqgpt.options.definition import resolve
from vqgpt.options.recipe import load_recipe, recipe_toml, recipes
from vqgpt.pictures.sheet import contact_sheet
from vqgpt.progress import silent
from vqgpt.report.sheets import Decoder, nearest_training_rows
from vqgpt.tokens import TokenCache
from vqgpt.vqgan.checkpoint import load_vqgan

Record = dict[str, Any]
FIGURES = Path(__file__).parents[1] / "docs" / "results" / "figures.jsonl"
RECIPE, BASELINE = "the recipe", "GenerativeZoo's settings"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dataset: its recipe, the side of its images in pixels, the minutes of a run, the samples that are judged."""

    recipe: str
    size: int
    minutes: int
    samples: int = 10_000
    own_images: bool = False


CASES = {
    "digits": Case(recipe="digits", size=16, minutes=2, samples=2_000),
    "mnist": Case(recipe="mnist", size=28, minutes=30),
    "cifar10": Case(recipe="cifar10", size=32, minutes=60, own_images=True),
    "pneumoniamnist": Case(recipe="pneumoniamnist", size=28, minutes=60, samples=2_000),
    "emoji": Case(recipe="emoji", size=64, minutes=60, samples=2_000, own_images=True),
}
GENERATIVEZOO: dict[str, Record] = {  # the defaults of ours that are not its own, and what its GPT has
    "vqgan-train": {
        "n_embed": 128,
        "codebook": "loss",
        "codebook_start": "uniform",
        "normalise_latents": False,
        "norm_groups": 32,
        "optimizer": "adam",
        "lr_schedule": "constant",
    },
    "tokenize": {"views": ["identity"]},
    "train": {"n_layer": 6, "n_head": 8, "embed_dim_t": 64, "order": "s-pattern", "lr": 1e-4},
    "sample": {"num_samples": 100},
}
COLUMNS = {
    "minutes": ("minutes", ".1f"),
    "vqgan_minutes": ("of these VQ-GAN", ".1f"),
    "gpt_minutes": ("GPT", ".1f"),
    "psnr_db": ("PSNR, dB", ".1f"),
    "rfid": ("rFID", ".1f"),
    "fid": ("FID", ".1f"),
    "kid": ("KID", ".4f"),
    "mind": ("MIND", ".1f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
    "bits_per_token": ("bits per token", ".3f"),
    "bits_of_unigram": ("by frequency", ".2f"),
    "consistency": ("class as asked for", ".3f"),
    "copies": ("copies", ".0f"),
    "images_per_second": ("samples/s", ".0f"),
}


def vqgpt(folder: Path, *words: object) -> Any:
    """The result of a command that is run in a folder."""
    command = [sys.executable, "-m", "vqgpt", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def recipe_of(case: Case, setting: str, data_root: Path | None) -> Record:
    """What the run of a dataset says, with its images."""
    content = load_recipe(recipes()[case.recipe])
    if setting == BASELINE:
        theirs = {**GENERATIVEZOO, "vqgan-train": {**GENERATIVEZOO["vqgan-train"], "size": case.size}}
        content = {"dataset": content["dataset"], **theirs}
    if case.own_images:
        content |= {"dataset": "folder", "val_split": content.get("val_split", 0.1)}
    return content if data_root is None else {**content, "data_root": str(data_root.resolve())}


def in_time(content: Record, minutes: float) -> Record:
    """A recipe with trainings that each take half of what the other stages leave of the time, by a few timed steps."""
    stages = stages_of(RunConfig(evaluate=False), content, "the baseline", all_commands())
    configs = {stage.command.table: stage.config for stage in stages}
    rows, num_classes = known_images(configs)
    costs = measured(configs, rows, num_classes)
    others = sum(seconds for stage, seconds in stage_seconds(configs, costs, rows).items() if stage not in NETWORKS)
    each = (60 * minutes - others) / 2
    schedules = {
        "vqgan-train": (vqgan_schedule(configs["vqgan-train"], rows), costs.vqgan_step),
        "train": (gpt_schedule(configs["train"], rows, configs["tokenize"]), costs.gpt_step),
    }
    lengths = {}
    for stage, (schedule, seconds) in schedules.items():
        steps = max(1, int(each / (seconds * schedule.batch_size)))
        lengths[stage] = {"max_steps": steps, "n_epochs": -(-steps // schedule.steps_per_epoch)}
    return {**content, **{stage: {**content[stage], **length} for stage, length in lengths.items()}}


def measure(
    case: Case, setting: str, seed: int, folder: Path, data_root: Path | None, features: str, minutes: float
) -> Record:
    """The figures of one run, whose evaluation goes on where it was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    content, recipe = recipe_of(case, setting, data_root) | {"seed": seed}, folder / "recipe.toml"
    dataset = content["dataset"]
    if not recipe.exists():
        recipe.write_text(recipe_toml(in_time(content, minutes) if setting == BASELINE else content))
    elif setting == RECIPE and recipe.read_text() != recipe_toml(content):
        raise SystemExit(f"{recipe} is of other settings: remove {folder}, or give another --work")
    minutes_of = minutes_of_run(folder)
    where = ["--data-root", data_root.resolve()] if data_root else []
    drawn = ("--num-samples", case.samples, "--seed", 0, "--tokens-only", "--out", "judged.zarr", "--overwrite")
    start = time.monotonic()
    vqgpt(folder, "sample", "--recipe", "recipe.toml", *drawn)
    sampling_seconds = time.monotonic() - start  # with the start of a process
    tokenizer = vqgpt(folder, "evaluate", "tokenizer", "--dataset", dataset, *where, *_asked(case, content, features))
    gpt = vqgpt(folder, "evaluate", "gpt", "--dataset", dataset, "--limit", 0)
    against = test_images(case, dataset, data_root)
    judge = ("evaluate", "samples", "judged.zarr", "--against", against, *where, "--features", features, "--limit", 0)
    samples = vqgpt(folder, *judge)
    held_out = next(name for name in gpt["splits"] if name != "train")
    reconstructed, figures = tokenizer["splits"]["test"], samples["figures"]
    distance = next(name for name in figures if name in ("FID", "FD-lite0", "FD-classifier"))
    classes, copies = samples.get("class_consistency") or {}, samples.get("copies_by_tokens") or {}
    return {
        "minutes": sum(minutes_of.values()),
        "vqgan_minutes": minutes_of["vqgan train"],
        "gpt_minutes": minutes_of["train"],
        "psnr_db": reconstructed["metrics"]["psnr_db"]["value"],
        "rfid": reconstructed["reconstructions"][distance]["value"],
        "fid": figures[distance]["value"],
        **{name.lower(): figures[name]["value"] for name in ("KID", "MIND", "precision", "recall")},
        "bits_per_token": gpt["splits"][held_out]["bits_per_token"],
        "bits_of_unigram": gpt["baselines"]["unigram_by_position"]["bits_per_token"],
        "consistency": (classes.get("samples") or {}).get("share"),
        "copies": (copies.get("samples") or {}).get("copies"),
        "images_per_second": case.samples / sampling_seconds,
        "findings": samples["findings"],
    }


def minutes_of_run(folder: Path) -> dict[str, float]:
    """Minutes by stage of `vqgpt run`, which are kept: a run that is over takes no time again."""
    kept = folder / "minutes.json"
    if not kept.exists():
        if (folder / "runs").exists():
            raise SystemExit(f"{folder} has a run that was interrupted, whose minutes are not known: remove it")
        stages = vqgpt(folder, "run", "--recipe", "recipe.toml", "--no-evaluate")["stages"]
        kept.write_text(json.dumps({stage: (told["seconds"] or 0.0) / 60 for stage, told in stages.items()}))
    minutes: dict[str, float] = json.loads(kept.read_text())
    return minutes


def test_images(case: Case, dataset: str, data_root: Path | None) -> str:
    """What judges, as the commands name images."""
    return f"{data_root.resolve()}:test" if case.own_images and data_root else f"{dataset}:test"


def _asked(case: Case, content: Record, features: str) -> list[object]:
    """What `evaluate tokenizer` is asked for: the test split, prepared as the VQ-GAN was fed."""
    held_out = ["--val-split", content["val_split"]] if "val_split" in content else []
    return ["--split", "test", "--features", features, "--limit", case.samples, "--perturb", 0, *held_out]


def sheet(case: Case, dataset: str, folder: Path, data_root: Path | None, out: Path, columns: int = 8) -> None:
    """Draw the first real test images of each class, and beside them the first samples of it."""
    vqgan = folder / "runs" / dataset / "vqgan.pt"
    options = resolve(SourceOptions, {"data_root": data_root, "checkpoint_vae": vqgan})
    samples = find_images(str(folder / "judged.zarr"), None, None, options, silent)
    real = find_images(test_images(case, dataset, data_root), case.size, samples, options, silent)
    rows, captions = [], []
    for name in real.class_names or ("",):
        rows += [*_first(real, name, columns), *_first(samples, name, columns)]
        captions += [name or "real", *[""] * (columns - 1), "generated", *[""] * (columns - 1)]
    save(contact_sheet(np.stack(rows), captions, 2 * columns), out)


def sheet_of_nearest(folder: Path, dataset: str, out: Path) -> None:
    """Draw the first samples, each beside the training image with the most equal tokens."""
    vqgan = load_vqgan(folder / "runs" / dataset / "vqgan.pt", dataset, torch.device("cpu"))
    training = TokenCache(folder / "cache" / f"{dataset}.zarr")
    found = nearest_training_rows(TokenCache(folder / "judged.zarr"), training, Decoder(model=vqgan))
    save(contact_sheet(found.images, found.captions, 2 * found.columns), out)


def save(picture: Image.Image, out: Path) -> None:
    """As a PNG file of 256 colours, a fourth as large as one of all."""
    picture.quantize(256).save(out, optimize=True)


def _first(images: ImageSet, name: str, count: int) -> list[Any]:
    """The first images of a class, or of all where there are no classes; white where there are too few."""
    labels = images.labels
    wanted = np.flatnonzero(labels == images.class_names.index(name)) if name else np.arange(len(images))
    found = list(images.images(wanted[:count].tolist())) if len(wanted) else []
    return found + [np.full(images.shape, 255, dtype=np.uint8)] * (count - len(found))


def main() -> None:
    """Run what has not been run yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--baseline", action="store_true", help="GenerativeZoo's settings in the same time")
    parser.add_argument("--features", default="inception")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("results"), help="where the runs are")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    case, setting = CASES[arguments.name], BASELINE if arguments.baseline else RECIPE
    work = arguments.work.resolve()
    log = arguments.figures.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    folders = {
        seed: work / f"{arguments.name}-{'baseline' if arguments.baseline else 'recipe'}-{seed}"
        for seed in arguments.seeds
    }
    for seed, folder in folders.items():
        key = {"name": arguments.name, "variant": setting, "seed": seed, "features": arguments.features}
        if any(key.items() <= result.items() for result in results):
            continue
        took = [each["minutes"] for each in results if (each["name"], each["variant"]) == (arguments.name, RECIPE)]
        minutes = statistics.mean(took) if took else case.minutes
        figures = measure(case, setting, seed, folder, arguments.data_root, arguments.features, minutes)
        results.append({**key, **figures})
        with open(log, "a") as file:
            file.write(json.dumps(results[-1]) + "\n")
    shown = {"name": arguments.name, "features": arguments.features}
    here = [result for result in results if shown.items() <= result.items()]
    print(table(here, arguments.name, (RECIPE, BASELINE), COLUMNS))
    if setting == RECIPE and (folders[arguments.seeds[0]] / "judged.zarr").exists():
        folder = folders[arguments.seeds[0]]
        dataset = recipe_of(case, setting, arguments.data_root)["dataset"]
        sheet(case, dataset, folder, arguments.data_root, work / f"{arguments.name}.png")
        sheet_of_nearest(folder, dataset, work / f"{arguments.name}-nearest.png")


if __name__ == "__main__":
    main()
