"""The configuration of each `vqgpt cache` command, as `commands` has that of the others. Must not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.options.definition import argument, check, option
from vqgpt.options.paths import CachePath, beside, can_be_a_dataset
from vqgpt.options.shared import (
    CACHE,
    CHECKPOINT_GPT,
    CHECKPOINT_VAE,
    DATA,
    DATA_ROOT,
    DEVICE,
    IMAGES_PER_PASS,
    NEW_CACHE,
    ONLY_SPLIT,
    REMAP,
    SEED,
    SPLIT_OF_ROWS,
    check_seed,
    out_option,
)

REPAIR = "Repair"
IDENTITY = "What the codes do not tell"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where that lies which made an encoded cache: the cache knows what it was, not where it is."""

    data_root: Path | None = DATA_ROOT
    checkpoint_vae: Path | None = CHECKPOINT_VAE
    remap: Path | None = REMAP
    device: str = DEVICE


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """`vqgpt cache verify`."""

    cache: CachePath = CACHE
    repair: bool = option(False, "Make what is damaged or missing again, and nothing else.", group=REPAIR)
    batch_size: int = IMAGES_PER_PASS
    checkpoint_gpt: Path | None = CHECKPOINT_GPT
    sources: SourceOptions

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "batch_size", self.batch_size, "positive")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """`vqgpt cache preview`."""

    cache: CachePath = CACHE
    split: str | None = SPLIT_OF_ROWS
    num_images: int = option(16, "Rows to decode, chosen at random.", group=DATA)
    out: Path | None = out_option("The .png file to write", "the cache's name with -preview.png")
    seed: int = SEED
    sources: SourceOptions

    def __post_init__(self) -> None:
        check(self.num_images > 0, "num_images", self.num_images, "positive")
        check_seed(self.seed)
        check(self.out is None or self.out.suffix == ".png", "out", self.out, "a file name that ends in .png")

    @property
    def result(self) -> Path:
        """The picture to write."""
        return self.out or beside(self.cache, f"{self.cache.stem}-preview.png")


@dataclass(frozen=True, kw_only=True)
class CacheImportConfig:
    """`vqgpt cache import`."""

    source: Path = argument("A folder NAME_codes of LlamaGen, with NAME_labels beside it, or a .jsonl file of RAR.")
    cache: CachePath | None = NEW_CACHE
    val_split: float | None = option(
        None, "Make this share of the images, of each class, split val, on which `vqgpt train` is judged.", group=DATA
    )
    checkpoint_vae: Path | None = option(
        None, "The VQ-GAN that made the codes; without it, nothing can be decoded.", group=IDENTITY
    )
    remap: Path | None = REMAP
    codebook_size: int | None = option(
        None, "Codes of the VQ-GAN (default: its own, else 16384 for LlamaGen, 1024 for RAR).", group=IDENTITY
    )
    dataset: str | None = option(
        None, "Dataset of the images (default: that in the folder's name, else imagenet).", group=IDENTITY
    )
    size: int | None = option(
        None,
        "Image size in pixels (default: that in the folder's name, else 16 times the height of the grid).",
        group=IDENTITY,
    )
    grid: tuple[int, int] | None = option(
        None, "Height and width of the grid of tokens (default: it is square).", group=IDENTITY
    )
    num_classes: int | None = option(
        None, "Number of classes (default: that of the dataset, else as many as occur).", group=IDENTITY
    )
    views_per_image: int = option(
        1,
        "Lines of RAR's file in a row that are views of one image: 10 after its --ten_crop.",
        group=IDENTITY,
    )

    def __post_init__(self) -> None:
        check(self.cache is None or self.cache.suffix == ".zarr", "cache", self.cache, "a path that ends in .zarr")
        check(self.val_split is None or 0 < self.val_split < 1, "val_split", self.val_split, "between 0 and 1")
        for name in ("codebook_size", "size", "num_classes"):
            value = getattr(self, name)
            check(value is None or 0 < value <= 2**16, name, value, "between 1 and 65536")
        check(self.grid is None or min(self.grid) > 0, "grid", self.grid, "two positive numbers")
        check(self.views_per_image in (1, 10), "views_per_image", self.views_per_image, "1 or 10")
        named = self.dataset is None or can_be_a_dataset(self.dataset)
        check(named, "dataset", self.dataset, "a name of letters, digits, - and _")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`vqgpt cache export`."""

    cache: CachePath = CACHE
    format: Literal["npy", "npz", "bin", "webdataset"] = option(
        "npy",
        "What to write. npy: a file per array; npz: all arrays in one file; bin: raw tokens as nanoGPT reads them; "
        "webdataset: tar files with a sample per image.",
        group=DATA,
    )
    split: str | None = ONLY_SPLIT
    out: Path | None = out_option("The folder to write, or the .npz file", "the cache's name with -FORMAT, or .npz")

    def __post_init__(self) -> None:
        named = self.out is None or (self.out.suffix == ".npz") == (self.format == "npz")
        check(named, "out", self.out, "a file name that ends in .npz for --format npz, and a folder for the others")

    @property
    def result(self) -> Path:
        """The file or folder to write."""
        if self.format == "npz":
            return self.out or beside(self.cache, f"{self.cache.stem}.npz")
        return self.out or beside(self.cache, f"{self.cache.stem}-{self.format}")
