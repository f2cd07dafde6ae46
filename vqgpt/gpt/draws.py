"""What chance decides about a batch of the GPT's training, whoever computes it: a pure function of (seed, step).

    step -> for all its images: views, which have no label, their orders, tokens that are shown as others

Letters: B images of a step, T tokens per image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqgpt.gpt.options import GPTConfig, GPTTrainingOptions
from vqgpt.gpt.order import scan_order
from vqgpt.options.codec import one_line
from vqgpt.runtime.device import derived_seed
from vqgpt.training.schedule import Schedule, Step


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The view of each image (B,), which images have no label (B,) bool, and what is None where nothing is drawn.

    `cells` (B, T) is the order in which each image is read. `shown_as` (B, T) is the token that is input in place of
    the one there, -1 where that is shown.
    """

    views: Tensor
    unconditional: Tensor
    cells: Tensor | None
    shown_as: Tensor | None

    __repr__ = one_line


def draw_for_step(
    step: Step, schedule: Schedule, views: int, options: GPTTrainingOptions, network: GPTConfig, result: GPTConfig
) -> Draws:
    """Draw for all rows of a step, each of which has so many `views`; `result` is what the network ends as."""
    generator = torch.Generator().manual_seed(derived_seed(schedule.seed, "draws", step.index))
    images, progress = len(step.rows), step.index / schedule.num_steps
    shape = images, network.block_size
    return Draws(
        views=torch.randint(views, (images,), generator=generator),
        unconditional=torch.rand(images, generator=generator) < options.label_dropout,
        shown_as=_draw_shown(shape, progress, options, network, generator),
        cells=_draw_orders(shape, progress, options, result, generator) if network.options.any_order else None,
    )


def _draw_shown(
    shape: tuple[int, int], progress: float, options: GPTTrainingOptions, network: GPTConfig, generator: torch.Generator
) -> Tensor | None:
    """Tokens that are hidden, which BOS stands for, and tokens that noise makes another one.

    reAR (He et al. 2025, arXiv:2510.04450): each token of an image becomes a random code, at a rate that is uniform in
    [0, r] for each image; r falls linearly from `token_noise` to 0 at `token_noise_until`.
    """
    shown = None
    if options.token_dropout:
        hidden = torch.rand(shape, generator=generator) < options.token_dropout
        shown = torch.where(hidden, network.bos, -1)
    highest = options.highest_noise(progress)
    if highest > 0:
        rates = highest * torch.rand(shape[0], 1, generator=generator)
        noised = torch.rand(shape, generator=generator) < rates
        others = torch.randint(network.codebook_size, shape, generator=generator)
        shown = torch.where(noised, others, -1 if shown is None else shown)
    return shown


def _draw_orders(
    shape: tuple[int, int], progress: float, options: GPTTrainingOptions, result: GPTConfig, generator: torch.Generator
) -> Tensor:
    """A random order for a share of the images: for all, where the result is for any order too."""
    share = 1.0 if result.options.any_order else options.random_share(progress)
    orders = scan_order(result.options.own_order, result.grid).repeat(shape[0], 1)
    if share > 0:
        at_random = torch.rand(shape[0], generator=generator) < share
        orders[at_random] = torch.rand(shape, generator=generator)[at_random].argsort(dim=1)
    return orders
