"""The optimiser of the GPT: AdamW, or Muon for the matrices of the blocks and AdamW for the rest.

    parameters with their gradients, a learning rate -> moved in place, and the norm of the gradient

A step that is not finite never reaches the weights. Muon (Jordan et al. 2024) is momentum for matrices, whose updates
are made orthogonal; they are as large as AdamW's (Liu et al. 2025), so that one learning rate does for both.
`torch.optim.Muon` computes the same in bfloat16 everywhere, which takes a CPU without it 70 ms instead of 3 for a
matrix of 512 x 128.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTTrainingOptions
from vqgpt.training.weights import OF_ADAM, StateMisfitError, check_optimizer, is_part, load_whole_optimizer

ITERATIONS = 5  # of Newton and Schulz
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of x, x^3 and x^5; singular values end between 0.7 and 1.2
RMS = 0.2  # of an update of AdamW
OF_MUON = ("momentum",)  # what Muon keeps for a matrix


class Optimizer:
    """Clips gradients and moves weights, with weight decay on matrices and embeddings, none on biases and norms."""

    def __init__(self, model: GPT, options: GPTTrainingOptions) -> None:
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
        self.muon = Muon(muon, lr=options.lr, weight_decay=options.weight_decay) if muon else None

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
            for optimizer in self._optimizers():
                scaler.step(optimizer)
            scaler.update()
            return torch.where(torch.isfinite(norm), norm, 0.0)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        self.stopped = torch.maximum(self.stopped, (~finite).to(self.stopped.dtype))
        for optimizer in self._optimizers():
            optimizer.found_inf = self.stopped  # type: ignore[attr-defined]  # they do nothing where it is 1
            optimizer.step()
        return norm

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
            check_optimizer(part, optimizer, "optimizer", OF_MUON if optimizer is self.muon else OF_ADAM)
        for optimizer, part in zip(self._optimizers(), parts, strict=True):
            load_whole_optimizer(optimizer, part)


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look ahead, orthogonal updates, and decoupled weight decay."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.found_inf: Tensor | None = None  # where it is 1 nothing moves, as in torch's fused optimisers

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # there is no closure
        """Move the matrices by their gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(state["momentum"], group["momentum"]))
                update = update * (RMS * math.sqrt(max(matrix.shape))) + group["weight_decay"] * matrix
                if self.found_inf is not None:
                    update = update.masked_fill(self.found_inf > 0, 0.0)
                matrix.sub_(update, alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """(n, m) -> roughly the nearest orthogonal matrix, by a quintic Newton-Schulz iteration; in bfloat16 on CUDA."""
    first, third, fifth = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if tall else matrix
    wide = wide.bfloat16() if matrix.is_cuda else wide.float()
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = wide @ wide.mT
        polynomial = torch.addmm(square, square, square, beta=third, alpha=fifth)
        wide = torch.addmm(wide, polynomial, wide, beta=first)
    return (wide.mT if tall else wide).to(matrix.dtype)
