"""How good the pictures of a dataset are: by its recipe, or by GenerativeZoo's settings in the same time.

    python benchmarks/results.py mnist --data-root DATA_ROOT [--baseline] [--seeds 0 1 2] [--at-once 3] [--work results]
    python benchmarks/results.py cifar10 --data-root FOLDER

The FOLDER of one's own images has train/CLASS/*.png and test/CLASS/*.png. Each run has a folder of its own below
--work: `vqgpt run` takes it from images to pictures. The baseline has the time that the recipe took, or is meant for
where it has not run; what its other stages leave of it is shared equally by its two trainings. Its steps are timed
once, with all cores, and all seeds take as many. Then `vqgpt sample` draws as many images as there are to be judged,
the first ones of seed 0, and the three `vqgpt evaluate` say how good they are. The test split judges; what was chosen,
was chosen on parts of the training split.

With --at-once, so many seeds run side by side, each on its share of the cores. Together they are done sooner than one
after another; how long one of them takes alone is not known then, and not told.

Figures of a run are appended to the --figures as they come, and what is there is not run again: when a recipe has
changed, remove its lines and its folders. Prints a table in Markdown and draws two pictures beside the runs: NAME.png,
the first real test images of each class and the first samples of it, and NAME-nearest.png, the first samples, each
beside the training image with the most equal tokens. For a machine that does nothing else.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import table
from PIL import Image

from vqgpt.api.budget import merged
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
TRAININGS = "vqgan-train", "train"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dataset: its recipe, the side of its images in pixels, the minutes of a run; how many images are judged.

    Where classes are `uneven`, samples have as many of each as the test images; elsewhere all classes have as many.
    """

    recipe: str
    size: int
    minutes: int
    judged: int = 2_000
    own_images: bool = False
    uneven: bool = False


CASES = {
    "digits": Case(recipe="digits", size=16, minutes=2),
    "mnist": Case(recipe="mnist", size=28, minutes=30),
    "cifar10": Case(recipe="cifar10", size=32, minutes=60, judged=10_000, own_images=True),
    "pneumoniamnist": Case(recipe="pneumoniamnist", size=28, minutes=60),
    "emoji": Case(recipe="emoji", size=64, minutes=60, own_images=True, uneven=True),
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its place, what its recipe says, and where the images are."""

    case: Case
    folder: Path
    content: Record
    data_root: Path | None

    @property
    def dataset(self) -> str:
        """Its name, as commands take it and as files are named by."""
        return str(self.content["dataset"])

    @property
    def results(self) -> Path:
        """The folder of its networks and features."""
        return self.folder / "runs" / self.dataset

    @property
    def test_images(self) -> str:
        """What judges, as the commands name images."""
        own = self.case.own_images and self.data_root
        return f"{self.data_root}:test" if own else f"{self.dataset}:test"

    def find(self, images: str) -> ImageSet:
        """Images or samples of this run, by what commands call them, at its size."""
        options = resolve(SourceOptions, {"data_root": self.data_root, "checkpoint_vae": self.results / "vqgan.pt"})
        return find_images(images, None if images.endswith(".zarr") else self.case.size, None, options, silent)

    @property
    def classes(self) -> list[str]:
        """The classes to draw in turn, as `vqgpt sample` takes them; [] for its default."""
        if not self.case.uneven or self.content["train"].get("condition") != "class":
            return []
        labels = np.random.default_rng(0).permutation(self.find(self.test_images).labels)
        return ["--class", *(f"number:{label}" for label in labels)]


def vqgpt(folder: Path, *words: object, threads: int | None = None) -> Any:
    """The result of a command that is run in a folder; beside others, on so many threads and with a log of its own."""
    command = [sys.executable, "-m", "vqgpt", *map(str, words), "--json"]
    limits = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with open(folder / "run.log", "a") if threads else nullcontext() as log:
        environment, output = {**os.environ, **limits}, subprocess.PIPE
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=log, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def recipe_of(case: Case, setting: str, data_root: Path | None) -> Record:
    """What the run of a dataset says, with its images."""
    content = load_recipe(recipes()[case.recipe])
    if setting == BASELINE:
        theirs = {**GENERATIVEZOO, "vqgan-train": {**GENERATIVEZOO["vqgan-train"], "size": case.size}}
        content = {name: content[name] for name in ("dataset", "val_split") if name in content} | theirs
    if case.own_images:
        content |= {"dataset": "folder", "val_split": content.get("val_split", 0.1)}
    return content if data_root is None else {**content, "data_root": str(data_root)}


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
    return merged(content, lengths)


def planned(case: Case, setting: str, data_root: Path | None, kept: list[Path], minutes: float) -> Record:
    """What all runs of a setting say but their seed; the lengths of the baseline are those of the first `kept` one."""
    content = recipe_of(case, setting, data_root)
    if setting == RECIPE:
        return content
    if not kept:
        return in_time(content, minutes)
    before = load_recipe(kept[0])
    lengths = {stage: {name: before[stage][name] for name in ("max_steps", "n_epochs")} for stage in TRAININGS}
    return merged(content, lengths)


def make(runs: list[Run], at_once: int) -> None:
    """From images to pictures, so many runs side by side. Keeps the minutes of a run that has the machine to itself."""
    at_once = max(1, min(at_once, len(runs)))
    threads = None if at_once == 1 else max(1, (os.cpu_count() or 1) // at_once)
    for run in runs:
        recipe, text = run.folder / "recipe.toml", recipe_toml(run.content)
        run.folder.mkdir(parents=True, exist_ok=True)
        if not recipe.exists():
            recipe.write_text(text)
        elif recipe.read_text() != text:
            raise SystemExit(f"{recipe} is of other settings: remove {run.folder}, or give another --work")
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda run: make_one(run.folder, threads), runs))


def make_one(folder: Path, threads: int | None) -> None:
    """`vqgpt run`, and minutes.json: its minutes by stage, {} where other runs had their share of the machine."""
    kept = folder / "minutes.json"
    if kept.exists():
        return  # a run that is over takes no time again
    if threads is None and (folder / "runs").exists():
        raise SystemExit(f"{folder} has a run that was interrupted, whose minutes are not known: remove it")
    stages = vqgpt(folder, "run", "--recipe", "recipe.toml", "--no-evaluate", threads=threads)["stages"]
    minutes = {stage: (told["seconds"] or 0.0) / 60 for stage, told in stages.items()}
    kept.write_text(json.dumps(minutes if threads is None else {}))


def measure(run: Run, features: str, real: Path) -> Record:
    """The figures of one run, whose evaluation goes on where it was interrupted.

    What is known of real images is taken from the folder `real`, and kept there for the next run.
    """
    minutes: dict[str, float] = json.loads((run.folder / "minutes.json").read_text())
    kept = ("--tokens-only", "--out", "judged.zarr", "--overwrite")
    drawn = ("--num-samples", run.case.judged, "--seed", 0, *run.classes)
    start = time.monotonic()
    vqgpt(run.folder, "sample", "--recipe", "recipe.toml", *drawn, *kept)
    sampling_seconds = time.monotonic() - start  # with the start of a process
    take_over(real, run.results)
    where = ["--data-root", run.data_root] if run.data_root else []
    of_dataset = ("--dataset", run.dataset)
    judging = ("--features", features, "--limit", run.case.judged)
    held_out = ["--val-split", run.content["val_split"]] if "val_split" in run.content else []
    asked = (*of_dataset, *where, *held_out, "--split", "test", "--perturb", 0, *judging)
    tokenizer = vqgpt(run.folder, "evaluate", "tokenizer", *asked)
    gpt = vqgpt(run.folder, "evaluate", "gpt", *of_dataset, "--limit", 0)
    samples = vqgpt(run.folder, "evaluate", "samples", "judged.zarr", "--against", run.test_images, *where, *judging)
    take_over(run.results, real)
    unseen = next(name for name in gpt["splits"] if name != "train")
    reconstructed, figures = tokenizer["splits"]["test"], samples["figures"]
    distance = next(name for name in figures if name in ("FID", "FD-lite0", "FD-classifier"))
    classes, copies = samples.get("class_consistency") or {}, samples.get("copies_by_tokens") or {}
    return {
        "minutes": sum(minutes.values()) or None,
        "vqgan_minutes": minutes.get("vqgan train"),
        "gpt_minutes": minutes.get("train"),
        "psnr_db": reconstructed["metrics"]["psnr_db"]["value"],
        "rfid": reconstructed["reconstructions"][distance]["value"],
        "fid": figures[distance]["value"],
        **{name.lower(): figures[name]["value"] for name in ("KID", "MIND", "precision", "recall")},
        "bits_per_token": gpt["splits"][unseen]["bits_per_token"],
        "bits_of_unigram": gpt["baselines"]["unigram_by_position"]["bits_per_token"],
        "consistency": (classes.get("samples") or {}).get("share"),
        "copies": (copies.get("samples") or {}).get("copies"),
        "images_per_second": run.case.judged / sampling_seconds,
        "findings": samples["findings"],
    }


def take_over(source: Path, target: Path) -> None:
    """Copy features of real images, and the classifier that was trained on them, where the other folder has none."""
    target.mkdir(parents=True, exist_ok=True)
    for known in [*source.glob("t*-*px*.npz"), *source.glob("train-*px-classifier.pt")]:
        if "-reconstructed-" not in known.name and not (target / known.name).exists():
            shutil.copy(known, target)


def sheet(run: Run, out: Path, columns: int = 8) -> None:
    """Draw the first real test images of each class, and beside them the first samples of it."""
    samples, real = run.find(str(run.folder / "judged.zarr")), run.find(run.test_images)
    rows, captions = [], []
    for name in real.class_names or ("",):
        rows += [*_first(real, name, columns), *_first(samples, name, columns)]
        captions += [name or "real", *[""] * (columns - 1), "generated", *[""] * (columns - 1)]
    save(contact_sheet(np.stack(rows), captions, 2 * columns), out)


def sheet_of_nearest(run: Run, out: Path) -> None:
    """Draw the first samples, each beside the training image with the most equal tokens."""
    vqgan = load_vqgan(run.results / "vqgan.pt", run.dataset, torch.device("cpu"))
    training = TokenCache(run.folder / "cache" / f"{run.dataset}.zarr")
    found = nearest_training_rows(TokenCache(run.folder / "judged.zarr"), training, Decoder(model=vqgan))
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
    parser.add_argument("--at-once", type=int, default=1, help="how many seeds run side by side")
    parser.add_argument("--work", type=Path, default=Path("results"), help="where the runs are")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    name, case, setting = arguments.name, CASES[arguments.name], BASELINE if arguments.baseline else RECIPE
    work, log = arguments.work.resolve(), arguments.figures.resolve()
    data_root = arguments.data_root.resolve() if arguments.data_root else None
    log.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    of_setting = {"name": name, "variant": setting, "features": arguments.features, "judged": case.judged}
    known = {result["seed"] for result in results if of_setting.items() <= result.items()}
    took = [each["minutes"] for each in results if (each["name"], each["variant"]) == (name, RECIPE)]
    minutes = [each for each in took if each is not None]
    prefix = f"{name}-{'baseline' if arguments.baseline else 'recipe'}"
    kept = sorted(work.glob(f"{prefix}-*/recipe.toml"))
    content = planned(case, setting, data_root, kept, statistics.mean(minutes) if minutes else case.minutes)
    runs = {
        seed: Run(case=case, folder=work / f"{prefix}-{seed}", content={**content, "seed": seed}, data_root=data_root)
        for seed in arguments.seeds
    }
    missing = [seed for seed in runs if seed not in known]
    make([runs[seed] for seed in missing], arguments.at_once)
    for seed in missing:
        figures = measure(runs[seed], arguments.features, work / f"{name}-real")
        results.append({**of_setting, "seed": seed, **figures})
        with open(log, "a") as file:
            file.write(json.dumps(results[-1]) + "\n")
    shown = {"name": name, "features": arguments.features, "judged": case.judged}
    here = [result for result in results if shown.items() <= result.items()]
    print(table(here, name, (RECIPE, BASELINE), COLUMNS))
    first = runs[arguments.seeds[0]]
    if setting == RECIPE and (first.folder / "judged.zarr").exists():
        sheet(first, work / f"{name}.png")
        sheet_of_nearest(first, work / f"{name}-nearest.png")


if __name__ == "__main__":
    main()
