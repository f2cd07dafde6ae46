"""Scoring: what a GPT predicts of images that exist, and how likely it finds them.

grids (N, h, w), labels -> logits (N, T, K) float32, nats (N, T) of tokens, or (N,) of images, float64
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig
from vqgpt.gpt.order import Order, grid_to_sequence, scan_order
from vqgpt.options.definition import check
from vqgpt.runtime.device import autocast

NUMBERS_PER_PASS = 2**25  # logits in memory at once
MOST_IMAGES_PER_PASS = 256


@torch.no_grad()
def logits_of_images(
    model: GPT, codes: Tensor, labels: Tensor, precision: str, cells: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model predicts of grids (N, h, w), pass by pass: logits (n, T, K) float32, and the tokens (n, T) int64.

    Both are in the order `cells` (T,), which is the model's own if not given, on its device. Labels are as `GPT.start`
    takes them. Sets eval mode.
    """
    config, device = model.config, model.cells.device
    model.eval()
    cells = model.cells if cells is None else cells.to(device)
    at_once = max(1, min(MOST_IMAGES_PER_PASS, NUMBERS_PER_PASS // (config.block_size * config.codebook_size)))
    for grids, of_them in zip(codes.split(at_once), labels.split(at_once), strict=True):
        sequences = grid_to_sequence(grids.to(device).long(), cells)
        with autocast(device, precision):
            logits = model.predictions(sequences, of_them.to(device), cells)
        yield logits, sequences


def nats_of_images(
    model: GPT, codes: Tensor, labels: Tensor, precision: str, orders: Tensor | None = None
) -> Iterator[Tensor]:
    """Minus the log-probability of grids (N, h, w) given labels as `GPT.start` takes them, pass by pass, (n,) float64.

    A sum over all tokens of an image, of the model's own distribution: no temperature, no filter, no guidance. With
    several `orders` (M, T), of a model for any order, it is that of the mixture: one of them is drawn, then the image.
    """
    orders = model.cells[None] if orders is None else orders
    passes = (nats_of_tokens(model, codes, labels, precision, cells) for cells in orders)
    for nats in zip(*passes, strict=True):
        yield math.log(len(orders)) - (-torch.stack(nats).sum(dim=2)).logsumexp(dim=0)


def nats_of_tokens(model: GPT, codes: Tensor, labels: Tensor, precision: str, cells: Tensor) -> Iterator[Tensor]:
    """Minus the log-probability of each token given those before it, in the order `cells` (T,), pass by pass, (n, T).

    Float64 and on the CPU: MPS has none.
    """
    for logits, sequences in logits_of_images(model, codes, labels, precision, cells):
        nats = F.cross_entropy(logits.flatten(0, 1), sequences.flatten(), reduction="none")
        yield nats.view(sequences.shape).cpu().double()


def orders_to_score(order: Order, count: int, config: GPTConfig) -> Tensor:
    """(1, T), or of random orders so many (count, T), always the same. Raises UsageError for an impossible number."""
    if order != "random":
        check(count == 1, "num_orders", count, "given with --order random only")
        return scan_order(order, config.grid)[None]
    check(count > 0, "num_orders", count, "positive")
    return torch.rand(count, config.block_size, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
