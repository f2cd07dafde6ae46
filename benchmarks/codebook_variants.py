"""How a VQ-GAN's codes come to say most: variants of its training, at equal steps or equal CPU time, on three datasets.

    python benchmarks/codebook_variants.py --mnist DIR --cifar10 TRAIN.zip --emoji EMOJI.zip
    python benchmarks/codebook_variants.py --mnist DIR --cifar10 TRAIN.zip --seconds 40

DIR is a data root with the MNIST files; the zips hold class folders of images. Without `--seconds`, all variants of
the training run for the same steps on the same batches; each differs from the first one, today's defaults on a network
of width 32 without patches, in what its row says. With it, the networks for small images run: each differs in what its
row says from that of the recipes, at this width. Steps of each are timed first, and it takes as many as fit. By one
thread.

Figures are over held-out images of the training split: PSNR; FD-lite0 of reconstructions (rFD) and of decoded
perturbed codes (pFD); the rank of the latents in the last epoch and of the codes in use. Then a small GPT learns the
codes, in the same steps for all, or in half of the seconds: bits per image of held-out codes, and FD-lite0 of its
samples. Mean and range over the seeds. Results are appended to the --out file as they come, and what is there is not
run again.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import TIMED_STEPS, steps_that_fit, table
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
from vqgpt.gpt.generate import Asked, sample_codes
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
from vqgpt.vqgan.perceptual import load_perceptual_loss
from vqgpt.vqgan.training import VQGANTraining

WORKERS = 2
CPU = torch.device("cpu")
PERTURBED = 0.5  # share of the codes, as `vqgpt evaluate tokenizer` has it
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


HELD_OUT = 500


@dataclass(frozen=True, kw_only=True)
class Images:
    """A dataset, (N, C, size, size) uint8, and what of the VQ-GAN goes with it."""

    train: Tensor
    held_out: Tensor
    network: dict[str, Any]
    batch_size: int
    n_epochs: int


Variant = tuple[dict[str, Any], dict[str, Any]]  # what it changes in the network, and in its training
ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3}
PLAIN: dict[str, Any] = {"normalise_latents": False}
VARIANTS: dict[str, Variant] = {
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
    "patches of 2 pixels (the recipes)": ({"patch": 2, "ch_mult": (1,)}, {}),
}
PATCHED: dict[str, Any] = {"patch": 2, "ch_mult": (1,)}
NETWORKS: dict[str, Variant] = {
    "patches of 2 pixels (the recipes)": (PATCHED, {}),
    "no patches": ({}, {}),
    "patches of 4 pixels": ({**PATCHED, "patch": 4}, {}),
    "width 16": ({**PATCHED, "channels": 16}, {}),
    "width 48": ({**PATCHED, "channels": 48}, {}),
    "width 64": ({**PATCHED, "channels": 64}, {}),
    "twice as wide below": ({**PATCHED, "ch_mult": (1, 2)}, {}),
    "2 residual blocks": ({**PATCHED, "num_res_blocks": 2}, {}),
    "grid of 4 x 4": ({**PATCHED, "grid": 4}, {}),
    "grid of 4 x 4, 4 times the codes": ({**PATCHED, "grid": 4, "codes": 4.0}, {}),
    "a quarter of the codes": ({**PATCHED, "codes": 0.25}, {}),
    "half of the codes": ({**PATCHED, "codes": 0.5}, {}),
    "twice the codes": ({**PATCHED, "codes": 2.0}, {}),
    "4 times the codes": ({**PATCHED, "codes": 4.0}, {}),
    "perceptual loss (stlpips)": (PATCHED, {"perceptual": "stlpips"}),
    "perceptual loss, weight 0.1": (PATCHED, {"perceptual": "stlpips", "perceptual_weight": 0.1}),
    "adversary, weight 0.1": (PATCHED, {"disc_weight": 0.1}),
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
    size, small = arguments.size, {"batch_size": 64, "n_epochs": 2}
    if arguments.mnist:
        options = resolve(ImageOptions, {"data_root": arguments.mnist})
        split = read_dataset(find_dataset("mnist"), options, size, silent).splits["train"]
        images = some(load_tensor(split, preprocessing(size, 1), WORKERS, "", silent), HELD_OUT + 6000)
        network = {"ch_mult": (1, 2, 2), "n_embed": 64}
        yield "MNIST", Images(train=images[HELD_OUT:], held_out=images[:HELD_OUT], network=network, **small)
    if arguments.cifar10:
        images = some(read_class_folders(arguments.cifar10, size)[0], HELD_OUT + 6000)
        network = {"ch_mult": (1, 2, 2), "n_embed": 256}
        yield "CIFAR-10", Images(train=images[HELD_OUT:], held_out=images[:HELD_OUT], network=network, **small)
    if arguments.emoji:
        images, labels = read_class_folders(arguments.emoji, 64)
        held_out = torch.from_numpy(held_out_rows(labels, 0.1))
        network = {"ch_mult": (1, 2, 2, 2), "n_embed": 256}
        yield (
            "emoji",
            Images(train=images[~held_out], held_out=images[held_out], network=network, batch_size=32, n_epochs=6),
        )


def network_of(images: Images, changes: dict[str, Any]) -> VQGANOptions:
    """The options of a network, with as many levels as its grid takes: the last one is repeated."""
    usual = {**NETWORK, **images.network}
    values = {**usual, **changes}
    size = images.train.shape[2]
    grid = values.pop("grid", size >> (len(usual["ch_mult"]) - 1))
    levels = (size // values.get("patch", 1) // grid).bit_length()
    values["ch_mult"] = (*values["ch_mult"], *[values["ch_mult"][-1]] * levels)[:levels]
    values["n_embed"] = round(values["n_embed"] * values.pop("codes", 1))
    return VQGANOptions(**values)


def new_training(images: Images, variant: Variant, seed: int, max_steps: int | None) -> VQGANTraining:
    """A training that is about to begin. An adversary comes at half of it."""
    of_network, of_training = variant
    torch.manual_seed(seed)
    channels, size = images.train.shape[1:3]
    model = VQGAN(VQGANConfig.of(network_of(images, of_network), channels, size))
    steps_per_epoch = math.ceil(len(images.train) / images.batch_size)
    epochs = math.ceil(max_steps / steps_per_epoch) if max_steps else images.n_epochs
    schedule = Schedule(
        seed=seed, num_rows=len(images.train), batch_size=images.batch_size, n_epochs=epochs, max_steps=max_steps
    )
    usual = {**TRAINING, "batch_size": images.batch_size, "n_epochs": epochs}
    adversary = {"disc_start": math.ceil(schedule.num_steps / 2), "warmup": 0}
    training = VQGANTrainingOptions(**{**usual, **adversary, **of_training})
    held_out = partial(LoadedImages(images.held_out).passes, torch.arange(len(images.held_out)), 250)
    perceptual = load_perceptual_loss("stlpips", CPU, lambda _: None) if training.perceptual == "stlpips" else None
    return VQGANTraining(
        model, perceptual, LoadedImages(images.train), held_out, training, schedule, "fp32", lambda *_: None
    )


def measure(
    images: Images, variant: Variant, seed: int, seconds: float | None, extractor: Extractor
) -> dict[str, float]:
    """The figures of one training."""
    steps = steps_that_fit(seconds, new_training(images, variant, seed, TIMED_STEPS)) if seconds else None
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
    bits, samples = learn_codes(reconstruct(model, images.train)[1], codes, model, seed, seconds and seconds / 2)
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


def learn_codes(
    train: Tensor, held_out: Tensor, model: VQGAN, seed: int, seconds: float | None
) -> tuple[float, Tensor]:
    """Bits per image of held-out codes (N, h, w) by a GPT that learned the others, and images that it makes."""
    grid = (train.shape[1], train.shape[2])
    options = GPTOptions(condition="none", **GPT_NETWORK)
    config = GPTConfig(options=options, codebook_size=model.config.codebook_size, grid=grid, num_classes=0)
    seen, unseen = (
        TokenGrids.of(codes[:, None].to(torch.int16), torch.full((len(codes),), -1), config)
        for codes in (train, held_out)
    )

    def new_gpt(steps: int) -> GPTTraining:
        schedule = Schedule(seed=seed, num_rows=len(train), batch_size=GPT_BATCH, n_epochs=steps, max_steps=steps)
        warmup = 0.1 * steps / schedule.steps_per_epoch
        training_options = GPTTrainingOptions(batch_size=GPT_BATCH, lr=3e-2, optimizer="muon", warmup=warmup)
        torch.manual_seed(seed)
        return GPTTraining(GPT(config), seen, unseen, training_options, schedule, "fp32")

    training = new_gpt(steps_that_fit(seconds, new_gpt(TIMED_STEPS)) if seconds else GPT_STEPS)
    for step in training.schedule.steps(0):
        training.take_step(step)
    bits = held_out_figures(training.model, unseen, "fp32")["held_out_bits_per_token"] * math.prod(grid)
    labels, sampling = torch.full((SAMPLES,), -1), SamplingOptions(num_samples=SAMPLES)
    codes = torch.cat(
        [codes for codes, _ in sample_codes(training.model.eval(), Asked.of_one_seed(labels, seed, sampling), "fp32")]
    )
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


def main() -> None:
    """Run what has not been run yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--emoji", type=Path)
    parser.add_argument("--seconds", type=float, help="CPU seconds for each training: the networks for small images")
    parser.add_argument("--size", type=int, default=32, help="of MNIST and CIFAR-10, in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices={**VARIANTS, **NETWORKS}, metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("codebook_variants.jsonl"))
    arguments = parser.parse_args()
    keep_memory_pages()
    torch.set_num_threads(1)
    extractor = load_lite0(CPU)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    setting = {name: getattr(arguments, name) for name in ("seconds", "size")}
    variants = NETWORKS if arguments.seconds else VARIANTS
    if unknown := set(arguments.variants or ()) - set(variants):
        parser.error(f"these are variants {'without' if arguments.seconds else 'of'} --seconds: {', '.join(unknown)}")
    for dataset, images in read_all(arguments):
        for seed in arguments.seeds:
            for variant in arguments.variants or variants:
                key = {"dataset": dataset, "variant": variant, "seed": seed, **setting}
                if any(key.items() <= result.items() for result in results):
                    continue
                results.append({**key, **measure(images, variants[variant], seed, arguments.seconds, extractor)})
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
        here = {**setting, "dataset": dataset}
        rows = [result for result in results if here.items() <= result.items()]
        print(table(rows, dataset, variants, COLUMNS), end="\n\n")


if __name__ == "__main__":
    main()
