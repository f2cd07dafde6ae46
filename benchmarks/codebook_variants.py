"""How a VQ-GAN's codes come to say most: variants of its training, at equal steps or equal CPU time, on three datasets.

    python benchmarks/codebook_variants.py --mnist DIR --cifar10 TRAIN.zip TEST.zip --emoji EMOJI.zip [--seconds 60]

DIR is a data root with the MNIST files; the zips hold class folders of images. Each variant differs from the first one,
today's defaults on a network of width 32 without patches, in what its row says. Without `--seconds`, all train for the
same steps on the same batches; with it, steps of each are timed first, and it takes as many as fit. By one thread.

Figures are over held-out images: PSNR; FD-lite0 of reconstructions (rFD) and of decoded perturbed codes (pFD); the
rank of the latents in the last epoch and of the codes in use. Then a small GPT learns the codes, the same steps for
all: bits per image of held-out codes, and FD-lite0 of its samples. Mean and range over the seeds. Results are appended
to the --out file as they come, and what is there is not run again.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqgpt.data.decoding import is_image_name
from vqgpt.data.file_trees import open_tree
from vqgpt.data.images import FileImages, ImageSplit, held_out_rows, load_tensor
from vqgpt.data.options import ImageOptions, Preprocessing, PreprocessingOptions
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.data.training_images import LoadedImages
from vqgpt.evaluation.distances import Moments, frechet_distance
from vqgpt.evaluation.extractors import Extractor, load_lite0
from vqgpt.evaluation.tokenizer import nearest_codes_of, perturbed_codes
from vqgpt.gpt.generate import sample_codes
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining, held_out_figures
from vqgpt.options.definition import resolve
from vqgpt.progress import silent
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.coding import reconstruct, to_uint8
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions, VQGANTrainingOptions
from vqgpt.vqgan.training import VQGANTraining

WORKERS = 2
CPU = torch.device("cpu")
PERTURBED = 0.5  # share of the codes, as `vqgpt evaluate tokenizer` has it
TIMED_STEPS = 4  # of a training, after one that is not counted
GPT_STEPS, GPT_BATCH, SAMPLES = 400, 32, 500
NETWORK: dict[str, Any] = {
    "channels": 32,
    "z_channels": 32,
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "embed_dim": 8,
}
TRAINING: dict[str, Any] = {"disc_weight": 0.0, "perceptual": "off"}
GPT_NETWORK: dict[str, Any] = {"n_layer": 2, "n_head": 4, "embed_dim_t": 80, "dropout_t": 0.0, "order": "raster"}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A dataset, (N, C, size, size) uint8, and what of the VQ-GAN goes with it."""

    train: Tensor
    held_out: Tensor
    network: dict[str, Any]
    batch_size: int
    n_epochs: int


ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3}
PLAIN: dict[str, Any] = {"normalise_latents": False}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the defaults": ({}, {}),
    "latents not normalised": ({}, PLAIN),
    "norms of 32 groups": ({"norm_groups": 32}, {}),
    "norms of 8 groups": ({"norm_groups": 8}, {}),
    "norms of 1 group": ({"norm_groups": 1}, {}),
    "Adam (1e-3)": ({}, ADAM),
    "all three: the defaults before": ({"norm_groups": 32}, {**ADAM, **PLAIN}),
    "these and a loss-trained codebook": ({"norm_groups": 32}, {**ADAM, **PLAIN, "codebook": "loss"}),
    "l2-normalised codes": ({"l2_codes": True}, {}),
    "code dimension 4": ({"embed_dim": 4}, {}),
    "patches of 2 pixels (the recipes)": ({"patch": 2, "ch_mult": (1, 1)}, {}),
    "patches of 2 pixels, wider below": ({"patch": 2, "ch_mult": (1, 2)}, {}),
}


def preprocessing(size: int, channels: int) -> Preprocessing:
    """What the VQ-GANs are fed."""
    return Preprocessing(size=size, channels=channels, options=PreprocessingOptions())


def read_class_folders(archive: Path, size: int) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """All images of a zip, in the order of their names, as (N, 3, size, size) uint8, and their classes (N,)."""
    tree = open_tree(archive)
    names = tuple(name for name in tree.sizes if is_image_name(name))
    folders = [Path(name).parent.name for name in names]
    labels = np.array([sorted(set(folders)).index(folder) for folder in folders])
    split = ImageSplit.whole(FileImages(tree, names, (255, 255, 255)), labels)
    return load_tensor(split, preprocessing(size, 3), WORKERS, archive.stem, silent), labels


def some(images: Tensor, count: int) -> Tensor:
    """`count` images, always the same ones."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]]


def read_all(arguments: argparse.Namespace) -> Iterator[tuple[str, Images]]:
    """The datasets that were given, by name."""
    small = {"batch_size": 64, "n_epochs": 2}
    if arguments.mnist:
        options = resolve(ImageOptions, {"data_root": arguments.mnist})
        splits = read_dataset(find_dataset("mnist"), options, 32, silent).splits
        train, test = (load_tensor(split, preprocessing(32, 1), WORKERS, "", silent) for split in splits.values())
        network = {"ch_mult": (1, 2, 2), "n_embed": 64}
        yield "MNIST", Images(train=some(train, 6000), held_out=some(test, 500), network=network, **small)
    if arguments.cifar10:
        train, test = (read_class_folders(archive, 32)[0] for archive in arguments.cifar10)
        network = {"ch_mult": (1, 2, 2), "n_embed": 256}
        yield "CIFAR-10", Images(train=some(train, 6000), held_out=some(test, 500), network=network, **small)
    if arguments.emoji:
        images, labels = read_class_folders(arguments.emoji, 64)
        held_out = torch.from_numpy(held_out_rows(labels, 0.1))
        network = {"ch_mult": (1, 2, 2, 2), "n_embed": 256}
        yield (
            "emoji",
            Images(train=images[~held_out], held_out=images[held_out], network=network, batch_size=32, n_epochs=6),
        )


def new_training(images: Images, variant: str, seed: int, max_steps: int | None) -> VQGANTraining:
    """A training that is about to begin."""
    of_network, of_training = VARIANTS[variant]
    options = VQGANOptions(
        **{**NETWORK, "embed_dim": 8, **images.network, **of_network, **_fitting(images, of_network)}
    )
    torch.manual_seed(seed)
    channels, size = images.train.shape[1:3]
    model = VQGAN(VQGANConfig.of(options, channels, size))
    training = VQGANTrainingOptions(
        **{**TRAINING, "batch_size": images.batch_size, "n_epochs": images.n_epochs, **of_training}
    )
    steps_per_epoch = math.ceil(len(images.train) / images.batch_size)
    epochs = math.ceil(max_steps / steps_per_epoch) if max_steps else images.n_epochs
    schedule = Schedule(
        seed=seed, num_rows=len(images.train), batch_size=images.batch_size, n_epochs=epochs, max_steps=max_steps
    )
    held_out = partial(LoadedImages(images.held_out).passes, torch.arange(len(images.held_out)), 250)
    return VQGANTraining(model, None, LoadedImages(images.train), held_out, training, schedule, "fp32", lambda *_: None)


def _fitting(images: Images, of_network: dict[str, Any]) -> dict[str, Any]:
    """With patches, as many levels as leave the grid as it is."""
    missing = len(images.network["ch_mult"]) - 1 - len(of_network.get("ch_mult", ()))
    return (
        {"ch_mult": (*of_network["ch_mult"], *[of_network["ch_mult"][-1]] * missing)} if "patch" in of_network else {}
    )


def seconds_per_step(images: Images, variant: str) -> float:
    """CPU seconds."""
    training = new_training(images, variant, 0, TIMED_STEPS + 1)
    times = []
    for step in training.schedule.steps(0):
        start = time.process_time()
        training.take_step(step)
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def measure(images: Images, variant: str, seed: int, steps: int | None, extractor: Extractor) -> dict[str, float]:
    """The figures of one training."""
    training = new_training(images, variant, seed, steps)
    start, latent_rank = time.process_time(), 0.0
    for step in training.schedule.steps(0):
        training.take_step(step)
        if step.ends_epoch:
            latent_rank = training.epoch_figures()["epoch_latent_rank"]
    spent = time.process_time() - start
    figures, model = training.validate(), result_of(training)
    reconstructions, codes = reconstruct(model, images.held_out)
    reference = moments(images.held_out, extractor)
    neighbours, random = nearest_codes_of(model.quantize.vectors().detach()), np.random.default_rng(seed)
    perturbed = torch.from_numpy(perturbed_codes(codes.numpy(), neighbours, PERTURBED, random))
    bits, samples = learn_codes(reconstruct(model, images.train)[1], codes, model, seed)
    return {
        **{name: figures[name] for name in ("psnr_db", "used_codes", "perplexity", "codebook_rank")},
        "latent_rank": latent_rank,
        "rfd": frechet_distance(moments(reconstructions, extractor), reference),
        "pfd": frechet_distance(moments(decode(model, perturbed), extractor), reference),
        "bits_per_image": bits,
        "gfd": frechet_distance(moments(samples, extractor), reference),
        "cpu_seconds": spent,
        "steps": training.schedule.num_steps,
    }


def result_of(training: VQGANTraining) -> VQGAN:
    """As the checkpoint would hold it."""
    model = VQGAN(training.model.config)
    model.load_state_dict(training.weights)
    return model.eval()


def moments(images: Tensor, extractor: Extractor) -> Moments:
    """Of the features of images (N, C, H, W) uint8."""
    return Moments.of(extractor.compute(images))


@torch.no_grad()
def decode(model: VQGAN, codes: Tensor) -> Tensor:
    """(N, h, w) -> (N, C, H, W) uint8."""
    return torch.cat([to_uint8(model.decode(some)) for some in codes.split(128)])


def learn_codes(train: Tensor, held_out: Tensor, model: VQGAN, seed: int) -> tuple[float, Tensor]:
    """Bits per image of held-out codes (N, h, w) by a GPT that learned the others, and images that it makes."""
    grid = (train.shape[1], train.shape[2])
    options = GPTOptions(condition="none", **GPT_NETWORK)
    config = GPTConfig(options=options, codebook_size=model.config.codebook_size, grid=grid, num_classes=0)
    seen, unseen = (
        TokenGrids.of(codes[:, None].to(torch.uint8), torch.full((len(codes),), -1), config)
        for codes in (train, held_out)
    )
    schedule = Schedule(seed=seed, num_rows=len(train), batch_size=GPT_BATCH, n_epochs=GPT_STEPS, max_steps=GPT_STEPS)
    warmup = 0.1 * GPT_STEPS / schedule.steps_per_epoch
    training_options = GPTTrainingOptions(batch_size=GPT_BATCH, lr=3e-2, optimizer="muon", warmup=warmup)
    torch.manual_seed(seed)
    training = GPTTraining(GPT(config), seen, unseen, training_options, schedule, "fp32")
    for step in training.schedule.steps(0):
        training.take_step(step)
    bits = held_out_figures(training.model, unseen, "fp32")["held_out_bits_per_token"] * math.prod(grid)
    labels, sampling = torch.full((SAMPLES,), -1), SamplingOptions(num_samples=SAMPLES)
    codes = torch.cat([codes for codes, _ in sample_codes(training.model.eval(), labels, seed, sampling, "fp32")])
    return bits, decode(model, codes.view(-1, *grid))


COLUMNS = {
    "psnr_db": ("PSNR, dB", ".2f"),
    "rfd": ("rFD", ".0f"),
    "pfd": ("pFD", ".0f"),
    "latent_rank": ("rank of latents", ".1f"),
    "codebook_rank": ("of codes", ".1f"),
    "perplexity": ("perplexity", ".0f"),
    "bits_per_image": ("bits per image", ".0f"),
    "gfd": ("FD of samples", ".0f"),
    "steps": ("steps", ".0f"),
    "cpu_seconds": ("CPU, s", ".0f"),
}


def table(results: list[dict[str, Any]], dataset: str) -> str:
    """The results on one dataset as a Markdown table: mean (lowest to highest)."""
    lines = [
        " | ".join([f"| {dataset}", "seeds", *(name for name, _ in COLUMNS.values())]) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for variant in VARIANTS:
        rows = [result for result in results if (result["dataset"], result["variant"]) == (dataset, variant)]
        cells = []
        for key, (_, form) in COLUMNS.items() if rows else ():
            values = [row[key] for row in rows]
            spread = f" ({min(values):{form}} to {max(values):{form}})" if min(values) < max(values) else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}")
        if rows:
            lines.append(" | ".join([f"| {variant}", str(len(rows)), *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what has not been run yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar10", type=Path, nargs=2)
    parser.add_argument("--emoji", type=Path)
    parser.add_argument("--seconds", type=float, help="CPU seconds for each training, in place of equal steps")
    parser.add_argument("--epochs", type=int, help="in place of 2, 2 and 6")
    parser.add_argument("--images", type=int, help="fewer training images than 6,000, or than all emoji")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("codebook_variants.jsonl"))
    arguments = parser.parse_args()
    keep_memory_pages()
    torch.set_num_threads(1)
    extractor = load_lite0(CPU)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    setting = {name: getattr(arguments, name) for name in ("seconds", "epochs", "images")}
    for dataset, images in read_all(arguments):
        train = some(images.train, arguments.images) if arguments.images else images.train
        images = replace(images, train=train, n_epochs=arguments.epochs or images.n_epochs)
        for variant in arguments.variants:
            fitting = arguments.seconds and int(arguments.seconds / seconds_per_step(images, variant))
            for seed in arguments.seeds:
                key = {"dataset": dataset, "variant": variant, "seed": seed, **setting}
                if any(key.items() <= result.items() for result in results):
                    continue
                results.append({**key, **measure(images, variant, seed, fitting, extractor)})
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
        print(table([result for result in results if setting.items() <= result.items()], dataset), end="\n\n")


if __name__ == "__main__":
    main()
