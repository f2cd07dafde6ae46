"""The configuration of each command: which options it has, and where its files lie. Must not import torch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.config.cache_path import CachePath, beside
from vqgpt.config.datasets import DATASETS
from vqgpt.config.gpt import SAMPLING, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.config.options import argument, check, option
from vqgpt.config.preprocessing import IMAGES, PreprocessingOptions, parse_views
from vqgpt.config.vqgan import REMAP_HELP, VQGANOptions, VQGANTrainingOptions

DATA = "Data and files"
RUN = "Run"
CACHE_FOLDER = Path("cache")
RUNS_FOLDER = Path("runs")

DATASET_HELP = "Dataset: " + ", ".join(DATASETS) + "."
DATA_ROOT_HELP = "Folder of the downloaded images (default: vqgpt/data in the user's cache folder)"
NO_FOLDERS = (".png", ".npz", ".zarr", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")  # by their names
MOST_WORKERS = 16  # unless told otherwise
DEVICE_HELP = "auto, cpu, cuda, cuda:N or mps."
SIZE_HELP = "Image size in pixels (default: that of the VQ-GAN, where it is known, else the dataset's own)."
FP32_HELP = "fp32, or bf16, which is faster on a GPU and changes about 3 % of the codes."

ROWS_ON_A_SHEET = 100
SHOW_HELP = "Show the sheet on this terminal, where it can show images (kitty, iTerm2, sixel)."
N_HEAD_HELP = "For a GPT of GenerativeZoo: its attention heads, which the file does not tell."


def default_data_root() -> Path:
    """Where downloaded images are kept: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqgpt" / "data"


def vqgan_path(dataset: str) -> Path:
    """The VQ-GAN that this project trained for a dataset."""
    return RUNS_FOLDER / dataset / "vqgan.pt"


def gpt_path(dataset: str) -> Path:
    """The GPT that this project trained for a dataset."""
    return RUNS_FOLDER / dataset / "gpt.pt"


def cache_path(dataset: str) -> Path:
    """The token cache of a dataset."""
    return CACHE_FOLDER / f"{dataset}.zarr"


def samples_path(dataset: str) -> Path:
    """The token cache that `vqgpt sample` writes for a dataset."""
    return RUNS_FOLDER / dataset / "samples.zarr"


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
        return (self.data_root or default_data_root()).expanduser()

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
        return (self.data_root or default_data_root()).expanduser()


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
        "VQ-GAN checkpoint, ours or of taming-transformers, LlamaGen or GenerativeZoo "
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
        "For a GPT of GenerativeZoo: a token cache of the tokenizer that it was trained with (default: "
        "cache/DATASET.zarr, or the only one there is).",
        group=DATA,
    )
    n_head: int = option(8, N_HEAD_HELP, group=DATA)
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
        "(default: all, for a GPT that knows classes; with --prompt, the label of the row). "
        "Of a GPT that knows bits, those that are set, with + between.",
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
        check(self.n_head > 0, "n_head", self.n_head, "positive")
        check(self.keep is None or bool(self.prompt), "keep", self.keep, "given with --prompt only")
        check(self.run.precision != "fp16", "precision", "fp16", "auto, fp32 or bf16 for sampling")


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """`vqgpt render`."""

    cache: CachePath = argument("The token cache to render, encoded or sampled.")
    vqgan: EncoderOptions
    format: Literal["sheet", "png", "tree", "npz"] | None = option(
        None,
        "What to write. sheet: one .png with captions; png: a folder with a file per image; tree: such a folder per "
        "class; npz: an array arr_0 (N, H, W, 3) as the evaluator of ADM reads it (default: as --out ends).",
        group=DATA,
    )
    out: Path | None = option(
        None,
        "A .png file for a sheet, an .npz file, or a folder (default: the cache's name with .png, -images.npz, -png or "
        "-tree).",
        group=DATA,
    )
    split: str | None = option(None, "Split of the cache to render (default: the first).", group=DATA)
    rows: str | None = option(
        None, "Rows to render, START:STOP, from 0, either may be left out (default: all).", group=DATA
    )
    limit: int | None = option(
        None, f"At most this many rows; 0 for all (default: {ROWS_ON_A_SHEET} on a sheet, else all).", group=DATA
    )
    view: str | None = option(None, "Which view of each image to render, by its name (default: the first).", group=DATA)
    show: bool = option(False, SHOW_HELP, group=RUN)

    def __post_init__(self) -> None:
        check(self.limit is None or self.limit >= 0, "limit", self.limit, "0 or more")
        parts = re.fullmatch(r"(\d*):(\d*)", self.rows or ":")
        check(parts is not None, "rows", self.rows, "START:STOP, two whole numbers of which either may be left out")
        endings = {"sheet": (".png",), "npz": (".npz",)}.get(self.form)
        suffix = self.result.suffix
        named = suffix in endings if endings else suffix not in NO_FOLDERS
        check(named, "out", self.out, "a name that ends in .png for a sheet, in .npz for that, and a folder otherwise")
        check(not self.show or self.form == "sheet", "format", self.form, "sheet, for --show")

    @property
    def form(self) -> str:
        """What to write: `format`, or what the name of the result says."""
        if self.format is not None:
            return self.format
        suffix = ".png" if self.out is None else self.out.suffix
        return {".png": "sheet", ".npz": "npz"}.get(suffix, "png")

    @property
    def result(self) -> Path:
        """The picture, array file or folder to write."""
        endings = {"sheet": ".png", "npz": "-images.npz", "png": "-png", "tree": "-tree"}
        return self.out or beside(self.cache, self.cache.stem + endings[self.form])

    def chosen_rows(self, total: int) -> range:
        """Which of `total` rows to render, but for what a sheet can show."""
        start, _, stop = (self.rows or ":").partition(":")
        chosen = range(total)[int(start or 0) : int(stop or total)]
        return chosen[: self.limit or None]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`vqgpt score`."""

    cache: CachePath = argument("The token cache to score, encoded or sampled.")
    checkpoint_gpt: Path | None = option(
        None, "GPT checkpoint, ours or of GenerativeZoo (default: runs/DATASET/gpt.pt).", group=DATA
    )
    n_head: int = option(8, N_HEAD_HELP, group=DATA)
    split: str | None = option(None, "Score only this split (default: all).", group=DATA)
    against: CachePath | None = option(
        None,
        "A token cache: find for each row the nearest one of its split train, in tokens that differ. 0 is a copy.",
        group=DATA,
    )
    out: Path | None = option(
        None, "The .csv or .npz file to write, a line per row (default: the cache's name with -scores.csv).", group=DATA
    )
    show_rows: int = option(5, "How many of the least and of the most likely rows to show.", group=DATA)
    device: str = option("auto", DEVICE_HELP, group=RUN)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "auto takes bf16 on a CUDA device that has it, else fp32.", group=RUN
    )

    def __post_init__(self) -> None:
        check(self.n_head > 0, "n_head", self.n_head, "positive")
        check(self.show_rows >= 0, "show_rows", self.show_rows, "0 or more")
        named = self.out is None or self.out.suffix in (".csv", ".npz")
        check(named, "out", self.out, "a file name that ends in .csv or .npz")

    @property
    def result(self) -> Path:
        """The file to write."""
        return self.out or beside(self.cache, f"{self.cache.stem}-scores.csv")


@dataclass(frozen=True, kw_only=True)
class ModelExportConfig:
    """`vqgpt export`."""

    out: Path = argument("The folder to write, or the file NAME.safetensors.")
    to: Literal["transformers", "safetensors"] = option(
        "transformers",
        "What to write. transformers: a folder that Hugging Face transformers loads, of a GPT with --arch gpt2; "
        "safetensors: one file of any GPT or VQ-GAN, which vqgpt reads wherever it reads a checkpoint.",
        group=DATA,
    )
    dataset: str | None = option(None, "Export runs/DATASET/gpt.pt (default: the only GPT there is).", group=DATA)
    checkpoint_gpt: Path | None = option(None, "The GPT to export, trained by vqgpt.", group=DATA)
    checkpoint_vae: Path | None = option(
        None, "Export this VQ-GAN instead, ours or someone else's; --to safetensors only.", group=DATA
    )

    def __post_init__(self) -> None:
        is_file = self.to == "safetensors"
        named = (self.out.suffix == ".safetensors") == is_file
        check(named, "out", self.out, "a name that ends in .safetensors for --to safetensors, and a folder otherwise")
        check(
            self.checkpoint_vae is None or is_file,
            "to",
            self.to,
            "safetensors for a VQ-GAN: transformers has no such model",
        )
        both = self.checkpoint_vae is not None and (self.checkpoint_gpt or self.dataset) is not None
        check(not both, "checkpoint_vae", self.checkpoint_vae, "given without --checkpoint-gpt and --dataset")


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """A command without options of its own."""
