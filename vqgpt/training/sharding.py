"""Networks cut among the processes (FSDP2; Zhao et al. 2023): each has a part of every weight and of what goes with it.

    whole tensors, as in the checkpoint of a single process <-> this process's parts of them (DTensor)

What is not cut goes through unchanged. torch's part of this takes seconds to import, and is only where something is
cut. Knows neither images nor tokens.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from vqgpt.runtime.distributed import rank

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


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

    def parts(of_parameter: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
        return {  # moments are cut as their parameter is; the count of steps is not
            name: part_of(value, parameter) if value.shape == parameter.shape else value
            for name, value in of_parameter.items()
        }

    moments = {number: parts(values, parameters[number]) for number, values in state["state"].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
