"""The configuration of the commands that show, judge and hand on what was made: render, score, export.

Must not import torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgpt.api.options import EncoderOptions
from vqgpt.options.definition import argument, check, option
from vqgpt.options.paths import CachePath, beside
from vqgpt.options.shared import (
    CACHE,
    CHECKPOINT_GPT,
    DATA,
    DATASET_OF_GPT,
    DEVICE,
    N_HEAD,
    ONLY_SPLIT,
    PRECISION,
    SHOW,
    SPLIT_OF_ROWS,
    out_option,
)

ROWS_ON_A_SHEET = 100
NO_FOLDERS = (".png", ".npz", ".zarr", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")  # by their names


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
        "A .png file for a sheet, an .npz file, or a folder",
        "the cache's name with .png, -images.npz, -png or -tree",
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

    cache: CachePath = CACHE
    checkpoint_gpt: Path | None = CHECKPOINT_GPT
    n_head: int | None = N_HEAD
    split: str | None = ONLY_SPLIT
    against: CachePath | None = option(
        None,
        "A token cache: find for each row the nearest one of its split train, in tokens that differ. 0 is a copy.",
        group=DATA,
    )
    out: Path | None = out_option("The .csv or .npz file to write, a line per row", "the cache's name with -scores.csv")
    show_rows: int = option(5, "How many of the least and of the most likely rows to show.", group=DATA)
    device: str = DEVICE
    precision: Literal["auto", "fp32", "bf16"] = PRECISION

    def __post_init__(self) -> None:
        check(self.n_head is None or self.n_head > 0, "n_head", self.n_head, "positive")
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
    dataset: str | None = DATASET_OF_GPT
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
