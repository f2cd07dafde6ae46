"""Images -> codes -> images, with a trained VQ-GAN, on arrays. Knows neither datasets nor token caches.

encode_images    (n, V, C, H, W) uint8, V views of each image  ->  (n, V, h, w) int64
decode_codes     (n, h, w)                                     ->  (n, C, H, W) uint8
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.progress import Progress, Report
from vqgpt.runtime.device import autocast
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.pixels import images_per_pass, to_uint8, to_unit_range


@torch.no_grad()
def encode_images(model: VQGAN, images: NDArray[np.uint8], precision: str) -> NDArray[np.int64]:
    """Images (n, V, C, H, W) uint8 -> codes (n, V, h, w) int64, in one pass. Inverse of `decode_codes`."""
    device = model.quantize.embedding.weight.device
    views = torch.from_numpy(images).to(device).flatten(0, 1)
    with autocast(device, precision):
        codes = model.encode(to_unit_range(views))
    return codes.view(*images.shape[:2], *codes.shape[1:]).cpu().numpy()


@torch.no_grad()
def decode_codes(model: VQGAN, codes: NDArray[Any], precision: str) -> NDArray[np.uint8]:
    """Codes (n, h, w) -> images (n, C, H, W) uint8, in one pass. Inverse of `encode_images`, but for what is lost."""
    device = model.quantize.embedding.weight.device
    with autocast(device, precision):
        return to_uint8(model.decode(torch.from_numpy(codes.astype(np.int64)).to(device))).cpu().numpy()


def decode_in_passes(model: VQGAN, codes: NDArray[Any], precision: str, report: Report) -> NDArray[np.uint8]:
    """Codes (N, h, w) -> images (N, C, H, W) uint8, all of them in memory."""
    at_once = images_per_pass(*(side * model.config.downsampling for side in codes.shape[1:]))
    batches = (codes[start : start + at_once] for start in range(0, len(codes), at_once))
    return np.concatenate(list(decode_batches(model, batches, len(codes), precision, report)))


def decode_batches(
    model: VQGAN, batches: Iterable[NDArray[Any]], total: int, precision: str, report: Report
) -> Iterator[NDArray[np.uint8]]:
    """The images (n, C, H, W) of each batch of codes (n, h, w), of `total` in all."""
    done = 0
    for codes in batches:
        yield decode_codes(model, codes, precision)
        done += len(codes)
        report(Progress(task="render", done=done, total=total, unit="images"))
