"""Weights in training: cut among processes, restored from a saved state, averaged.

    whole tensors, as in the checkpoint of a single process <-> this process's parts of them (DTensor of FSDP2)

What is not cut goes through unchanged, and torch's part of this, which takes seconds to import, is imported only where
something is cut. A saved state is checked before it is restored: one of the right settings can still have been made by
hand, or by another version of a network.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from vqgpt.runtime.device import one_thread, rank
from vqgpt.storage.checkpoint import shape_text
from vqgpt.training.muon import Muon

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

OF_MUON = ("momentum",)  # what it keeps for a parameter
OF_ADAM = ("step", "exp_avg", "exp_avg_sq")  # AdamW too


def shard(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Cut the weights, in place. A block's are whole while it computes, and gradients are summed over the processes.

    From now on all processes must call the network together, and gradients come by `Tensor.backward`.
    """
    from torch.distributed.fsdp import fully_shard

    for module in (*blocks, network):
        sharded = fully_shard(module, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)  # by itself FSDP takes the mean
        sharded.set_force_sum_reduction_for_comms(True)


def sum_at_next_backward(network: nn.Module, wanted: bool) -> None:
    """Whether the next `Tensor.backward` sums its gradients, and those kept so far, over the processes."""
    cast("FSDPModule", network).set_requires_gradient_sync(wanted)


def whole(state: Any) -> Any:
    """A state (nested dicts and lists) with its tensors put together, on the main process; elsewhere they are empty.

    All processes must call it together.
    """
    if is_part(state):
        together = state.full_tensor()
        return together.cpu() if rank() == 0 else together.new_empty(0)
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def is_part(value: Any) -> "TypeGuard[DTensor]":
    """True of a process's part of a tensor."""
    return hasattr(value, "full_tensor")


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process has, cut as `like` is; the tensor itself where `like` is whole."""
    if not is_part(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_whole(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network, cut or not, the weights that `whole(network.state_dict())` was."""
    own = network.state_dict()
    network.load_state_dict({name: part_of(value, own[name]) for name, value in weights.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser of weights, cut or not, the state that `whole(optimizer.state_dict())` was.

    It keeps its own settings.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {number: dict(of_parameter) for number, of_parameter in state["state"].items()}
    for number, of_parameter in moments.items():
        for name, value in of_parameter.items():
            if value.shape == parameters[number].shape:  # moments are cut as their parameter is, not the count of steps
                of_parameter[name] = part_of(value, parameters[number])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def add_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    """Add gradients to those that the parameters have. The first is kept as it is, without a copy."""
    with one_thread():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


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


def check_optimizer(found: Any, optimizer: torch.optim.Optimizer, place: str) -> None:
    """Raise StateMisfitError unless the state of an Adam or Muon holds, for each parameter, what it keeps.

    All are of the parameter's shape but `step`, which is a single number. A parameter that never had a gradient has
    nothing.
    """
    if not isinstance(found, Mapping) or not isinstance(found.get("state"), Mapping):
        raise StateMisfitError(f"{place} is of another kind")
    names = OF_MUON if isinstance(optimizer, Muon) else OF_ADAM
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    own = {
        number: {name: torch.zeros(()) if name == "step" else parameter for name in names}
        for number, parameter in enumerate(parameters)
        if number in found["state"]
    }
    check_alike(found["state"], own, place)


@torch.no_grad()
def move_average(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's; the decay is shorter in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
