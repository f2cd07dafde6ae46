"""What the verbs of the pipeline take: the options of training, tokenizing and sampling. Must not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.data.options import ImageOptions
from vqgpt.data.preprocessing import IMAGES, parse_views
from vqgpt.gpt.options import SAMPLING, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.options.definition import argument, check, option
from vqgpt.options.paths import RUNS_FOLDER, CachePath, cache_path, vqgan_path
from vqgpt.options.shared import (
    CHECKPOINT_GPT,
    CHECKPOINT_VAE,
    DATA,
    DATASET_OF_GPT,
    DEVICE,
    IMAGES_PER_PASS,
    N_HEAD,
    NEW_CACHE,
    REMAP,
    RUN,
    SHOW,
    SIZE,
    LoggingOptions,
    RunOptions,
    out_option,
)
from vqgpt.vqgan.options import VQGANOptions, VQGANTrainingOptions


@dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig:
    """`vqgpt vqgan train`."""

    images: ImageOptions
    size: int | None = option(None, "Image size in pixels (default: the dataset's own).", group=DATA)
    limit: int | None = option(
        None, "Train on this many of the training images, evenly spaced; all are held in memory.", group=DATA
    )
    out: Path | None = out_option("The checkpoint to write", "runs/DATASET/vqgan.pt")
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

    checkpoint_vae: Path | None = CHECKPOINT_VAE
    remap: Path | None = REMAP
    device: str = DEVICE
    precision: Literal["fp32", "bf16"] = option(
        "fp32",
        "fp32, or bf16, which is faster on a GPU and changes about 3 % of the codes, or some pixels.",
        group=RUN,
    )

    def path(self, dataset: str) -> Path:
        """The checkpoint: the one that was given, else the one of the dataset."""
        return self.checkpoint_vae or vqgan_path(dataset)


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """`vqgpt vqgan reconstruct`."""

    images: ImageOptions
    size: int | None = SIZE
    vqgan: EncoderOptions
    num_images: int = option(16, "Held-out images to show.", group=DATA)
    out: Path | None = out_option("The picture to write", "runs/DATASET/reconstructions.png")

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
    remap: Path | None = REMAP
    dataset: str | None = option(None, "Make it the VQ-GAN of this dataset: runs/DATASET/vqgan.pt.", group=DATA)
    out: Path | None = out_option("The checkpoint to write", "runs/NAME OF FILE/vqgan.pt")

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 0, "size", self.size, "positive")

    @property
    def result(self) -> Path:
        """The checkpoint to write."""
        return self.out or vqgan_path(self.dataset or self.file.stem)


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """`vqgpt tokenize`."""

    images: ImageOptions
    size: int | None = SIZE
    cache: CachePath | None = NEW_CACHE
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
    batch_size: int = IMAGES_PER_PASS

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
    out: Path | None = out_option("The checkpoint to write", "runs/DATASET/gpt.pt")
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

    dataset: str | None = DATASET_OF_GPT
    checkpoint_gpt: Path | None = CHECKPOINT_GPT
    cache: CachePath | None = option(
        None,
        "The token cache of --prompt cache:SPLIT/ROW (default: cache/DATASET.zarr); for a GPT of GenerativeZoo, one of "
        "the tokenizer that it was trained with (default: that, or the only one there is).",
        group=DATA,
    )
    n_head: int | None = N_HEAD
    checkpoint_vae: Path | None = CHECKPOINT_VAE
    out: CachePath | None = out_option(
        "The token cache to write, with its picture beside it", "runs/DATASET/samples.zarr"
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
    show: bool = SHOW

    def __post_init__(self) -> None:
        check(not (self.show and self.tokens_only), "show", self.show, "left out with --tokens-only")
        check(self.out is None or self.out.suffix == ".zarr", "out", self.out, "a path that ends in .zarr")
        check(self.n_head is None or self.n_head > 0, "n_head", self.n_head, "positive")
        check(self.keep is None or bool(self.prompt), "keep", self.keep, "given with --prompt only")
        check(self.run.precision != "fp16", "precision", "fp16", "auto, fp32 or bf16 for sampling")
