"""From logits to a code: guidance, temperature, top-k, top-p, min-p, and the draw, in this order.

    logits (B, K) float32, uniform numbers (B,) -> codes (B,) int64

Each image has settings of its own. Each filter works on the distribution that the ones before it left, and keeps
equally likely codes together. Nothing is sorted but the few likeliest codes, where top-k or top-p is asked for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from vqgpt.gpt.options import SamplingOptions
from vqgpt.options.codec import one_line

BELOW_ONE = 1 - 2**-22  # keeps rounding from reaching the end of the CDF, beyond the last code that may be drawn
SMALLEST = 1e-30  # temperature, below which float32 cannot divide; and probability, below which it has but 0
LIKELIEST = 64  # codes among which the end of top-p is looked for first, on a CPU

NAMES = ("temperature", "greedy", "top_k", "top_p", "log_min_p", "scales")  # what Settings has for each image


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the codes of B images are drawn, a number (B, 1) for each; None for a filter that none of them asks for.

    `greedy` images take the likeliest code. `top_k` is 0, `top_p` infinite and `log_min_p` -infinite for images without
    that filter; `most_k` is the largest k. `scales` (B, T) are those of guidance, None where no image is guided.
    """

    temperature: Tensor | None
    greedy: Tensor | None
    top_k: Tensor | None
    most_k: int
    top_p: Tensor | None
    log_min_p: Tensor | None
    scales: Tensor | None

    __repr__ = one_line

    @classmethod
    def of(cls, images: Sequence[SamplingOptions], codes: int, positions: int) -> "Settings":
        """Those of images that ask for these options, of a GPT with so many codes and positions."""
        k = [0 if each.top_k is None or each.top_k >= codes else each.top_k for each in images]
        p = [max(each.top_p, SMALLEST) if each.top_p is not None and each.top_p < 1 else math.inf for each in images]
        schedules = {each: guidance_scales(each, positions) for each in set(images)}
        temperatures = [max(each.temperature, SMALLEST) if each.temperature else 1.0 for each in images]
        return cls(
            temperature=_column(temperatures, 1.0),
            greedy=_column([each.temperature == 0 for each in images], False),
            top_k=_column(k, 0),
            most_k=max(k),
            top_p=_column(p, math.inf),
            log_min_p=_column([math.log(each.min_p) if each.min_p else -math.inf for each in images], -math.inf),
            scales=torch.stack([schedules[each] for each in images]) if is_guided(images) else None,
        )

    @property
    def kind(self) -> tuple[bool | int, ...]:
        """What must be equal for the numbers of other images to be put in place of these."""
        return (*(value is None for value in self.tensors), self.most_k)

    @property
    def filters(self) -> bool:
        """Whether anything but greed and guidance changes the distribution."""
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p, self.log_min_p))

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The numbers, as `NAMES` has them."""
        return tuple(getattr(self, name) for name in NAMES)

    def rows(self, here: slice) -> "Settings":
        """Those of some of the images."""
        return self._with(lambda values: values[here])

    def on(self, device: torch.device, images: int) -> "Settings":
        """Numbers of their own on a device, for so many images: those beyond B are as the last one."""
        return self._with(
            lambda values: torch.cat([values, values[-1:].expand(images - len(values), -1)]).to(device, copy=True)
        )

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Settings":
        changed = {
            name: None if values is None else change(values) for name, values in zip(NAMES, self.tensors, strict=True)
        }
        return Settings(most_k=self.most_k, **changed)

    def copy_(self, other: "Settings") -> None:
        """Take over the numbers of `other`, which is of the same kind and size."""
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)


def _column(values: Sequence[float], without: float) -> Tensor | None:
    """(B, 1); None where all are as without the filter."""
    return torch.tensor(values)[:, None] if any(value != without for value in values) else None


def is_guided(images: Sequence[SamplingOptions]) -> bool:
    """Whether any of them is guided."""
    return any(each.cfg_scale != 1 for each in images)


def guidance_scales(options: SamplingOptions, positions: int) -> Tensor:
    """The scale of guidance at each position (T,): 1 at the first, growing from there, but for the constant schedule.

    power-cosine is that of RAR (Yu et al. 2024): half a cosine over (t / T)^power.
    """
    shares = []
    for progress in (position / positions for position in range(positions)):
        match options.cfg_schedule:
            case "linear":
                shares.append(progress)
            case "power-cosine":
                shares.append((1 - math.cos(math.pi * progress**options.cfg_power)) / 2)
            case "constant":
                shares.append(1.0)
            case _:
                assert_never(options.cfg_schedule)
    return torch.tensor([1 + (options.cfg_scale - 1) * share for share in shares])


def guide(conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) of logits (B, K), scales (B, 1): 0 without label, 1 with it."""
    return torch.lerp(unconditional, conditional, scales)


def draw(logits: Tensor, uniforms: Tensor, settings: Settings) -> Tensor:
    """Logits (B, K), uniforms (B,) in [0, 1) -> codes (B,): the filters, then the inverse of the CDF."""
    cumulative = filtered(logits, settings).softmax(dim=-1).cumsum(dim=-1)
    target = uniforms[:, None] * (cumulative[:, -1:] * BELOW_ONE)
    codes = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return codes if settings.greedy is None else torch.where(settings.greedy[:, 0], logits.argmax(dim=-1), codes)


def filtered(logits: Tensor, settings: Settings) -> Tensor:
    """Logits (B, K) divided by the temperature, -inf where a filter forbids the code."""
    if settings.filters:  # the likeliest is at 0 then: a tiny temperature cannot overflow, and rounding is the same
        logits = logits - logits.amax(dim=-1, keepdim=True)
    if settings.temperature is not None:
        logits = logits / settings.temperature
    if settings.top_k is not None:
        least = logits.topk(settings.most_k).values.gather(1, (settings.top_k - 1).clamp(min=0))
        logits = keep(logits, least.masked_fill(settings.top_k == 0, -torch.inf))
    if settings.top_p is not None:
        logits = keep(logits, least_likely_of_top_p(logits, settings.top_p))
    if settings.log_min_p is not None:
        logits = keep(logits, settings.log_min_p)
    return logits


def keep(logits: Tensor, least: Tensor) -> Tensor:
    """Logits (B, K), -inf where they are below `least` (B, 1)."""
    return logits.masked_fill(logits < least, -torch.inf)


def least_likely_of_top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit (B, 1) of the fewest likeliest codes that together have the probability `top_p` (B, 1)."""
    codes = logits.shape[-1]
    some = min(LIKELIEST, codes) if logits.device.type == "cpu" else codes  # a GPU sorts sooner than it answers
    for count in sorted({some, codes}):
        likeliest = logits.topk(count).values
        probabilities = (likeliest - logits.logsumexp(dim=-1, keepdim=True)).exp()
        needed = probabilities.cumsum(dim=-1) - probabilities < top_p  # those before it do not reach top_p
        if count == codes or not (needed[:, -1:] & (top_p < 1)).any():
            break
    least = likeliest.masked_fill(~needed, torch.inf).amin(dim=-1, keepdim=True)
    return least.masked_fill(top_p >= 1, -torch.inf)
