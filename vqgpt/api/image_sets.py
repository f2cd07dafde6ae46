"""Sets of images by what users write: what `vqgpt evaluate` compares, and the images that a token cache is judged by.

    SOURCE         a token cache, a folder, zip or tar file of pictures, or an .npz file
    SOURCE:SPLIT   a split of one, or of a dataset: mnist:test

Codes of a token cache are decoded by its VQ-GAN, shard by shard, when the images are asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqgpt.api.options import EncoderOptions, SourceOptions
from vqgpt.api.render import decoded_size, load_its_vqgan
from vqgpt.api.sources import tokenize_config
from vqgpt.data.image_sets import (
    BatchesOfRows,
    ImageSet,
    chosen_split,
    content_sha256,
    file_images,
    npz_images,
    split_images,
)
from vqgpt.data.images import ImageDataset
from vqgpt.data.options import ImageOptions, Preprocessing
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import DATASETS, Dataset, held_out_or_none, held_out_split
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.definition import resolve
from vqgpt.options.paths import RUNS_FOLDER, CacheURL, beside, expand_home, parse_cache_path
from vqgpt.progress import Report, silent
from vqgpt.tokens import TokenCache
from vqgpt.vqgan.checkpoint import vqgan_sha256
from vqgpt.vqgan.coding import decode_in_passes

PRECISION: Literal["fp32"] = "fp32"  # of decoding
SPLIT_NAME = re.compile(r"[A-Za-z_]\w*")
FEWEST_IMAGES = 2


def find_images(
    source: str, size: int | None, like: ImageSet | None, options: SourceOptions, report: Report
) -> ImageSet:
    """The images that `source` names.

    Pictures are prepared at `size` pixels, if it is given; a dataset's at that, else at the height of `like`, the set
    that they will be compared with, and with its channels. A dataset is downloaded if it is not at hand.
    Raises MissingDataError if there is no such source, UsageError if it leaves a choice of splits, and InputError for
    damaged or unsuitable files, or fewer than 2 images.
    """
    images = _find(source, size, like, options, report)
    check_enough(images)
    return images


def check_enough(images: ImageSet) -> None:
    """Raise InputError for fewer than 2 images, which are no distribution."""
    if len(images) < FEWEST_IMAGES:
        number = "1 image" if len(images) else "no images"
        raise InputError(f"{images.name} has {number}; a distribution needs at least 2 images", "give more images")


def made_comparable(a: ImageSet, b: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Both sets with the same number of channels: RGB files that happen to show no color are RGB beside such that do.

    Raises InputError, naming both sets, if one is truly grey and the other RGB, or if their images differ in size.
    """
    if a.shape[0] < b.shape[0] and a.stored_in_color:
        a = a.in_color()
    if b.shape[0] < a.shape[0] and b.stored_in_color:
        b = b.in_color()
    (channels, *size), (other_channels, *other_size) = a.shape, b.shape
    if channels != other_channels:
        raise InputError(
            f"{a.name} is {_color(channels)} and {b.name} is {_color(other_channels)}",
            "give two sets that are both grey, or both RGB",
        )
    if size != other_size:
        raise InputError(
            f"{a.name} has images of {_pixels(a)} pixels, {b.name} of {_pixels(b)}",
            "--size N prepares pictures and datasets at N x N pixels; token caches and .npz files stay as they are",
        )
    return a, b


def cache_images(cache: TokenCache, split: str | None, options: SourceOptions) -> ImageSet:
    """The decoded rows of a split, in the first view.

    Without `split`, of a cache of several: the held-out split if it was encoded from images, else the first. The
    VQ-GAN is loaded now. Raises what `load_its_vqgan` raises, UsageError if there is no such split, and InputError for
    images that are neither grey nor RGB.
    """
    description = cache.description
    names = cache.split_names
    if split is None and description.origin == "encoded":
        split = held_out_or_none(names)
    split = chosen_split(str(cache.path), split or names[0], names)
    channels = description.image_channels
    if channels not in (1, 3):
        raise InputError(
            f"{cache.path} has images of {channels} channels, which are neither grey nor RGB",
            "give a cache of grey or RGB images",
        )
    vqgan = EncoderOptions(
        checkpoint_vae=options.checkpoint_vae, remap=options.remap, device=options.device, precision=PRECISION
    )
    model = load_its_vqgan(description, vqgan)
    height, width = decoded_size(model, description)
    count, shard_rows = cache.rows(split), description.shard_rows
    with_classes = description.label_kind == "class"
    labels = cache.labels(split).astype(np.int64) if with_classes else np.full(count, -1)
    about = {"cache": cache.digest, "split": split, "view": description.views[0]}
    about |= {"tokenizer": vqgan_sha256(model), "precision": PRECISION}  # its decoder makes the images

    def read(batches: BatchesOfRows) -> Iterator[NDArray[np.uint8]]:
        shard, codes = -1, np.empty(0, np.uint16)
        for batch in batches:
            rows, parts = np.asarray(batch), []
            for number in np.unique(rows // shard_rows).tolist():
                if number != shard:
                    shard, codes = number, cache.read_split(split, [number]).codes[:, 0]
                parts.append(codes[rows[rows // shard_rows == number] - number * shard_rows])
            yield decode_in_passes(model, np.concatenate(parts), PRECISION, silent)

    return ImageSet(
        name=f"{cache.path}:{split}" if len(names) > 1 else str(cache.path),
        sha256=content_sha256(about),
        labels=labels,
        class_names=description.class_names if with_classes else (),
        shape=(channels, height, width),
        features_stem=beside(cache.path, f"{cache.path.stem}-{split}"),
        rows=np.arange(count),
        read=read,
    )


@dataclass(frozen=True, kw_only=True)
class References:
    """The real images that a token cache is judged by: those its models were trained on, and those held out."""

    training: ImageSet
    held_out: ImageSet


def references_of(
    cache: TokenCache, options: SourceOptions, report: Report, training_cache: TokenCache | None = None
) -> References:
    """All images of the dataset of a cache, prepared as its description records; `limit` does not count.

    A dataset that is not at hand is downloaded. Raises what `read_dataset` raises; InputError if the cache is of an
    unknown dataset, or if `training_cache` was encoded from other images than those found.
    """
    description = cache.description
    if description.dataset not in DATASETS:
        raise InputError(
            f"{cache.path} is of {description.dataset!r}, a dataset that this vqgpt does not know",
            "give the images to compare with",
        )
    dataset, images = DATASETS[description.dataset], tokenize_config(cache.path, description, options).images
    size = description.image_size[0]
    found = read_dataset(dataset, images, size, report)
    if training_cache is not None:
        _check_encoded_from(training_cache, dataset, found, images)
    preprocessing = Preprocessing(size=size, channels=description.image_channels, options=images.preprocessing)
    names = "train", held_out_split(found.splits, dataset.name)
    training, held_out = (split_of(dataset, found, name, preprocessing, images.workers) for name in names)
    return References(training=training, held_out=held_out)


def cache_named(source: str) -> TokenCache | None:
    """The token cache that `source` names; None if it names something else. Raises what opening it raises."""
    place, split = _parse(source)
    if split is not None and place in DATASETS:
        return None
    path = parse_cache_path(expand_home(place, "source"))
    is_cache = isinstance(path, CacheURL) or path.suffix == ".zarr" or (path / "zarr.json").exists()
    return TokenCache(path) if is_cache else None


def _find(source: str, size: int | None, like: ImageSet | None, options: SourceOptions, report: Report) -> ImageSet:
    place, split = _parse(source)
    if split is not None and place in DATASETS:
        return _dataset_images(DATASETS[place], split, size, like, options, report)
    cache = cache_named(source)
    if cache is not None:
        return cache_images(cache, split, options)
    path = Path(expand_home(place, "source"))
    if not path.exists():
        raise _no_such_source(place)
    if path.suffix == ".npz" and not path.is_dir():
        if split is not None:
            raise UsageError(f"{path} is one array, without splits", f"give {path} alone")
        return npz_images(path, report)
    return file_images(path, split, size, resolve(ImageOptions, {}).workers, report)


def _parse(source: str) -> tuple[str, str | None]:
    """The place, and the split after the last colon, if there is one; a path that exists has none."""
    place, colon, split = source.rpartition(":")
    if not colon or not place or not SPLIT_NAME.fullmatch(split) or Path(source).exists():
        return source, None
    return place, split


def _no_such_source(place: str) -> UsageError | MissingDataError:
    if place in DATASETS:
        names = ", ".join(f"{place}:{split}" for split in DATASETS[place].rows or ("train", "val"))
        return UsageError(f"{place} is a dataset, and has several splits", f"name one of them: {names}")
    return MissingDataError(
        f"there is no {place}",
        "give a token cache, a folder, zip, tar or .npz file of images, or a split of a dataset, such as mnist:test",
    )


def _dataset_images(
    dataset: Dataset, split: str, size: int | None, like: ImageSet | None, options: SourceOptions, report: Report
) -> ImageSet:
    if dataset.rows:  # then nothing is downloaded for a split that is none
        chosen_split(dataset.name, split, tuple(dataset.rows))
    images = resolve(ImageOptions, {"dataset": dataset.name, "data_root": options.data_root})
    side = size or (like.shape[1] if like else dataset.default_size)
    found = read_dataset(dataset, images, side, report)
    chosen_split(dataset.name, split, tuple(found.splits))
    channels = like.shape[0] if like else found.channels
    preprocessing = Preprocessing(size=side, channels=channels, options=images.preprocessing)
    return split_of(dataset, found, split, preprocessing, images.workers)


def split_of(dataset: Dataset, found: ImageDataset, split: str, preprocessing: Preprocessing, workers: int) -> ImageSet:
    """A split of a dataset that was read, whose features are kept with the dataset's run."""
    return split_images(
        found.splits[split],
        preprocessing,
        name=f"{dataset.name}:{split}",
        dataset_sha256=found.sha256,
        class_names=found.class_names,
        features_stem=RUNS_FOLDER / dataset.name / f"{split}-{preprocessing.size}px",
        workers=workers,
    )


def _check_encoded_from(cache: TokenCache, dataset: Dataset, found: ImageDataset, images: ImageOptions) -> None:
    """Raise InputError if a cache was encoded from other images. Of imported codes, it is not known."""
    description = cache.description
    if not description.unverified and description.source_sha256 != found.sha256:
        raise InputError(
            f"the images of {dataset.name} in {images.root} ({found.sha256[:12]}) are not those that {cache.path} was "
            f"encoded from ({description.source_sha256[:12]})",
            "give those with --data-root",
        )


def _color(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def _pixels(images: ImageSet) -> str:
    return f"{images.shape[2]} x {images.shape[1]}"
