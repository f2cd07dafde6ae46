"""The optimiser of the GPT: AdamW, or Muon for the matrices of the blocks and AdamW for the rest.

    parameters with their gradients, a learning rate -> moved in place, and the norm of the gradient

A step that is not finite never reaches the weights.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTTrainingOptions
from vqgpt.training.muon import Muon
from vqgpt.training.weights import StateMisfitError, check_optimizer, is_part, load_whole_optimizer


class Optimizer:
    """Clips gradients and moves weights, with weight decay on matrices and embeddings, none on biases and norms.

    `compute` is Muon's: `map`, or that of a pool of threads.
    """

    def __init__(self, model: GPT, options: GPTTrainingOptions, compute: Callable[..., Iterable[None]] = map) -> None:
        self.parameters = list(model.parameters())
        self.largest_norm = options.grad_clip or math.inf
        self.stopped = torch.zeros((), device=self.parameters[0].device)  # 1 once a step was not finite
        muon = [p for p in model.transformer["h"].parameters() if p.ndim == 2] if options.optimizer == "muon" else []
        others = [p for p in self.parameters if not any(p is matrix for matrix in muon)]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, fused=True)
        self.muon = Muon(muon, options.lr, options.weight_decay, compute=compute) if muon else None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, rate: float, loss: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
        """Clip and take a step of learning rate `rate`; returns the norm of the gradient before clipping.

        Where loss or norm is not finite the weights stay, in this step and all later ones. Under fp16 a norm may be
        infinite: `scaler` then leaves out this step alone, lowers its scale, and the norm is given as 0.
        """
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = rate
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.largest_norm)
        norm = norm.full_tensor() if is_part(norm) else norm
        if scaler.is_enabled():
            self._move((~torch.isfinite(norm)).to(self.stopped.dtype))  # all or none, whichever gradient overflowed
            scaler.update()
            return torch.where(torch.isfinite(norm), norm, 0.0)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        self.stopped = torch.maximum(self.stopped, (~finite).to(self.stopped.dtype))
        self._move(self.stopped)
        return norm

    def _move(self, stopped: Tensor) -> None:
        """Take the step of each optimiser, unless `stopped` is 1."""
        for optimizer in self._optimizers():
            optimizer.found_inf = stopped  # type: ignore[attr-defined]
            optimizer.step()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.adamw, self.muon] if self.muon else [self.adamw]

    def state_dict(self) -> dict[str, Any]:
        """The state of each, for `load_state_dict`."""
        return {"parts": [optimizer.state_dict() for optimizer in self._optimizers()]}

    def load_state_dict(self, state: Any) -> None:
        """Restore what `state_dict` gave. Raises StateMisfitError, and changes nothing, if it is not of this model."""
        parts = state.get("parts") if isinstance(state, dict) else None
        if not isinstance(parts, list) or len(parts) != len(self._optimizers()):
            raise StateMisfitError("optimizer is of another kind")
        for optimizer, part in zip(self._optimizers(), parts, strict=True):
            check_optimizer(part, optimizer, "optimizer")
        for optimizer, part in zip(self._optimizers(), parts, strict=True):
            load_whole_optimizer(optimizer, part)
