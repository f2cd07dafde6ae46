"""What moves the weights of a VQ-GAN in training, and how far at each step.

a model, the parameters that are trained  ->  optimisers by name; a step  ->  the learning rate
"""

import math
from collections.abc import Callable, Iterable
from typing import assert_never

import torch
from torch import Tensor, nn

from vqgpt.training.muon import Muon
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANTrainingOptions


def new_optimizers(
    model: VQGAN,
    parameters: list[nn.Parameter],
    options: VQGANTrainingOptions,
    compute: Callable[..., Iterable[None]] = map,
) -> dict[str, torch.optim.Optimizer]:
    """What moves these parameters of a model, by the name in a saved state; each is moved by one of them.

    With Muon, the kernels between the images and the latents are matrices to it; the first and the last convolution,
    whose rows are pixels or frequencies of them, biases and norms are Adam's. `compute` is Muon's.
    """
    match options.optimizer:
        case "adam":
            return {"optimizer": adam(parameters, options)}
        case "muon":
            outer = (model.encoder.conv_in.weight, model.decoder.conv_out.weight)
            kernels = [weight for weight in parameters if weight.ndim == 4 and not _is_among(weight, outer)]
            others = [weight for weight in parameters if not _is_among(weight, kernels)]
            muon = Muon(kernels, options.peak_rate, weight_decay=0.0, compute=compute)
            return {"optimizer": adam(others, options), "muon": muon}
        case _:
            assert_never(options.optimizer)


def _is_among(weight: Tensor, weights: Iterable[Tensor]) -> bool:
    return any(weight is other for other in weights)


def adam(parameters: list[nn.Parameter], options: VQGANTrainingOptions) -> torch.optim.Adam:
    """Adam with the betas of taming-transformers."""
    return torch.optim.Adam(parameters, lr=options.peak_rate, betas=(0.5, 0.9), fused=True)


def first_adversarial_step(options: VQGANTrainingOptions, schedule: Schedule) -> int | None:
    """The step at which the discriminator starts, or None if it never does."""
    start = options.discriminator_start(schedule.steps_per_epoch)
    return start if options.disc_weight and start < schedule.num_steps else None


def learning_rate(step: int, schedule: Schedule, options: VQGANTrainingOptions) -> float:
    """The learning rate of a step: constant, or half a cosine from `lr` to 0."""
    if options.lr_schedule == "constant":
        return options.peak_rate
    return options.peak_rate * (1 + math.cos(math.pi * step / schedule.num_steps)) / 2
