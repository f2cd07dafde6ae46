"""Stage one: images of a dataset -> a token cache, through the VQ-GAN's encoder, once; and a VQ-GAN on arrays.

vqgpt tokenize    images of all splits -> codes (N, V, h, w) in the token cache
Tokenizer         images (N, C, H, W) uint8 <-> codes (N, h, w)
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from vqgpt.api.filling import fill_cache
from vqgpt.api.options import TokenizeConfig
from vqgpt.data.images import ImageDataset, prepared_batches, row_batches
from vqgpt.data.options import VIEWS, ImageOptions, Preprocessing, parse_views
from vqgpt.data.reading import check_options, read_dataset
from vqgpt.data.table import Dataset, find_dataset
from vqgpt.errors import UsageError
from vqgpt.options.codec import num_parameters
from vqgpt.pictures import sheet
from vqgpt.progress import Notice, Report, silent
from vqgpt.runtime.device import main_first, of_main, process_group, select_device
from vqgpt.tokens import Description, ShardRows, Split
from vqgpt.tokens.arrays import code_dtype, default_shard_rows
from vqgpt.tokens.reader import identity_to_record
from vqgpt.tokens.store import check_can_lie_at
from vqgpt.vqgan import checkpoint
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import check_channels, decoder_sha256, tokenizer_identities, tokenizer_sha256
from vqgpt.vqgan.coding import decode_in_passes, encode_images, images_per_pass
from vqgpt.vqgan.model import VQGAN


def run(config: TokenizeConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Encode every split; the result names the cache and its rows."""
    with process_group(select_device(config.vqgan.device)) as device:
        return _run(config, overwrite, dry_run, report, device)


def _run(
    config: TokenizeConfig, overwrite: bool, dry_run: bool, report: Report, device: torch.device
) -> dict[str, Any]:
    dataset = find_dataset(config.images.dataset)
    check_options(dataset, config.images)
    path = config.vqgan.path(dataset.name)
    model = checkpoint.load_vqgan(path, dataset.name, device, config.vqgan.remap)
    size = image_size(config.size, model.config, dataset, report)
    views = views_for(config.views, dataset, report)
    preprocessing = preprocessing_for(config.images, dataset, model.config, path, size, views)
    grid = model.config.grid(size)
    plan: dict[str, Any] = {
        "cache": config.result,
        "grid": grid,
        "codebook_size": model.config.codebook_size,
        "views": views,
        "bytes_per_image": row_bytes(model.config, grid, views),
    }
    if dry_run:
        return {**plan, **expected_work(config, dataset, plan["bytes_per_image"], model, preprocessing)}
    check_can_lie_at(config.result)
    sha256 = of_main(identity_to_record(config.result, tokenizer_identities(model)))
    with main_first():  # which downloads what is missing
        images = read_dataset(dataset, config.images, size, report)
    if config.limit is not None:
        some = {name: split.evenly_spaced(config.limit) for name, split in images.splits.items()}
        images = replace(images, splits=some)
    description = describe(config, dataset, images, model, sha256, preprocessing)
    rows = sum(split.rows for split in description.splits)
    codebook = model.quantize.vectors().detach().cpu().numpy()

    def codes_of(shard: ShardRows) -> Iterator[tuple[NDArray[np.int64]]]:
        batches = row_batches(shard.start, shard.stop, max(1, config.batch_size // len(views)))
        for batch in prepared_batches(images.splits[shard.split], batches, preprocessing, config.images.workers):
            yield (encode_images(model, batch, config.vqgan.precision),)

    def labels_of(shard: ShardRows) -> tuple[NDArray[Any], NDArray[np.int64]]:
        split = images.splits[shard.split]
        return split.labels[shard.start : shard.stop], split.source_index[shard.start : shard.stop]

    manifest = fill_cache(config.result, description, codebook, overwrite, "tokenize", codes_of, labels_of, report)
    return {**plan, "rows": rows, "digest": manifest.digest}


def image_size(asked: int | None, config: VQGANConfig, dataset: Dataset, report: Report) -> int:
    """The image side to work at: the one asked for, else the VQ-GAN's, else, with a notice, the dataset's."""
    size = asked or config.size
    if size is not None:
        return size
    size = dataset.default_size
    report(
        Notice(text=f"the VQ-GAN does not record the image size of its training; using {size}, that of {dataset.name}")
    )
    return size


def views_for(asked: tuple[str, ...], dataset: Dataset, report: Report) -> tuple[str, ...]:
    """The views to encode; a notice warns of mirrored and turned ones where they change what an image means."""
    views = parse_views(asked) if asked else dataset.default_views
    known_to_mean_something = not dataset.hflip_keeps_meaning and dataset.reader != "folder"
    turned = any(VIEWS[name].quarter_turns for name in views)
    if turned or (known_to_mean_something and any(VIEWS[name].mirrored for name in views)):
        how = "mirrored or turned" if turned else "mirrored"
        report(
            Notice(
                text=f"{how} images are encoded, as requested; in {dataset.name} they may mean something else. A GPT "
                "that is told the view (vqgpt train --condition-view) draws images as they stand"
            )
        )
    return views


def preprocessing_for(
    images: ImageOptions,
    dataset: Dataset,
    vqgan: VQGANConfig,
    path: Path,
    size: int,
    views: tuple[str, ...] = ("identity",),
) -> Preprocessing:
    """How images become what this VQ-GAN takes. Raises InputError if they have another number of channels.

    Those of one's own folder become what it takes; those of a known dataset only if that is asked for.
    """
    asked = images.preprocessing.image_channels
    channels = asked or (vqgan.image_channels if dataset.reader == "folder" else dataset.channels)
    check_channels(vqgan, channels, dataset.name, path)
    return Preprocessing(size=size, channels=channels, options=images.preprocessing, views=views)


def describe(
    config: TokenizeConfig,
    dataset: Dataset,
    images: ImageDataset,
    model: VQGAN,
    sha256: str,
    preprocessing: Preprocessing,
) -> Description:
    """What the cache will hold; `sha256` is the identity of the tokenizer."""
    size, grid = preprocessing.size, model.config.grid(preprocessing.size)
    return Description(
        origin="encoded",
        dataset=dataset.name,
        class_names=images.class_names,
        label_kind=dataset.label_kind,
        source_sha256=images.sha256,
        splits=tuple(Split(name=name, rows=len(split)) for name, split in images.splits.items()),
        limit=config.limit,
        val_split=config.images.val_split,
        image_size=(size, size),
        image_channels=preprocessing.channels,
        preprocessing=preprocessing.record,
        skipped=images.skipped,
        views=preprocessing.views,
        grid=grid,
        codebook_size=model.config.codebook_size,
        code_dimension=model.config.embed_dim,
        tokenizer_sha256=sha256,
        precision=config.vqgan.precision,
        sampling={},
        shard_rows=default_shard_rows(row_bytes(model.config, grid, preprocessing.views)),
    )


def row_bytes(config: VQGANConfig, grid: tuple[int, int], views: tuple[str, ...]) -> int:
    """Bytes of the codes of one image."""
    return len(views) * grid[0] * grid[1] * np.dtype(code_dtype(config.codebook_size)).itemsize


def expected_work(
    config: TokenizeConfig, dataset: Dataset, bytes_per_image: int, model: VQGAN, preprocessing: Preprocessing
) -> dict[str, Any]:
    """Rows, bytes before compression, and seconds, by the rows as published and the encoder's speed here.

    What is in one's own folder is not known without reading it.
    """
    count = min(config.batch_size, images_per_pass(preprocessing.size, preprocessing.size))
    shape = (count, 1, preprocessing.channels, preprocessing.size, preprocessing.size)
    images = np.zeros(shape, dtype=np.uint8)
    encode_images(model, images, config.vqgan.precision)  # to warm up
    start = time.perf_counter()
    encode_images(model, images, config.vqgan.precision)
    images_per_second = count / len(preprocessing.views) / (time.perf_counter() - start)
    if not dataset.rows:
        return {"rows": "known once the folder is read", "images_per_second": images_per_second}
    rows = sum(min(rows, config.limit or rows) for rows in dataset.rows.values())
    return {
        "rows": rows,
        "bytes": rows * bytes_per_image,
        "images_per_second": images_per_second,
        "seconds": rows / images_per_second,
    }


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A VQ-GAN: images (N, C, H, W) uint8 <-> codes (N, h, w)."""

    model: VQGAN
    device: torch.device

    @classmethod
    def load(cls, path: Path, device: str) -> "Tokenizer":
        """The VQ-GAN in a file, on a device by its name."""
        chosen = select_device(device)
        return cls(model=checkpoint.load_vqgan(path, "NAME", chosen), device=chosen)

    def __repr__(self) -> str:
        config = self.model.config
        network = f"VQ-GAN of {num_parameters(self.model):,} parameters on {self.device}"
        images = f"images of {config.image_channels} channel{'s'[: config.image_channels != 1]}"
        side = config.downsampling
        return f"Tokenizer({network}, {images}, {config.codebook_size} codes of {side} x {side} pixels)"

    @property
    def sha256(self) -> str:
        """The identity of its encoder and codebook, which token caches and GPTs record."""
        return tokenizer_sha256(self.model)

    @property
    def decoder_sha256(self) -> str:
        """The identity of its decoder, which may change while tokens stay valid."""
        return decoder_sha256(self.model)

    def encode(self, images: NDArray[np.uint8], precision: str = "fp32") -> NDArray[np.int64]:
        """The codes of images that have the size of its training, or another that its grid divides.

        Raises UsageError for other arrays.
        """
        channels, side = self.model.config.image_channels, self.model.config.downsampling
        suits = images.ndim == 4 and images.shape[1] == channels and images.dtype == np.uint8 and images.size
        if not suits or images.shape[2] % side or images.shape[3] % side:
            raise UsageError(
                f"images of shape {images.shape} and type {images.dtype} cannot be encoded",
                f"give (N, {channels}, H, W) uint8, H and W multiples of {side}",
            )
        at_once = images_per_pass(*images.shape[2:])
        parts = (images[start : start + at_once, None] for start in range(0, len(images), at_once))
        codes = [encode_images(self.model, part, precision)[:, 0] for part in parts]
        return np.concatenate(codes).astype(np.int64)

    def decode(self, codes: NDArray[np.integer[Any]], precision: str = "fp32") -> NDArray[np.uint8]:
        """The images that codes stand for. Raises UsageError for codes that it does not have."""
        size = self.model.config.codebook_size
        if codes.ndim != 3 or not codes.size or not 0 <= codes.min() <= codes.max() < size:
            raise UsageError(
                f"codes of shape {codes.shape} cannot be decoded", f"give (N, h, w) codes of 0 to {size - 1}"
            )
        return decode_in_passes(self.model, codes, precision, silent)


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str] | None = None, columns: int = 10) -> Image:
    """A picture of images (N, C, H, W), as `vqgpt render` makes it; `save` writes it to a file."""
    texts = [""] * len(images) if captions is None else captions
    return sheet.contact_sheet(sheet.to_displayable(images, 0), texts, columns)
