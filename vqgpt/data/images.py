"""From raw pixels to what the VQ-GAN is fed: uint8 images of one size, and the digest of their source."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vqgpt.config.datasets import Dataset
from vqgpt.data.readers import RawDataset, read_dataset
from vqgpt.progress import Report

PREPROCESSING = "shorter side resized to size (bilinear, antialiased), centre crop, uint8 / 127.5 - 1"
IMAGES_PER_RESIZE = 1024


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Images (N, C, size, size) uint8 on the CPU; labels (N,) int64 or (N, L) uint8; source_index (N,) int64."""

    images: Tensor
    labels: NDArray[np.integer[Any]]
    source_index: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """A dataset at the size at which the VQ-GAN sees it. `sha256` is over its raw images and labels."""

    splits: dict[str, ImageSplit]
    class_names: tuple[str, ...]
    sha256: str


def load_images(dataset: Dataset, root: Path, size: int, report: Report) -> ImageDataset:
    """Read a dataset and resize it. Raises what `read_dataset` raises."""
    raw = read_dataset(dataset, root, report)
    splits = {
        name: ImageSplit(images=resize(split.images, size), labels=split.labels, source_index=split.source_index)
        for name, split in raw.splits.items()
    }
    return ImageDataset(splits=splits, class_names=raw.class_names, sha256=_digest(raw))


def resize(images: NDArray[np.uint8], size: int) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, size, size) uint8: shorter side to `size`, then the centre."""
    height, width = images.shape[2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    resized = []
    for batch in torch.from_numpy(images).split(IMAGES_PER_RESIZE):
        if shape != (height, width):
            values = F.interpolate(batch.float(), shape, mode="bilinear", antialias=True)
            batch = values.round().clamp(0, 255).to(torch.uint8)
        resized.append(batch[:, :, top : top + size, left : left + size])
    return torch.cat(resized)


def _digest(raw: RawDataset) -> str:
    digest = hashlib.sha256()
    for name, split in raw.splits.items():
        digest.update(f"{name} {split.images.shape} {split.labels.shape}".encode())
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()
