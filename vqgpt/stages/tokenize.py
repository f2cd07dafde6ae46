"""Stage one, `vqgpt tokenize`: images of a dataset -> a token cache, through the VQ-GAN's encoder, once."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.config.commands import TokenizeConfig
from vqgpt.config.datasets import Dataset, find_dataset
from vqgpt.config.vqgan import VQGANConfig
from vqgpt.data.images import PREPROCESSING, ImageDataset, load_images
from vqgpt.distributed import main_first, process_group
from vqgpt.pixels import images_per_pass, to_unit_range
from vqgpt.progress import Notice, Report
from vqgpt.runtime import autocast, select_device
from vqgpt.stages.shards import fill_cache
from vqgpt.tokens import Description, ShardRows, Split
from vqgpt.tokens.layout import code_dtype, default_shard_rows
from vqgpt.vqgan.checkpoint import load_vqgan_for, tokenizer_sha256
from vqgpt.vqgan.model import VQGAN


def run(config: TokenizeConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Encode every split; the result names the cache and its rows."""
    with process_group(select_device(config.vqgan.device)) as device:
        return _run(config, overwrite, dry_run, report, device)


def _run(
    config: TokenizeConfig, overwrite: bool, dry_run: bool, report: Report, device: torch.device
) -> dict[str, Any]:
    dataset = find_dataset(config.images.dataset)
    model = load_vqgan_for(dataset, config.vqgan.path(dataset.name), device, config.vqgan.remap)
    size = image_size(config.size, model.config, dataset, report)
    grid = model.config.grid(size)
    plan: dict[str, Any] = {
        "cache": config.result,
        "grid": grid,
        "codebook_size": model.config.codebook_size,
        "bytes_per_image": _row_bytes(model.config, grid),
    }
    if dry_run and dataset.download_megabytes:
        return {**plan, "rows": "known once the images are here", **speed(model, size, config, device)}
    with main_first():  # which downloads what is missing
        images = load_images(dataset, config.images.root, size, report)
    description = describe(dataset, images, model, size, config.vqgan.precision, config.limit)
    rows = sum(split.rows for split in description.splits)
    if dry_run:
        figures = speed(model, size, config, device)
        seconds = rows / figures["images_per_second"]
        return {**plan, "rows": rows, "bytes": rows * plan["bytes_per_image"], **figures, "seconds": seconds}
    codebook = model.quantize.vectors().detach().cpu().numpy()

    def codes_of(shard: ShardRows) -> Iterator[NDArray[np.int64]]:
        for batch in images.splits[shard.split].images[shard.start : shard.stop].split(config.batch_size):
            yield encode_batch(model, batch, config.vqgan.precision, device)[:, None]

    def labels_of(shard: ShardRows) -> tuple[NDArray[Any], NDArray[np.int64]]:
        split = images.splits[shard.split]
        return split.labels[shard.start : shard.stop], split.source_index[shard.start : shard.stop]

    manifest = fill_cache(config.result, description, codebook, overwrite, "tokenize", codes_of, labels_of, report)
    return {**plan, "rows": rows, "digest": manifest.digest}


def image_size(asked: int | None, config: VQGANConfig, dataset: Dataset, report: Report) -> int:
    """The image side to work at: the one asked for, else the VQ-GAN's, else the dataset's, which a notice tells."""
    size = asked or config.size
    if size is not None:
        return size
    size = dataset.default_size
    report(Notice(text=f"the VQ-GAN does not say at which size it was trained; using {size}, that of {dataset.name}"))
    return size


def describe(
    dataset: Dataset, images: ImageDataset, model: VQGAN, size: int, precision: str, limit: int | None
) -> Description:
    """What the cache will hold."""
    grid = model.config.grid(size)
    return Description(
        origin="encoded",
        dataset=dataset.name,
        class_names=images.class_names,
        label_kind=dataset.label_kind,
        source_sha256=images.sha256,
        splits=tuple(Split(name=name, rows=len(split.images[:limit])) for name, split in images.splits.items()),
        limit=limit,
        image_size=(size, size),
        image_channels=dataset.channels,
        preprocessing=PREPROCESSING,
        skipped=(),
        views=("identity",),
        grid=grid,
        codebook_size=model.config.codebook_size,
        code_dimension=model.config.embed_dim,
        tokenizer_sha256=tokenizer_sha256(model),
        precision=precision,
        sampling={},
        shard_rows=default_shard_rows(_row_bytes(model.config, grid)),
    )


def speed(model: VQGAN, size: int, config: TokenizeConfig, device: torch.device) -> dict[str, float]:
    """How many images per second the encoder makes here, from its second pass over a few made-up ones."""
    count = min(config.batch_size, images_per_pass(size, size))
    images = torch.zeros(count, model.config.image_channels, size, size, dtype=torch.uint8)
    encode_batch(model, images, config.vqgan.precision, device)
    start = time.perf_counter()
    encode_batch(model, images, config.vqgan.precision, device)
    return {"images_per_second": count / (time.perf_counter() - start)}


def _row_bytes(config: VQGANConfig, grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] * np.dtype(code_dtype(config.codebook_size)).itemsize


@torch.no_grad()
def encode_batch(model: VQGAN, images: Tensor, precision: str, device: torch.device) -> NDArray[np.int64]:
    """Images (B, C, H, W) uint8 -> codes (B, h, w) int64."""
    with autocast(device, precision):
        return model.encode(to_unit_range(images.to(device))).cpu().numpy()
