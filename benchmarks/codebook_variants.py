"""How a codebook should start and learn: PSNR and codebook use of variants, at equal steps, on MNIST and CIFAR-10.

    python benchmarks/codebook_variants.py --mnist DIR --cifar10 TRAIN.zip TEST.zip

DIR is a data root with the MNIST files; the zips hold CIFAR-10 as class folders of images. Every variant trains the
same network (32 x 32 pixels, width 32, 128 codes, grid 8 x 8) on the same batches; figures are over 1,000 test images,
mean and range over the seeds. Results are appended to the --out file as they come, and what is there is not run again.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqgpt.data.decoding import is_image_name
from vqgpt.data.file_trees import open_tree
from vqgpt.data.images import FileImages, ImageSplit, load_tensor
from vqgpt.data.options import ImageOptions, Preprocessing, PreprocessingOptions
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.data.training_images import LoadedImages
from vqgpt.options.definition import resolve
from vqgpt.progress import silent
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.coding import images_per_pass
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANConfig, VQGANOptions, VQGANTrainingOptions
from vqgpt.vqgan.training import VQGANTraining

SIZE = 32
HELD_OUT = 1000
WORKERS = 2
TRAINING: dict[str, Any] = {"batch_size": 32, "n_epochs": 1, "lr": 1e-3, "lr_schedule": "cosine", "disc_weight": 0.0}
EMA = {"codebook": "ema", "codebook_start": "latents"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "loss, uniform start (the original)": ({}, {"codebook": "loss"}),
    "loss, k-means start": ({}, {"codebook": "loss", "codebook_start": "kmeans"}),
    "EMA, no revival": ({}, {**EMA, "revive_below": 0.0}),
    "EMA, revival": ({}, EMA),
    "EMA, revival, k-means start (default)": ({}, {"codebook": "ema"}),
    "the same, code dimension 8": ({"embed_dim": 8}, {"codebook": "ema"}),
    "the same, code dimension 8, l2-normalised": ({"embed_dim": 8, "l2_codes": True}, {"codebook": "ema"}),
}
FIGURES = {"psnr_db": ".2f", "used_codes": ".0f", "perplexity": ".0f"}


def preprocessing(channels: int) -> Preprocessing:
    """What the VQ-GANs are fed."""
    return Preprocessing(size=SIZE, channels=channels, options=PreprocessingOptions())


def read_class_folders(archive: Path) -> Tensor:
    """All images of a zip, in the order of their names, as (N, 3, 32, 32) uint8."""
    tree = open_tree(archive)
    names = tuple(name for name in tree.sizes if is_image_name(name))
    split = ImageSplit.whole(FileImages(tree, names, (255, 255, 255)), np.zeros(len(names), dtype=np.int64))
    return load_tensor(split, preprocessing(3), WORKERS, archive.stem, silent)


def train(images: Tensor, held_out: Tensor, variant: str, steps: int, seed: int) -> dict[str, float]:
    """The figures of one training on `steps` batches of (N, C, 32, 32) uint8 images."""
    model_options, training_options = VARIANTS[variant]
    options = VQGANOptions(channels=32, num_res_blocks=1, attn_resolutions=(), **model_options)
    torch.manual_seed(seed)
    model = VQGAN(VQGANConfig.of(options, images.shape[1], SIZE))
    training = VQGANTrainingOptions(**{**TRAINING, **training_options})
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: steps * training.batch_size]
    schedule = Schedule(seed=seed, num_rows=len(rows), batch_size=training.batch_size, n_epochs=1)
    loaded, in_passes = LoadedImages(images[rows]), (torch.arange(len(held_out)), images_per_pass(SIZE, SIZE))
    passes = partial(LoadedImages(held_out).passes, *in_passes)
    run = VQGANTraining(model, None, loaded, passes, training, schedule, "fp32", lambda *_: None)
    for step in schedule.steps(0):
        run.take_step(step)
    return run.validate()


def table(results: list[dict[str, Any]], dataset: str) -> str:
    """The results on one dataset as a Markdown table: mean (lowest to highest)."""
    lines = [f"| {dataset} | PSNR, dB | codes in use of 128 | perplexity |", "|---|---|---|---|"]
    for variant in VARIANTS:
        rows = [result for result in results if (result["dataset"], result["variant"]) == (dataset, variant)]
        cells = []
        for name, form in FIGURES.items():
            values = [row[name] for row in rows]
            if values:
                cells.append(f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        lines.append(" | ".join([f"| {variant}", *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what has not been run yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar10", type=Path, nargs=2)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("codebook_variants.jsonl"))
    arguments = parser.parse_args()
    keep_memory_pages()
    data = {}
    if arguments.mnist:
        options = resolve(ImageOptions, {"data_root": arguments.mnist})
        splits = read_dataset(find_dataset("mnist"), options, SIZE, silent).splits
        data["MNIST"] = tuple(
            load_tensor(split, preprocessing(1), WORKERS, "mnist", silent) for split in splits.values()
        )
    if arguments.cifar10:
        data["CIFAR-10"] = tuple(read_class_folders(archive) for archive in arguments.cifar10)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    for seed in arguments.seeds:
        for dataset, (images, test) in data.items():
            held_out = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:HELD_OUT]]
            for variant in VARIANTS:
                key = {"dataset": dataset, "variant": variant, "seed": seed, "steps": arguments.steps}
                if any(key.items() <= result.items() for result in results):
                    continue
                results.append({**key, **train(images, held_out, variant, arguments.steps, seed)})
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    for dataset in data:
        print(table([result for result in results if result["steps"] == arguments.steps], dataset), end="\n\n")


if __name__ == "__main__":
    main()
