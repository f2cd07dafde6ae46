"""Sampling from the GPT with a key-value cache.

    labels (N,) or (N, L), seed -> codes (N, h, w) int64, log_prob (N,) float32 in nats

Image i is a function of (seed, i): each token is drawn by inverting its cumulative distribution at a uniform number
that depends on (seed, i, position) alone, and passes always hold the same number of rows, so that not even rounding
depends on how many images were asked for. Knows nothing of images, the VQ-GAN and token caches.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vqgpt.config.gpt import SamplingOptions
from vqgpt.gpt.model import GPT
from vqgpt.gpt.order import scan_order, sequence_to_grid
from vqgpt.runtime import autocast

IMAGES_PER_PASS = 64
BELOW_ONE = 1 - 2**-22  # keeps rounding from reaching the end of the CDF, beyond the last code that may be drawn


def sample_codes(
    model: GPT, labels: Tensor, first_image: int, seed: int, options: SamplingOptions, precision: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw image `first_image + i` for `labels[i]`, as `GPT.start` takes them.

    Yields codes (n, h, w) int64 and their log-probabilities (n,) on the CPU, pass by pass, in order; `first_image` is a multiple of IMAGES_PER_PASS.
    """
    assert first_image % IMAGES_PER_PASS == 0
    config = model.config
    scan = scan_order(config.options.order, config.grid)
    for first in range(0, len(labels), IMAGES_PER_PASS):
        wanted = labels[first : first + IMAGES_PER_PASS]
        padding = wanted.new_full((IMAGES_PER_PASS - len(wanted), *wanted.shape[1:]), 0 if wanted.ndim == 2 else -1)
        uniforms = uniform_numbers(seed, first_image + first, IMAGES_PER_PASS, config.block_size)
        tokens, log_prob = sample_pass(model, torch.cat([wanted, padding]), uniforms, options, precision)
        yield sequence_to_grid(tokens[: len(wanted)].cpu(), scan, config.grid), log_prob[: len(wanted)].cpu()


@torch.no_grad()
def sample_pass(
    model: GPT, labels: Tensor, uniforms: Tensor, options: SamplingOptions, precision: str
) -> tuple[Tensor, Tensor]:
    """Labels (B, ...), uniforms (B, T) -> tokens (B, T) int64, one position after the other, and log_prob (B,)."""
    device = next(model.parameters()).device
    model.eval()
    uniforms = uniforms.to(device)
    caches = model.new_caches(len(labels))
    token, bits = model.start(labels.to(device))
    tokens = []
    log_prob = torch.zeros(len(labels), device=device)
    for position in range(model.config.block_size):
        with autocast(device, precision):
            logits = model(token, position, caches, bits if position == 0 else None)[:, -1]
        token = draw(logits, uniforms[:, position], options)[:, None]
        tokens.append(token)
        log_prob += logits.log_softmax(dim=-1).gather(1, token)[:, 0]
    return torch.cat(tokens, dim=1), log_prob


def draw(logits: Tensor, uniforms: Tensor, options: SamplingOptions) -> Tensor:
    """Logits (B, K), uniforms (B,) in [0, 1) -> codes (B,): temperature, then top-k, then the inverse of the CDF."""
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    likeliest = logits.max(dim=-1, keepdim=True).values  # taken away first, so that a tiny temperature cannot overflow
    logits = keep_top_k((logits - likeliest) / options.temperature, options.top_k)
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    target = uniforms[:, None] * (cumulative[:, -1:] * BELOW_ONE)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def keep_top_k(logits: Tensor, top_k: int | None) -> Tensor:
    """(B, K) logits with all but the k largest of each row at -inf; of equal ones all stay."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)


def uniform_numbers(seed: int, first: int, images: int, positions: int) -> Tensor:
    """(images, positions) float32 in [0, 1): row r is a function of (seed, first + r), by the counter-based Philox."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, first + row], dtype=np.uint64))).random(
            positions, dtype=np.float32
        )
        for row in range(images)
    ]
    return torch.from_numpy(np.stack(rows))
