"""`vqgpt cache import`: codes that LlamaGen or RAR extracted -> a token cache.

What such codes do not tell of themselves is taken from flags, and is marked in the cache as unverified. Imports torch
only if a VQ-GAN is given.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.api.cache_options import CacheImportConfig
from vqgpt.data.images import held_out_rows
from vqgpt.data.table import DATASETS
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.codec import one_line
from vqgpt.options.definition import check
from vqgpt.options.paths import CachePath, cache_path, can_be_a_dataset
from vqgpt.progress import Progress, Report
from vqgpt.runtime.interrupt import stop_on_signals
from vqgpt.runtime.libraries import library_versions
from vqgpt.tokens import CacheWriter, Description, Split, lock_of
from vqgpt.tokens.layout import code_dtype, default_shard_rows
from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER
from vqgpt.tokens.store import check_can_lie_at
from vqgpt.tokens.third_party import ForeignCodes, read_llamagen, read_rar

DEFAULT_DATASET = "imagenet"
PIXELS_PER_TOKEN = 16  # along a side, of the VQ-GANs of both projects
SECONDS_TO_LEAVE = 4.0  # after a signal
UNVERIFIED = ["dataset", "class_names", "source_sha256", "image_size", "preprocessing", "views", "grid"]
UNVERIFIED += ["codebook_size", "tokenizer_sha256", "precision"]


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The VQ-GAN that is said to have made the codes: its digest, and codebook (K, D) float32."""

    sha256: str
    codebook: NDArray[np.float32]
    image_channels: int

    __repr__ = one_line


def run(config: CacheImportConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Import as configured; the result names the cache. Raises MissingDataError or InputError for a bad source."""
    if not config.source.exists():
        raise MissingDataError(f"there is no {config.source}", "give a folder of LlamaGen, or a .jsonl file of RAR")
    if not dry_run:
        check_can_lie_at(config.cache or cache_path(DEFAULT_DATASET))  # those of all datasets lie in one folder
    tokenizer = given_tokenizer(config, 16384 if config.source.is_dir() else 1024)
    size = len(tokenizer.codebook)
    if config.source.is_dir():
        if config.views_per_image != 1:
            raise UsageError(
                "--views-per-image is for RAR's lines", "leave it out: LlamaGen's files contain the number of views"
            )
        found = read_llamagen(config.source, size, report)
    else:
        found = read_rar(config.source, size, config.views_per_image, report)
    description, rows = describe(config, found, tokenizer)
    path = config.cache or cache_path(description.dataset)
    plan = {
        "cache": path,
        "dataset": description.dataset,
        "rows": len(found.codes),
        "views": description.views,
        "grid": description.grid,
        "codebook_size": description.codebook_size,
        "unverified": description.unverified,
    }
    if dry_run:
        return plan
    write(path, description, tokenizer.codebook, found, rows, overwrite, report)
    return plan


def given_tokenizer(config: CacheImportConfig, usual_size: int) -> Tokenizer:
    """What is known of the VQ-GAN: all, if its checkpoint is given; else how many codes it has, and zeros for them."""
    if config.checkpoint_vae is None:
        codebook = np.zeros((config.codebook_size or usual_size, 1), np.float32)
        return Tokenizer(sha256=UNKNOWN_TOKENIZER, codebook=codebook, image_channels=3)
    import torch

    from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_sha256

    path = config.checkpoint_vae
    model = load_vqgan(path, config.dataset or DEFAULT_DATASET, torch.device("cpu"), config.remap)
    if config.codebook_size not in (None, model.config.codebook_size):
        raise InputError(f"{path} has {model.config.codebook_size} codes", "leave --codebook-size out")
    return Tokenizer(
        sha256=tokenizer_sha256(model),
        codebook=model.quantize.vectors().detach().numpy(),
        image_channels=model.config.image_channels,
    )


def describe(
    config: CacheImportConfig, found: ForeignCodes, tokenizer: Tokenizer
) -> tuple[Description, dict[str, NDArray[np.intp]]]:
    """What the cache will hold, and the rows found that are in each split. Raises InputError if flags do not fit."""
    dataset = config.dataset or found.dataset or DEFAULT_DATASET
    check(can_be_a_dataset(dataset), "dataset", dataset, "a shorter name: give --dataset")
    grid = grid_of(found.codes.shape[2], config.grid)
    side = config.size or found.image_size or PIXELS_PER_TOKEN * grid[0]
    held_out = np.zeros(len(found.labels), bool)
    if config.val_split is not None:
        held_out = held_out_rows(found.labels, config.val_split)
    rows = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
    if config.val_split is None:
        del rows["val"]
    size = len(tokenizer.codebook)
    row_bytes = found.codes[0].size * np.dtype(code_dtype(size)).itemsize
    digest = hashlib.sha256(found.codes.data)
    digest.update(found.labels.data)
    unverified = [*UNVERIFIED, "codebook"] if tokenizer.sha256 == UNKNOWN_TOKENIZER else UNVERIFIED
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
        tokenizer_sha256=tokenizer.sha256,
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


def class_names(dataset: str, asked: int | None, found: ForeignCodes) -> tuple[str, ...]:
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
    description: Description,
    codebook: NDArray[np.float32],
    found: ForeignCodes,
    rows: dict[str, NDArray[np.intp]],
    overwrite: bool,
    report: Report,
) -> None:
    """Write the cache, or continue it. Raises what the lock and `CacheWriter` raise, and InterruptedRun."""
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
