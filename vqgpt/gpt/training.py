"""Training of the GPT, from token grids.

    codes (N, V, h, w) uint8 or int32, on the device -> a trained model in place, and its held-out loss

A batch is one gather on the device. Knows nothing of images, the VQ-GAN and files of token caches.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vqgpt.config.gpt import GPTConfig, GPTTrainingOptions
from vqgpt.gpt.model import GPT
from vqgpt.gpt.order import grid_to_sequence, scan_order
from vqgpt.runtime import autocast
from vqgpt.schedule import Schedule, Step, check_finite

LOWEST_LR = 1e-6
IMAGES_PER_PASS = 256


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Tokens in the order in which the GPT reads them: codes (N, V, T); classes (N,) int64, -1 for none."""

    codes: Tensor
    classes: Tensor

    @classmethod
    def from_grids(cls, codes: Tensor, labels: Tensor, config: GPTConfig) -> "Sequences":
        """From grids (N, V, h, w) and labels (N, ...); labels count only where the GPT is conditioned on the class."""
        classes = labels if config.options.condition == "class" else torch.full((len(codes),), -1, device=codes.device)
        scan = scan_order(config.options.order, config.grid).to(codes.device)
        return cls(codes=grid_to_sequence(codes, scan), classes=classes.long())

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.codes.device

    def batch(self, step: Step, label_dropout: float) -> tuple[Tensor, Tensor]:
        """A random view of each row of a step -> codes (B, T) int64, classes (B,) with a share of them hidden."""
        views, hidden = random_views(len(step.rows), self.codes.shape[1], label_dropout, self.device)
        codes, classes = self.take(step.rows.to(self.device), views)
        return codes, classes.masked_fill(hidden, -1)

    def take(self, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,) and the view of each (B,) -> codes (B, T) int64, classes (B,)."""
        return self.codes[rows, views].long(), self.classes[rows]


def random_views(rows: int, views: int, label_dropout: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which view is taken of each row, (B,) int64, and whether its class is hidden, (B,) bool."""
    return torch.randint(views, (rows,), device=device), torch.rand(rows, device=device) < label_dropout


class TrainingRows(Protocol):
    """Where the batches come from: tokens in memory, or a stream of them."""

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        ...

    def batch(self, step: Step, label_dropout: float) -> tuple[Tensor, Tensor]:
        """Codes (B, T) int64 and classes (B,) int64, -1 for none, of the rows of a step, on the device."""
        ...


class GPTTraining:
    """A GPT in training; the model, the batches and the held-out set are on one device."""

    def __init__(
        self,
        model: GPT,
        train: TrainingRows,
        held_out: Sequences,
        options: GPTTrainingOptions,
        schedule: Schedule,
        precision: str,
    ) -> None:
        self.model = model
        self.train = train
        self.held_out = held_out
        self.options = options
        self.schedule = schedule
        self.precision = precision
        self.optimizer = new_optimizer(model, options)

    def take_step(self, step: Step) -> dict[str, float]:
        """One batch: predict each token from those before it."""
        self.model.train()
        rate = learning_rate(step.index, self.schedule, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        codes, classes = self.train.batch(step, self.options.label_dropout)
        with autocast(codes.device, self.precision):
            loss = self.model.loss(codes, classes)
        check_finite(loss.item(), "loss", step)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip or math.inf)
        check_finite(norm.item(), "norm of the gradient", step)
        self.optimizer.step()
        return {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}

    def epoch_figures(self) -> dict[str, float]:
        """None beside the mean loss."""
        return {}

    def validate(self) -> dict[str, float]:
        """Held-out loss in nats and bits per token."""
        return held_out_figures(self.model, self.held_out, self.precision)

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def new_optimizer(model: GPT, options: GPTTrainingOptions) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and embeddings, none on biases and norms."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, fused=True)


def learning_rate(step: int, schedule: Schedule, options: GPTTrainingOptions) -> float:
    """One cycle: linear from 1e-6 to `lr` over the warm-up epochs, then half a cosine back to 1e-6."""
    warmup_steps = min(options.warmup * schedule.steps_per_epoch, schedule.num_steps)
    if step < warmup_steps:
        return LOWEST_LR + (options.lr - LOWEST_LR) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, schedule.num_steps - 1 - warmup_steps)
    return LOWEST_LR + (options.lr - LOWEST_LR) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def held_out_figures(model: GPT, held_out: Sequences, precision: str) -> dict[str, float]:
    """Cross-entropy of the first view of every row given its class, in nats and in bits per token. Sets eval mode."""
    model.eval()
    total = 0.0
    for rows in torch.arange(len(held_out), device=held_out.codes.device).split(IMAGES_PER_PASS):
        with autocast(held_out.codes.device, precision):
            loss = model.loss(held_out.codes[rows, 0].long(), held_out.classes[rows])
        total += loss.item() * len(rows)
    nats = total / len(held_out)
    return {"held_out_nats_per_token": nats, "held_out_bits_per_token": nats / math.log(2)}
