"""The configuration of each command: which options it has. Must not import torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.config.cache_path import CachePath
from vqgpt.config.datasets import DATASETS
from vqgpt.config.gpt import SAMPLING, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.config.options import argument, check, option
from vqgpt.config.places import RUNS_FOLDER, cache_path, default_data_root, vqgan_path
from vqgpt.config.preprocessing import IMAGES, PreprocessingOptions, parse_views
from vqgpt.config.vqgan import REMAP_HELP, VQGANOptions, VQGANTrainingOptions

DATA = "Data and files"
RUN = "Run"

DATASET_HELP = "Dataset: " + ", ".join(DATASETS) + "."
DATA_ROOT_HELP = (
    "Folder of the downloaded images (default: vqgpt/data in the user's cache folder, or data where there can be none)"
)
MOST_WORKERS = 16  # unless told otherwise
DEVICE_HELP = "auto, cpu, cuda, cuda:N or mps."
SIZE_HELP = "Image size in pixels (default: that of the VQ-GAN, where it is known, else the dataset's own)."
FP32_HELP = "fp32, or bf16, which is faster on a GPU and changes about 3 % of the codes, or some pixels."

SHOW_HELP = "Show the sheet on this terminal, where it can show images (kitty, iTerm2, sixel)."
N_HEAD_HELP = "For a GPT of GenerativeZoo: its attention heads, which the file does not tell (default: 8)."


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images a command reads."""

    dataset: str = option("mnist", DATASET_HELP, group=DATA)
    data_root: Path | None = option(
        None,
        f"{DATA_ROOT_HELP}; with --dataset folder, the folder, zip or tar file of your own.",
        group=DATA,
    )
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


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig:
    """`vqgpt datasets`."""

    data_root: Path | None = option(None, f"{DATA_ROOT_HELP}.", group=DATA)

    @property
    def root(self) -> Path:
        """The folder of downloaded images."""
        return self.data_root or default_data_root()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a training or sampling runs."""

    device: str = option("auto", DEVICE_HELP, group=RUN)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto takes bf16 on a CUDA device that has it, else fp32.", group=RUN
    )
    seed: int = option(0, "Seed of all random numbers.", group=RUN)

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Where a training's metrics go, beside metrics.jsonl."""

    wandb: bool | None = option(
        None,
        "Log to Weights & Biases too (default: where the package, extra 'wandb', is installed and has a login or "
        "WANDB_MODE=offline).",
        group=RUN,
    )
    tensorboard: bool = option(
        False, "Log for TensorBoard too, beside the result (package of the extra 'tensorboard').", group=RUN
    )


@dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig:
    """`vqgpt vqgan train`."""

    images: ImageOptions
    size: int | None = option(None, "Image size in pixels (default: the dataset's own).", group=DATA)
    limit: int | None = option(
        None, "Train on this many of the training images, evenly spaced; all are held in memory.", group=DATA
    )
    out: Path | None = option(None, "The checkpoint to write (default: runs/DATASET/vqgan.pt).", group=DATA)
    model: VQGANOptions
    training: VQGANTrainingOptions
    run: RunOptions
    logging: LoggingOptions

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 0, "size", self.size, "positive")
        check(self.limit is None or self.limit > 0, "limit", self.limit, "positive")
        check(self.run.precision != "fp16", "precision", "fp16", "auto, fp32 or bf16 for a VQ-GAN")

    @property
    def result(self) -> Path:
        """The checkpoint to write."""
        return self.out or vqgan_path(self.images.dataset)


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Which VQ-GAN a command loads, and how exactly it computes."""

    checkpoint_vae: Path | None = option(
        None,
        "VQ-GAN checkpoint, ours or of taming-transformers, latent-diffusion, LlamaGen or GenerativeZoo "
        "(default: runs/DATASET/vqgan.pt).",
        group=DATA,
    )
    remap: Path | None = option(None, REMAP_HELP, group=DATA)
    device: str = option("auto", DEVICE_HELP, group=RUN)
    precision: Literal["fp32", "bf16"] = option("fp32", FP32_HELP, group=RUN)

    def path(self, dataset: str) -> Path:
        """The checkpoint: the one that was given, else the one of the dataset."""
        return self.checkpoint_vae or vqgan_path(dataset)


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """`vqgpt vqgan reconstruct`."""

    images: ImageOptions
    size: int | None = option(None, SIZE_HELP, group=DATA)
    vqgan: EncoderOptions
    num_images: int = option(16, "Held-out images to show.", group=DATA)
    out: Path | None = option(None, "The picture to write (default: runs/DATASET/reconstructions.png).", group=DATA)

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 0, "size", self.size, "positive")
        check(self.num_images > 0, "num_images", self.num_images, "positive")

    @property
    def result(self) -> Path:
        """The picture to write."""
        return self.out or RUNS_FOLDER / self.images.dataset / "reconstructions.png"


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """`vqgpt vqgan import`."""

    file: Path = argument(
        "A checkpoint of taming-transformers, latent-diffusion, LlamaGen or GenerativeZoo: .ckpt, .pt, .safetensors."
    )
    config: Path | None = option(
        None, "The YAML beside it, of which the image size is taken; refused if it contradicts the weights.", group=DATA
    )
    weights: Literal["model", "ema"] | None = option(
        None, "Which weights to take from a file that has both (default: model).", group=DATA
    )
    size: int | None = option(None, "Image size in pixels at which it was trained, where no YAML tells.", group=DATA)
    remap: Path | None = option(None, REMAP_HELP, group=DATA)
    dataset: str | None = option(None, "Make it the VQ-GAN of this dataset: runs/DATASET/vqgan.pt.", group=DATA)
    out: Path | None = option(None, "The checkpoint to write (default: runs/NAME OF FILE/vqgan.pt).", group=DATA)

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 0, "size", self.size, "positive")

    @property
    def result(self) -> Path:
        """The checkpoint to write."""
        return self.out or vqgan_path(self.dataset or self.file.stem)


@dataclass(frozen=True, kw_only=True)
class VQGANInfoConfig:
    """`vqgpt vqgan info`."""

    file: Path = argument("A VQ-GAN checkpoint, ours or someone else's.")


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """`vqgpt tokenize`."""

    images: ImageOptions
    size: int | None = option(None, SIZE_HELP, group=DATA)
    cache: CachePath | None = option(None, "The token cache to write (default: cache/DATASET.zarr).", group=DATA)
    views: tuple[str, ...] = option(
        (),
        "Views of each image to encode: identity, hflip, five-crop, ten-crop, with commas between "
        "(default: identity, and hflip where a mirrored image means the same).",
        group=IMAGES,
    )
    limit: int | None = option(
        None, "Take so many images of each split, evenly spaced, to try things out (default: all).", group=DATA
    )
    vqgan: EncoderOptions
    batch_size: int = option(256, "Images per pass of the encoder.", group=RUN)

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 0, "size", self.size, "positive")
        check(self.batch_size > 0, "batch_size", self.batch_size, "positive")
        check(self.limit is None or self.limit > 0, "limit", self.limit, "positive")
        check(self.cache is None or self.cache.suffix == ".zarr", "cache", self.cache, "a path that ends in .zarr")
        if self.views:
            parse_views(self.views)

    @property
    def result(self) -> CachePath:
        """The token cache to write."""
        return self.cache or cache_path(self.images.dataset)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`vqgpt train`."""

    dataset: str | None = option(None, "Train on cache/DATASET.zarr (default: the only cache there is).", group=DATA)
    cache: CachePath | None = option(None, "The token cache to train on.", group=DATA)
    out: Path | None = option(None, "The checkpoint to write (default: runs/DATASET/gpt.pt).", group=DATA)
    checkpoint_gpt: Path | None = option(
        None, "GPT to start from, of the same architecture, ours or of GenerativeZoo.", group=DATA
    )
    block_size: int | None = option(
        None, "Tokens per image. The cache knows it (grid height x width); another value is refused.", group=DATA
    )
    model: GPTOptions
    training: GPTTrainingOptions
    deterministic: bool = option(
        False, "Use deterministic operations alone: on a GPU, for a result that repeats bit for bit.", group=RUN
    )
    run: RunOptions
    logging: LoggingOptions


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """`vqgpt sample`."""

    dataset: str | None = option(None, "Sample from runs/DATASET/gpt.pt (default: the only GPT there is).", group=DATA)
    checkpoint_gpt: Path | None = option(None, "GPT checkpoint, ours or of GenerativeZoo.", group=DATA)
    cache: CachePath | None = option(
        None,
        "The token cache of --prompt cache:SPLIT/ROW (default: cache/DATASET.zarr); for a GPT of GenerativeZoo, one of "
        "the tokenizer that it was trained with (default: that, or the only one there is).",
        group=DATA,
    )
    n_head: int | None = option(None, N_HEAD_HELP, group=DATA)
    checkpoint_vae: Path | None = option(
        None, "VQ-GAN checkpoint to render with (default: runs/DATASET/vqgan.pt).", group=DATA
    )
    out: CachePath | None = option(
        None, "The token cache to write (default: runs/DATASET/samples.zarr); the picture lies beside it.", group=DATA
    )
    tokens_only: bool = option(False, "Write the tokens and no picture: needs no VQ-GAN.", group=DATA)
    classes: tuple[str, ...] = option(
        (),
        "Classes to generate, by name or number, in turn; 'all' or 'none' "
        "(default: all that it was trained on, for a GPT that knows classes; with --prompt, the label of the row). "
        "name:WORD and number:N tell names and numbers apart. For a GPT that knows bits, those set, with + between.",
        group=SAMPLING,
        flag="class",
    )
    prompt: tuple[str, ...] = option(
        (),
        "Complete these, in turn: image files (needs the VQ-GAN), or rows of a token cache: cache:train/17, or "
        "cache:PATH.zarr:train/17.",
        group=SAMPLING,
    )
    keep: str | None = option(
        None,
        "What is kept of a prompt: top-half, left-half, the number of rows of the grid, or a mask, an image file whose "
        "white pixels are kept (default: top-half).",
        group=SAMPLING,
    )
    sampling: SamplingOptions
    run: RunOptions
    show: bool = option(False, SHOW_HELP, group=RUN)

    def __post_init__(self) -> None:
        check(not (self.show and self.tokens_only), "show", self.show, "left out with --tokens-only")
        check(self.out is None or self.out.suffix == ".zarr", "out", self.out, "a path that ends in .zarr")
        check(self.n_head is None or self.n_head > 0, "n_head", self.n_head, "positive")
        check(self.keep is None or bool(self.prompt), "keep", self.keep, "given with --prompt only")
        check(self.run.precision != "fp16", "precision", "fp16", "auto, fp32 or bf16 for sampling")


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """A command without options of its own."""
