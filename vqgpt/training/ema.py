"""A moving average of a network's weights. Knows neither images nor tokens."""

import torch
from torch import nn


@torch.no_grad()
def move_average(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's; the decay is shorter in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
