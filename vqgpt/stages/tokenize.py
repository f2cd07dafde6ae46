"""Stage one, `vqgpt tokenize`: images of a dataset -> a token cache, through the VQ-GAN's encoder, once."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.config.commands import TokenizeConfig
from vqgpt.config.datasets import Dataset, find_dataset
from vqgpt.config.vqgan import VQGANConfig
from vqgpt.data.images import PREPROCESSING, ImageDataset, load_images, to_unit_range
from vqgpt.errors import InputError
from vqgpt.interrupt import StopRequest, stop_on_signals
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime import autocast, forbid_tf32, select_device
from vqgpt.tokens import CacheWriter, Description, Split
from vqgpt.tokens.layout import code_dtype, default_shard_rows
from vqgpt.versions import library_versions
from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_sha256
from vqgpt.vqgan.model import VQGAN


def run(config: TokenizeConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Encode every split; the result names the cache, its rows, and the codes that were used by this run."""
    device = select_device(config.vqgan.device)
    dataset = find_dataset(config.images.dataset)
    checkpoint = config.vqgan.path(dataset.name)
    model = load_vqgan(checkpoint, dataset.name, device)
    channels = model.config.image_channels
    if channels != dataset.channels:
        raise InputError(
            f"{checkpoint} encodes images of {channels} channels, {dataset.name} has {dataset.channels}",
            "give a VQ-GAN that was trained on such images, with --checkpoint-vae",
        )
    grid_config = VQGANConfig(
        options=model.config.options, image_channels=dataset.channels, size=config.size or model.config.size
    )
    images = load_images(dataset, config.images.root, grid_config.size, report)
    description = describe(dataset, images, model, grid_config, config.vqgan.precision)
    rows = sum(split.rows for split in description.splits)
    code_bytes = rows * int(np.prod(description.grid)) * np.dtype(code_dtype(description.codebook_size)).itemsize
    plan = {
        "cache": config.result,
        "rows": rows,
        "grid": description.grid,
        "codebook_size": description.codebook_size,
        "code_bytes": code_bytes,
    }
    if dry_run:
        return plan
    codebook = model.quantize.embedding.weight.detach().cpu().numpy()
    writer = CacheWriter.create_or_resume(config.result, description, codebook, library_versions(), overwrite)
    forbid_tf32()
    with stop_on_signals() as stop:
        _write_missing_shards(writer, images, model, config, device, report, stop)
    return {**plan, "digest": writer.manifest.digest}


def describe(
    dataset: Dataset, images: ImageDataset, model: VQGAN, grid_config: VQGANConfig, precision: str
) -> Description:
    """What the cache will hold."""
    options = model.config.options
    row_bytes = int(np.prod(grid_config.grid)) * np.dtype(code_dtype(options.n_embed)).itemsize
    return Description(
        origin="encoded",
        dataset=dataset.name,
        class_names=images.class_names,
        label_kind=dataset.label_kind,
        source_sha256=images.sha256,
        splits=tuple(Split(name=name, rows=len(split.images)) for name, split in images.splits.items()),
        image_size=(grid_config.size, grid_config.size),
        image_channels=dataset.channels,
        preprocessing=PREPROCESSING,
        views=("identity",),
        grid=grid_config.grid,
        codebook_size=options.n_embed,
        code_dimension=options.embed_dim,
        tokenizer_sha256=tokenizer_sha256(model),
        precision=precision,
        sampling={},
        shard_rows=default_shard_rows(row_bytes),
    )


def _write_missing_shards(
    writer: CacheWriter,
    images: ImageDataset,
    model: VQGAN,
    config: TokenizeConfig,
    device: torch.device,
    report: Report,
    stop: StopRequest,
) -> None:
    missing = list(writer.missing())
    total = sum(shard.stop - shard.start for shard in missing)
    if not missing:
        report(Notice(text=f"{writer.path} is complete and intact; nothing to do"))
    done = 0
    counts = np.zeros(writer.manifest.description.codebook_size, dtype=np.int64)
    for shard in missing:
        split = images.splits[shard.split]
        rows = slice(shard.start, shard.stop)
        encoded = []
        for batch in split.images[rows].split(config.batch_size):
            encoded.append(encode_batch(model, batch, config.vqgan.precision, device))
            done += len(batch)
            counts += np.bincount(encoded[-1].reshape(-1), minlength=len(counts))
            report(
                Progress(
                    task="tokenize",
                    done=done,
                    total=total,
                    unit="images",
                    values={"used_codes": int((counts > 0).sum())},
                )
            )
            if stop:
                raise stop.as_error(f"the shards that are done are saved in {writer.path}")
        codes = np.concatenate(encoded)[:, None]  # one view
        writer.write(shard, codes, split.labels[rows], split.source_index[rows])


@torch.no_grad()
def encode_batch(model: VQGAN, images: Tensor, precision: str, device: torch.device) -> NDArray[np.int64]:
    """Images (B, C, H, W) uint8 -> codes (B, h, w) int64."""
    with autocast(device, precision):
        return model.encode(to_unit_range(images.to(device))).cpu().numpy()
