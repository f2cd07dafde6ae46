"""`vqgpt cache import`: codes that LlamaGen or RAR extracted -> a token cache.

What such codes do not say of themselves is taken from flags, and is marked in the cache as unverified. Imports torch
only if a VQ-GAN is given.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgpt.data.table import DATASETS
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.codec import one_line
from vqgpt.options.definition import DATA, NEW_CACHE, REMAP, Command, Flags, argument, check, option
from vqgpt.options.paths import CachePath, cache_path, can_be_a_dataset
from vqgpt.progress import Progress, Report
from vqgpt.runtime.process import stop_on_signals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqgpt.tokens import Description
    from vqgpt.tokens.third_party import ThirdPartyCodes

IDENTITY = "What the codes do not tell"
DEFAULT_DATASET = "imagenet"
PIXELS_PER_TOKEN = 16  # along a side, of the VQ-GANs of both projects
CODES_OF_LLAMAGEN, CODES_OF_RAR = 16384, 1024
SECONDS_TO_LEAVE = 4.0  # after a signal
UNVERIFIED = ["dataset", "class_names", "source_sha256", "image_size", "preprocessing", "views", "grid"]
UNVERIFIED += ["codebook_size", "tokenizer_sha256", "precision"]


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
        1, "Lines of RAR's file in a row that are views of one image: 10 after its --ten_crop.", group=IDENTITY
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
class Tokenizer:
    """The VQ-GAN that is said to have made the codes: its identities, the newest first, and codebook (K, D) float32."""

    identities: tuple[str, ...]
    codebook: "NDArray[np.float32]"
    image_channels: int

    __repr__ = one_line


def run(config: CacheImportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Make a cache of codes that LlamaGen or RAR extracted."""
    from vqgpt.tokens.store import check_can_lie_at
    from vqgpt.tokens.third_party import read_llamagen, read_rar

    if not config.source.exists():
        raise MissingDataError(f"there is no {config.source}", "give a folder of LlamaGen, or a .jsonl file of RAR")
    if not flags.dry_run:
        check_can_lie_at(config.cache or cache_path(DEFAULT_DATASET))  # those of all datasets lie in one folder
    of_llamagen = config.source.is_dir()
    tokenizer = given_tokenizer(config, CODES_OF_LLAMAGEN if of_llamagen else CODES_OF_RAR)
    size = len(tokenizer.codebook)
    if not of_llamagen:
        found = read_rar(config.source, size, config.views_per_image, report)
    elif config.views_per_image == 1:
        found = read_llamagen(config.source, size, report)
    else:
        raise UsageError(
            "--views-per-image is for RAR's lines", "leave it out: LlamaGen's files contain the number of views"
        )
    description, rows = describe(config, found, tokenizer)
    path = config.cache or cache_path(description.dataset)
    if not flags.dry_run:
        write(path, description, tokenizer.codebook, found, rows, flags.overwrite, report)
    return {
        "cache": path,
        "dataset": description.dataset,
        "rows": len(found.codes),
        "views": description.views,
        "grid": description.grid,
        "codebook_size": description.codebook_size,
        "unverified": description.unverified,
    }


def given_tokenizer(config: CacheImportConfig, usual_size: int) -> Tokenizer:
    """What is known of the VQ-GAN: all, if its checkpoint is given; else how many codes it has, and zeros for them."""
    import numpy as np

    from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER

    path = config.checkpoint_vae
    if path is None:
        codebook = np.zeros((config.codebook_size or usual_size, 1), np.float32)
        return Tokenizer(identities=(UNKNOWN_TOKENIZER,), codebook=codebook, image_channels=3)
    import torch

    from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_identities

    model = load_vqgan(path, config.dataset or DEFAULT_DATASET, torch.device("cpu"), config.remap)
    if config.codebook_size not in (None, model.config.codebook_size):
        raise InputError(f"{path} has {model.config.codebook_size} codes", "leave --codebook-size out")
    return Tokenizer(
        identities=tokenizer_identities(model),
        codebook=model.quantize.vectors().detach().numpy(),
        image_channels=model.config.image_channels,
    )


def describe(
    config: CacheImportConfig, found: "ThirdPartyCodes", tokenizer: Tokenizer
) -> "tuple[Description, dict[str, NDArray[np.intp]]]":
    """What the cache will hold, and the rows found that are in each split. Raises InputError if flags do not fit."""
    import numpy as np

    from vqgpt.data.images import held_out_rows
    from vqgpt.tokens import Description, Split
    from vqgpt.tokens.arrays import code_dtype, default_shard_rows
    from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER
    from vqgpt.tokens.reader import identity_to_record

    dataset = config.dataset or found.dataset or DEFAULT_DATASET
    check(can_be_a_dataset(dataset), "dataset", dataset, "a shorter name: give --dataset")
    grid = grid_of(found.codes.shape[2], config.grid)
    side = config.size or found.image_size or PIXELS_PER_TOKEN * grid[0]
    if config.val_split is None:
        rows = {"train": np.arange(len(found.labels))}
    else:
        held_out = held_out_rows(found.labels, config.val_split)
        rows = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
    size = len(tokenizer.codebook)
    row_bytes = found.codes[0].size * np.dtype(code_dtype(size)).itemsize
    digest = hashlib.sha256(found.codes.data)
    digest.update(found.labels.data)
    unverified = [*UNVERIFIED, "codebook"] if UNKNOWN_TOKENIZER in tokenizer.identities else UNVERIFIED
    description = Description(
        origin="encoded",
        dataset=dataset,
        class_names=class_names(dataset, config.num_classes, found),
        label_kind="class",
        source_sha256=digest.hexdigest(),
        splits=tuple(Split(name=name, rows=len(numbers)) for name, numbers in rows.items()),
        limit=None,
        val_split=config.val_split,
        image_size=(side, side),
        image_channels=tokenizer.image_channels,
        preprocessing={
            "rule": f"not recorded: imported from {found.home}",
            "fit": "crop",
            "background": "white",
            "unverified": unverified,
        },
        skipped=(),
        views=found.views,
        grid=grid,
        codebook_size=size,
        code_dimension=tokenizer.codebook.shape[1],
        tokenizer_sha256=identity_to_record(config.cache or cache_path(dataset), tokenizer.identities),
        precision="fp32",
        sampling={},
        shard_rows=default_shard_rows(row_bytes),
    )
    return description, rows


def grid_of(tokens: int, asked: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a grid of so many tokens. Raises InputError if they do not make it up."""
    side = math.isqrt(tokens)
    grid = asked or (side, side)
    if grid[0] * grid[1] != tokens:
        raise InputError(
            f"{tokens} tokens do not make up a grid of {grid[0]} x {grid[1]}", "give its height and width with --grid"
        )
    return grid


def class_names(dataset: str, asked: int | None, found: "ThirdPartyCodes") -> tuple[str, ...]:
    """The names of the classes, or their numbers where no names are known. Raises InputError if a label is beyond."""
    known = DATASETS.get(dataset)
    highest = int(found.labels.max())
    count = asked or (known.num_classes if known else 0) or highest + 1
    if highest >= count:
        raise InputError(
            f"there is a label {highest}, and {dataset} has {count} classes", "give another --dataset or --num-classes"
        )
    return known.class_names if known and len(known.class_names) == count else tuple(map(str, range(count)))


def write(
    path: CachePath,
    description: "Description",
    codebook: "NDArray[np.float32]",
    found: "ThirdPartyCodes",
    rows: "dict[str, NDArray[np.intp]]",
    overwrite: bool,
    report: Report,
) -> None:
    """Write the cache, or continue it. Raises what the lock and `CacheWriter` raise, and InterruptedRun."""
    from vqgpt.runtime.process import library_versions
    from vqgpt.tokens import CacheWriter, lock_of

    saved = f"the shards that are done are saved in {path}"
    with lock_of(path, report=report) as lock, stop_on_signals(SECONDS_TO_LEAVE, saved) as stop:
        lock.take()
        versions = library_versions()
        writer = CacheWriter.create_or_resume(path, description, codebook, versions, overwrite, lock.check)
        missing = list(writer.missing())
        for done, shard in enumerate(missing, start=1):
            numbers = rows[shard.split][shard.start : shard.stop]
            lock.check()
            codes = found.codes[numbers].reshape(len(numbers), len(found.views), *description.grid)
            writer.write(shard, codes, found.labels[numbers], found.source_index[numbers])
            report(Progress(task="write", done=done, total=len(missing), unit="shards"))
            if stop:
                raise stop.as_error(saved)


COMMAND = Command(words="cache import", config=CacheImportConfig, run=run)
