"""Training of the VQ-GAN, from uint8 images in memory.

    images (N, C, H, W) uint8 -> a trained model in place, and its figures on the held-out images

The loss is L1 + L2 on the pixels, and the codebook term. Knows nothing of GPT and token caches.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.config.vqgan import VQGANTrainingOptions
from vqgpt.interrupt import StopRequest
from vqgpt.pixels import to_unit_range
from vqgpt.progress import Progress, Report
from vqgpt.runtime import autocast, derived_seed
from vqgpt.schedule import Schedule, check_finite
from vqgpt.training_run import TrainingRun
from vqgpt.vqgan.metrics import reconstruct, reconstruction_figures
from vqgpt.vqgan.model import VQGAN, Reconstruction
from vqgpt.vqgan.quantizer import COMMITMENT_WEIGHT, EMACodebook, codebook_loss, commitment_loss

GRADIENT_NORM = 1.0
SHOWN_IMAGES = 16
SEED_IMAGES = 256  # images whose latents the codebook starts from


def train_vqgan(
    model: VQGAN,
    images: Tensor,
    held_out: Tensor,
    options: VQGANTrainingOptions,
    schedule: Schedule,
    precision: str,
    run: TrainingRun,
    report: Report,
    stop: StopRequest,
    show: Callable[[Tensor, Tensor], None],
) -> dict[str, float]:
    """Train on `images`; both sets, (N, C, H, W) uint8, are on the model's device.

    `show` gets held-out images (n, C, H, W) uint8 and their reconstructions, at each validation.
    Returns the figures of the last validation. Raises NonFiniteError, and InterruptedRun once the state is saved.
    """
    device = images.device
    parameters = [
        parameter
        for name, parameter in model.named_parameters()
        if name != "quantize.embedding.weight" or options.codebook == "loss"
    ]
    optimizer = torch.optim.Adam(parameters, lr=options.lr, betas=(0.5, 0.9), fused=True)
    ema = EMACodebook(model.quantize) if options.codebook == "ema" else None

    epoch_losses: list[float] = []

    def state(step: int) -> dict[str, object]:
        statistics = ema.state_dict() if ema else {}
        return {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema_codebook": statistics,
            "epoch_losses": epoch_losses,
        }

    first_step = 0
    if run.state:
        first_step, epoch_losses = run.state["step"], run.state["epoch_losses"]
        model.load_state_dict(run.state["model"])
        optimizer.load_state_dict(run.state["optimizer"])
        if ema:
            ema.load_state_dict(run.state["ema_codebook"])
    elif ema:
        torch.manual_seed(derived_seed(schedule.seed, "codebook"))
        with torch.no_grad():
            ema.seed(model.latents(to_unit_range(images[:SEED_IMAGES])))

    figures: dict[str, float] = {}
    rows_seen, epoch_start = 0, time.monotonic()
    model.train()
    for step in schedule.steps(first_step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step.index, schedule, options)
        batch = to_unit_range(images[step.rows.to(device)])
        with autocast(device, precision):
            out = model(batch)
        loss = reconstruction_loss(out.images, batch) + options.codebook_weight * codebook_term(out, options)
        check_finite(loss.item(), "loss", step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        check_finite(norm.item(), "norm of the gradient", step)
        optimizer.step()
        if ema:
            ema.update(out.latents.detach(), out.codes)

        epoch_losses.append(loss.item())
        rows_seen += len(step.rows)
        done = step.index + 1
        report(
            Progress(
                task="VQ-GAN",
                done=done,
                total=schedule.num_steps,
                unit="steps",
                values={"loss": loss.item(), **figures},
            )
        )
        if step.ends_epoch:
            seconds = time.monotonic() - epoch_start
            record = {
                "step": done,
                "epoch": step.epoch + 1,
                "images": (step.epoch + 1) * len(images),
                "loss": sum(epoch_losses) / len(epoch_losses),
                "gradient_norm": norm.item(),
                "images_per_second": rows_seen / seconds,
            }
            epoch_losses = []
            if schedule.is_checkpoint(step, options.sample_and_save_freq):
                figures = reconstruction_figures(model, held_out)
                show(held_out[:SHOWN_IMAGES], reconstruct(model, held_out[:SHOWN_IMAGES])[0])
                run.log(record | figures)
                run.save(state(done))
                model.train()
            else:
                run.log(record)
            rows_seen, epoch_start = 0, time.monotonic()
        if stop and done < schedule.num_steps:
            run.save(state(done))
            raise stop.as_error(f"{done} of {schedule.num_steps} steps are saved in {run.unfinished}")
    model.eval()
    return figures or reconstruction_figures(model, held_out)


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
