"""What the verbs of the pipeline take: the options of training, tokenizing and sampling. Must not import torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.data.options import IMAGES, ImageOptions, parse_augment, parse_views
from vqgpt.errors import UsageError
from vqgpt.gpt.options import SAMPLING, GPTOptions, GPTTrainingOptions, SamplingOptions
from vqgpt.options.definition import (
    CACHE,
    CHECKPOINT_GPT,
    CHECKPOINT_VAE,
    DATA,
    DATA_ROOT,
    DATASET_OF_GPT,
    DEVICE,
    IMAGES_PER_PASS,
    N_HEAD,
    NEW_CACHE,
    REMAP,
    RUN,
    SHOW,
    SIZE,
    SPLIT_OF_ROWS,
    THIRD_PARTIES,
    TRAINING,
    LoggingOptions,
    RunOptions,
    check,
    check_positive,
    flat_values,
    names_given,
    option,
    out_option,
)
from vqgpt.options.paths import RUNS_FOLDER, CachePath, beside, cache_path, vqgan_path
from vqgpt.vqgan.options import VQGANOptions, VQGANTrainingOptions

StageName = Literal[  # in the order they run
    "vqgan-train", "vqgan-reconstruct", "tokenize", "train", "sample", "evaluate-samples", "report"
]
ROWS_ON_A_SHEET = 100
SECONDS_IN = {"s": 1, "m": 60, "h": 3600}
OF_ENCODER_OR_CODEBOOK = ("codebook", "codebook_decay", "revive_below", "codebook_weight", "remap", "normalise_latents")
NO_FOLDERS = (".png", ".npz", ".zarr", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")  # by their names


@dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig:
    """`vqgpt vqgan train`."""

    images: ImageOptions
    size: int | None = SIZE
    checkpoint_vae: Path | None = option(
        None,
        f"VQ-GAN to start from, ours or of {THIRD_PARTIES}: weights, codebook and architecture are its own.",
        group=DATA,
    )
    limit: int | None = option(
        None, "Train on this many of the training images, evenly spaced (default: all).", group=DATA
    )
    augment: tuple[str, ...] = option(
        (),
        "Show training images in random views, other ones in each epoch: crop (a window of 0.8 to 1 of the sides, "
        "anywhere), hflip (mirrored or not), with a comma between (default: none). Mirrored digits and letters are "
        "others. Crops are cut out of the files, so that images are read while training, as with --stream.",
        group=IMAGES,
    )
    stream: bool = option(
        False,
        "Read the images while training, instead of loading them first; those larger than memory always are. "
        "The result is the same.",
        group=TRAINING,
    )
    out: Path | None = out_option("The checkpoint to write", "runs/DATASET/vqgan.pt")
    model: VQGANOptions
    training: VQGANTrainingOptions
    run: RunOptions
    logging: LoggingOptions
    given: frozenset[str] = names_given()

    def __post_init__(self) -> None:
        check_positive(self, "size", "limit")
        check(self.run.precision != "fp16", "precision", "fp16", "auto, fp32 or bf16 for a VQ-GAN")
        parse_augment(self.augment)
        asked = "normalise_latents" in self.given and self.training.normalise_latents
        check(not (asked and self.model.l2_codes), "normalise_latents", True, "left out with --l2-codes")
        decoder, values = self.training.train == "decoder", flat_values(self)
        if decoder and self.checkpoint_vae is None:
            raise UsageError("--train decoder needs a VQ-GAN that has one", "name it with --checkpoint-vae")
        for name in OF_ENCODER_OR_CODEBOOK:
            free = not decoder or name not in self.given
            check(free, name, values[name], "left out with --train decoder, which leaves encoder and codebook alone")

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
        "fp32", "fp32, or bf16, which is faster on a GPU and changes about 3 % of the codes, or some pixels.", group=RUN
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
        check_positive(self, "size", "num_images")

    @property
    def result(self) -> Path:
        """The picture to write."""
        return self.out or RUNS_FOLDER / self.images.dataset / "reconstructions.png"


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """`vqgpt tokenize`."""

    images: ImageOptions
    size: int | None = SIZE
    cache: CachePath | None = NEW_CACHE
    views: tuple[str, ...] = option(
        (),
        "Views of each image to encode: identity, hflip, rot90, rot180, rot270, transpose, five-crop, ten-crop, with "
        "commas between (default: identity, and hflip where a mirrored image means the same).",
        group=IMAGES,
    )
    limit: int | None = option(
        None, "Take this many images of each split, evenly spaced, to try things out (default: all).", group=DATA
    )
    vqgan: EncoderOptions
    batch_size: int = IMAGES_PER_PASS

    def __post_init__(self) -> None:
        check_positive(self, "size", "batch_size", "limit")
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

    def __post_init__(self) -> None:
        balance, has_classes = self.training.class_balance, self.model.condition == "class"
        check(balance == 0 or has_classes, "class_balance", balance, "given with --condition class only")


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
        check_positive(self, "n_head")
        check(self.keep is None or bool(self.prompt), "keep", self.keep, "given with --prompt only")
        check(self.run.precision != "fp16", "precision", "fp16", "auto, fp32 or bf16 for sampling")


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """`vqgpt render`."""

    cache: CachePath = CACHE
    vqgan: EncoderOptions
    format: Literal["sheet", "png", "tree", "npz"] | None = option(
        None,
        "What to write. sheet: one .png with captions; png: a folder with a file per image; tree: such a folder per "
        "class; npz: an array arr_0 (N, H, W, 3) as the evaluator of ADM reads it (default: as --out ends).",
        group=DATA,
    )
    out: Path | None = out_option(
        "A .png file for a sheet, an .npz file, or a folder", "the cache's name with .png, -images.npz, -png or -tree"
    )
    split: str | None = SPLIT_OF_ROWS
    rows: str | None = option(
        None, "Rows to render, START:STOP, from 0, either may be left out (default: all).", group=DATA
    )
    limit: int | None = option(
        None, f"At most this many rows; 0 for all (default: {ROWS_ON_A_SHEET} on a sheet, else all).", group=DATA
    )
    view: str | None = option(None, "Which view of each image to render, by its name (default: the first).", group=DATA)
    show: bool = SHOW

    def __post_init__(self) -> None:
        check(self.limit is None or self.limit >= 0, "limit", self.limit, "0 or more")
        parts = re.fullmatch(r"(\d*):(\d*)", self.rows or ":")
        check(parts is not None, "rows", self.rows, "START:STOP, two whole numbers of which either may be left out")
        suffix, ending = self.result.suffix, {"sheet": ".png", "npz": ".npz"}.get(self.form)
        named = suffix == ending if ending else suffix not in NO_FOLDERS
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
        return range(total)[int(start or 0) : int(stop or total)][: self.limit or None]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where that lies which made an encoded cache: the cache knows what it was, not where it is."""

    data_root: Path | None = DATA_ROOT
    checkpoint_vae: Path | None = CHECKPOINT_VAE
    remap: Path | None = REMAP
    device: str = DEVICE


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """`vqgpt run`. What is given here wins over the recipe, in every stage."""

    dataset: str | None = option(
        None,
        "The dataset whose pipeline to run (default: the recipe's). Without --recipe, its own recipe is taken, or one "
        "is chosen for it.",
        group=DATA,
    )
    data_root: Path | None = DATA_ROOT
    device: str = DEVICE
    budget: str | None = option(
        None,
        "The time that the whole run may take here: 90s, 30m, 2h. A few steps of each stage are timed, and epochs and "
        "widths of the recipe scaled to it; the plan is saved as runs/DATASET/budget-TIME.toml.",
        group=RUN,
    )
    until: StageName = option("report", "The last stage to run.", group=RUN)
    evaluate: bool = option(
        True, "Evaluate the samples for a short time, in about a tenth of the time of the stages.", group=RUN
    )

    def __post_init__(self) -> None:
        budget = self.budget_seconds
        check(budget is None or budget > 0, "budget", self.budget, "a time such as 90s, 30m or 1.5h")

    @property
    def budget_seconds(self) -> float | None:
        """The time that the run may take: None for as long as it takes, 0 if what was given is no time."""
        if self.budget is None:
            return None
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smh])", self.budget)
        return float(found[1]) * SECONDS_IN[found[2]] if found else 0.0
