"""Training of the VQ-GAN, from uint8 images in memory.

    images (N, C, H, W) uint8 -> a trained model in place, and its figures on the held-out images

The loss is L1 + L2 on the pixels, and the codebook term. Knows nothing of GPT and token caches.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.config.vqgan import VQGANTrainingOptions
from vqgpt.pixels import to_unit_range
from vqgpt.runtime import autocast, derived_seed
from vqgpt.schedule import Schedule, Step, check_finite
from vqgpt.vqgan.metrics import reconstruct, reconstruction_figures
from vqgpt.vqgan.model import VQGAN, Reconstruction
from vqgpt.vqgan.quantizer import COMMITMENT_WEIGHT, EMACodebook, codebook_loss, commitment_loss

GRADIENT_NORM = 1.0
SHOWN_IMAGES = 16
SEED_IMAGES = 256  # images whose latents the codebook starts from


class VQGANTraining:
    """A VQ-GAN in training; the model and both image sets are on one device.

    `show` gets held-out images (n, C, H, W) uint8 and their reconstructions, at each validation.
    """

    def __init__(
        self,
        model: VQGAN,
        images: Tensor,
        held_out: Tensor,
        options: VQGANTrainingOptions,
        schedule: Schedule,
        precision: str,
        show: Callable[[Tensor, Tensor], None],
    ) -> None:
        self.model = model
        self.images = images
        self.held_out = held_out
        self.options = options
        self.schedule = schedule
        self.precision = precision
        self.show = show
        self.ema = EMACodebook(model.quantize) if options.codebook == "ema" else None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=options.lr, betas=(0.5, 0.9), fused=True)
        if self.ema:
            torch.manual_seed(derived_seed(schedule.seed, "codebook"))
            with torch.no_grad():
                self.ema.seed(model.latents(to_unit_range(images[:SEED_IMAGES])))

    def take_step(self, step: Step) -> dict[str, float]:
        """One batch: reconstruct it, and move networks and codebook."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step.index, self.schedule, self.options)
        batch = to_unit_range(self.images[step.rows.to(self.images.device)])
        with autocast(batch.device, self.precision):
            out = self.model(batch)
        term = self.options.codebook_weight * codebook_term(out, self.options)
        loss = reconstruction_loss(out.images, batch) + term
        check_finite(loss.item(), "loss", step)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM)
        check_finite(norm.item(), "norm of the gradient", step)
        self.optimizer.step()
        if self.ema:
            self.ema.update(out.latents.detach(), out.codes)
        return {"loss": loss.item(), "gradient_norm": norm.item()}

    def validate(self) -> dict[str, float]:
        """PSNR and codebook use on the held-out images; shows some of them."""
        figures = reconstruction_figures(self.model, self.held_out)
        shown = self.held_out[:SHOWN_IMAGES]
        self.show(shown, reconstruct(self.model, shown)[0])
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, and the codebook's statistics."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema_codebook": self.ema.state_dict() if self.ema else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema_codebook"])


def learning_rate(step: int, schedule: Schedule, options: VQGANTrainingOptions) -> float:
    """The learning rate of a step: constant, or half a cosine from `lr` to 0."""
    if options.lr_schedule == "constant":
        return options.lr
    return options.lr * (1 + math.cos(math.pi * step / schedule.num_steps)) / 2


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute plus mean squared error of the pixels: L1 for sharp edges, L2 because PSNR measures it."""
    return F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)


def codebook_term(out: Reconstruction, options: VQGANTrainingOptions) -> Tensor:
    """The weighted commitment loss, and the codebook's own loss where gradients train it."""
    term = COMMITMENT_WEIGHT * commitment_loss(out.latents, out.quantized)
    return term + codebook_loss(out.latents, out.quantized) if options.codebook == "loss" else term
