"""What is seen in pixels alone, without a network: which images are equal, and how sharp they are.

    images (n, C, H, W) uint8  ->  digests (n, 16) uint8, sharpness (n,) float32

Must not import torch.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from vqgpt.data.image_sets import ImageSet
from vqgpt.progress import Progress, Report

DIGEST_BYTES = 16
MOST_DIGESTS = 100_000
IMAGES_AT_ONCE = 64


def pixel_digests(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A digest of the pixels of each of (n, C, H, W), (n, 16) uint8: equal for equal images."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest() for image in images]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(images), DIGEST_BYTES)


def digests_of(images: ImageSet, report: Report) -> NDArray[np.uint8]:
    """The digests of the pixels of a set, of up to 100,000 images, (M, 16)."""
    some, parts = images.drawn(MOST_DIGESTS), [np.empty((0, DIGEST_BYTES), np.uint8)]
    for batch in some.batches(IMAGES_AT_ONCE):
        parts.append(pixel_digests(batch))
        done = min(len(some), (len(parts) - 1) * IMAGES_AT_ONCE)
        report(Progress(task=f"compare {images.name}", done=done, total=len(some), unit="images"))
    return np.concatenate(parts)


def sharpness(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean absolute difference of neighbouring pixels of each of (n, C, H, W), (n,), in levels of 255."""
    levels = images.astype(np.float32)
    down, right = np.abs(np.diff(levels, axis=2)), np.abs(np.diff(levels, axis=3))
    means = [part.mean(axis=(1, 2, 3)) for part in (down, right) if part.size]
    return np.asarray(sum(means) if means else np.zeros(len(images)), dtype=np.float32)
