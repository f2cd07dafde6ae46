"""From logits to a code: guidance, temperature, top-k, top-p, min-p, and the draw, in this order.

    logits (B, K) float32, uniform numbers (B,) -> codes (B,) int64

Each filter works on the distribution that the ones before it left, and keeps equally likely codes together. Nothing is
sorted but the few likeliest codes, where top-k or top-p is asked for.
"""

import math

import torch
from torch import Tensor

from vqgpt.gpt.options import SamplingOptions

BELOW_ONE = 1 - 2**-22  # keeps rounding from reaching the end of the CDF, beyond the last code that may be drawn
COLDEST = 1e-30  # below it float32 cannot divide; of different logits it leaves but the largest
LIKELIEST = 64  # codes among which the end of top-p is looked for first, on a CPU


def guidance_scale(position: int, positions: int, options: SamplingOptions) -> float:
    """The scale of guidance at a position: 1 at the first, growing from there, but for the constant schedule.

    power-cosine is that of RAR (Yu et al. 2024): half a cosine over (t / T)^power.
    """
    progress = position / positions
    match options.cfg_schedule:
        case "linear":
            share = progress
        case "power-cosine":
            share = (1 - math.cos(math.pi * progress**options.cfg_power)) / 2
        case _:
            share = 1.0
    return 1 + (options.cfg_scale - 1) * share


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) of logits (B, K): 0 is without the label, 1 with it."""
    return torch.lerp(unconditional, conditional, scale)


def draw(logits: Tensor, uniforms: Tensor, options: SamplingOptions) -> Tensor:
    """Logits (B, K), uniforms (B,) in [0, 1) -> codes (B,): the filters, then the inverse of the CDF."""
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = filtered(logits, options).softmax(dim=-1).cumsum(dim=-1)
    target = uniforms[:, None] * (cumulative[:, -1:] * BELOW_ONE)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def filtered(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Logits (B, K) divided by the temperature, -inf where a filter forbids the code."""
    if options.temperature != 1:  # the likeliest is taken away first, so that a tiny temperature cannot overflow
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(options.temperature, COLDEST)
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        logits = keep(logits, logits.topk(options.top_k).values[:, -1:])
    if options.top_p is not None and options.top_p < 1:
        logits = keep(logits, least_likely_of_top_p(logits, options.top_p))
    if options.min_p is not None and options.min_p > 0:
        logits = keep(logits, logits.amax(dim=-1, keepdim=True) + math.log(options.min_p))
    return logits


def keep(logits: Tensor, least: Tensor) -> Tensor:
    """Logits (B, K), -inf where they are below `least` (B, 1)."""
    return logits.masked_fill(logits < least, -torch.inf)


def least_likely_of_top_p(logits: Tensor, top_p: float) -> Tensor:
    """The smallest logit (B, 1) of the fewest likeliest codes that together have the probability `top_p`."""
    codes = logits.shape[-1]
    some = min(LIKELIEST, codes) if logits.device.type == "cpu" else codes  # a GPU sorts sooner than it answers
    for count in sorted({some, codes}):
        likeliest = logits.topk(count).values
        probabilities = (likeliest - logits.logsumexp(dim=-1, keepdim=True)).exp()
        needed = probabilities.cumsum(dim=-1) - probabilities < top_p  # those before it do not reach top_p
        if count == codes or not needed[:, -1].any():
            break
    return likeliest.masked_fill(~needed, torch.inf).amin(dim=-1, keepdim=True)
