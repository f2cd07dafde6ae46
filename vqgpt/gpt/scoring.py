"""How likely a GPT finds images, and how near they are to those that it was trained on.

    codes (N, h, w), labels -> nats (N,), one teacher-forced pass over the rows
    codes (N, h, w), codes of the training images (M, h, w) -> distance and row of the nearest (N,)

Knows nothing of images, the VQ-GAN and token caches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.gpt.model import GPT
from vqgpt.gpt.order import grid_to_sequence, scan_order
from vqgpt.runtime.device import autocast

NUMBERS_PER_PASS = 2**25  # logits, or distances, in memory at once
MOST_IMAGES_PER_PASS = 256


@torch.no_grad()
def nats_of_images(model: GPT, codes: Tensor, labels: Tensor, precision: str) -> Iterator[Tensor]:
    """Minus the log-probability of grids (N, h, w) given labels as `GPT.start` takes them, pass by pass, (n,) float64.

    A sum over all tokens of an image, of the model's own distribution: no temperature, no filter, no guidance.
    """
    config, device = model.config, next(model.parameters()).device
    model.eval()
    scan = scan_order(config.options.order, config.grid)
    at_once = max(1, min(MOST_IMAGES_PER_PASS, NUMBERS_PER_PASS // (config.block_size * config.codebook_size)))
    for grids, of_them in zip(codes.split(at_once), labels.split(at_once), strict=True):
        sequences = grid_to_sequence(grids, scan).long().to(device)
        with autocast(device, precision):
            logits = model.predictions(sequences, of_them.to(device))
        nats = F.cross_entropy(logits.flatten(0, 1), sequences.flatten(), reduction="none")
        yield nats.view(sequences.shape).cpu().double().sum(dim=1)  # MPS has no float64


def nearest(codes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The Hamming distance, in tokens, of each of codes (n, T) to the nearest of others (M, T), and its row: (n,) each.

    Of equally near ones, the first. Both float32 on the same device.
    """
    at_once = max(1, NUMBERS_PER_PASS // max(1, len(codes)))
    distance = torch.full((len(codes),), torch.inf, device=codes.device)
    row = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    for first, part in enumerate(others.split(at_once)):
        found, where = torch.cdist(codes, part, p=0).min(dim=1)
        nearer = found < distance
        distance = torch.where(nearer, found, distance)
        row = torch.where(nearer, where + first * at_once, row)
    return distance.long(), row
