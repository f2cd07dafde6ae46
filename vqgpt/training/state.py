"""Going back to a saved state of a training, once it has proved to be built as the state of this training is.

A state that is of the right settings can still have been made by hand, or by another version of a network.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqgpt.storage.checkpoint import shape_text

OF_ADAM = ("step", "exp_avg", "exp_avg_sq")  # what it keeps for a parameter; AdamW too


class StateMisfitError(Exception):
    """A state does not belong to this training; the text says where they differ."""


def check_alike(found: Any, own: Any, place: str) -> None:
    """Raise StateMisfitError unless two states have the same names, and under them the same shapes and types."""
    if isinstance(own, Mapping):
        if not isinstance(found, Mapping):
            raise StateMisfitError(f"{place} is of another kind")
        for name in (*own, *found):
            if name not in found or name not in own:
                raise StateMisfitError(f"{place} {'lacks' if name not in found else 'has no place for'} {name}")
            check_alike(found[name], own[name], f"{name} in {place}")
    elif isinstance(own, Tensor):
        if not isinstance(found, Tensor) or found.is_floating_point() != own.is_floating_point():
            raise StateMisfitError(f"{place} is of another kind")
        if found.shape != own.shape:
            raise StateMisfitError(f"{place} is {shape_text(found.shape)} where {shape_text(own.shape)} is expected")
    elif type(found) is not type(own):
        raise StateMisfitError(f"{place} is of another kind")


def check_optimizer(found: Any, optimizer: torch.optim.Optimizer, names: tuple[str, ...], place: str) -> None:
    """Raise StateMisfitError unless the state of an optimiser holds, for each parameter, what these names say.

    All are of the parameter's shape but `step`, which is a single number. A parameter that never had a gradient has
    nothing.
    """
    if not isinstance(found, Mapping) or not isinstance(found.get("state"), Mapping):
        raise StateMisfitError(f"{place} is of another kind")
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    own = {
        number: {name: torch.zeros(()) if name == "step" else parameter for name in names}
        for number, parameter in enumerate(parameters)
        if number in found["state"]
    }
    check_alike(found["state"], own, place)
