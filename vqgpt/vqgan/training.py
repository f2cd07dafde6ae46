"""Training of the VQ-GAN, on uint8 images from anywhere.

    images (n, C, H, W) uint8 of each step -> a trained model in place, and its figures on the held-out images

The generator's loss is L1 + L2 on the pixels, the perceptual loss, the adversarial term, and the codebook term. One
forward of the generator serves both optimisers; on a CPU each thread takes its part of the batch through it.
"""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.kernels.winograd import fast_convolutions
from vqgpt.runtime.device import (
    autocast,
    cut_short_when_alone,
    derived_seed,
    local_share,
    new_workers,
    one_thread,
    sum_gradients,
    sum_over_ranks,
)
from vqgpt.tokens.arrays import statistics_of_counts
from vqgpt.training.schedule import Schedule, Step, check_finite
from vqgpt.training.weights import add_gradients, check_alike, check_optimizer, load_whole_optimizer, move_average
from vqgpt.vqgan.codebook import COMMITMENT_WEIGHT, EMACodebook, codebook_loss, commitment_loss, start_codebook
from vqgpt.vqgan.coding import figures_of, images_per_pass, likeness, reconstruct, to_unit_range
from vqgpt.vqgan.losses import PatchDiscriminator, PerceptualLoss, adaptive_weight, hinge_loss
from vqgpt.vqgan.model import VQGAN, Reconstruction
from vqgpt.vqgan.options import VQGANTrainingOptions

SHOWN_IMAGES = 16
START_VECTORS = 2**14  # latents that the codebook starts from


class _Pass(NamedTuple):
    """Some images of a batch: what a pass through the VQ-GAN gives, and their part of the losses of the batch.

    `codebook_loss` is the one with a graph; `image_gradient` is that of the other losses by the reconstructions.
    """

    out: Reconstruction
    losses: dict[str, Tensor]
    codebook_loss: Tensor
    image_gradient: Tensor


class TrainingImages(Protocol):
    """The images to train on, by their rows: (n, C, H, W) uint8 on the CPU.

    Both methods raise InputError, MissingDataError or ResourceError, which name it, for one that cannot be read.
    """

    def batch(self, step: Step) -> Tensor:
        """Those of this rank's rows of a step, as the step is to see them. Steps come in the order of the schedule."""

    def passes(self, rows: Tensor, at_once: int) -> Generator[Tensor]:
        """Those of some rows as they are, so many at a time."""


class VQGANTraining:
    """A VQ-GAN in training; the models are on one device.

    `held_out()` gives the held-out images, (n, C, H, W) uint8 on the CPU, pass after pass, each time from the first.
    `perceptual_loss` is None where its weight is 0. `show` gets, at each validation, some held-out images (n, C, H, W)
    uint8, their reconstructions, and how often each code occurs in all of them, (K,).
    """

    read_every = 1  # the codebook and the discriminator need the figures of each step anyway

    def __init__(
        self,
        model: VQGAN,
        perceptual_loss: PerceptualLoss | None,
        images: TrainingImages,
        held_out: Callable[[], Generator[Tensor]],
        options: VQGANTrainingOptions,
        schedule: Schedule,
        precision: str,
        show: Callable[[Tensor, Tensor, Tensor], None],
    ) -> None:
        self.model, self.perceptual_loss, self.images, self.held_out = model, perceptual_loss, images, held_out
        self.options, self.schedule, self.precision, self.show = options, schedule, precision, show
        assert model.config.size is not None
        self.device, size = next(model.parameters()).device, model.config.size
        self.perceptual_weight = options.perceptual_weight_at(size)
        vectors_per_image = math.prod(model.config.grid(size))
        if options.start_of_codebook != "uniform":
            torch.manual_seed(derived_seed(schedule.seed, "codebook"))
            rows = torch.randperm(schedule.num_rows)[: math.ceil(START_VECTORS / vectors_per_image)]
            passes = images.passes(rows, images_per_pass(size, size))
            start_codebook(model.quantize, latents_of(model, passes), options.start_of_codebook)
        self.codebook: EMACodebook | None = None
        if options.codebook == "ema":
            vectors_per_step = options.batch_size * vectors_per_image
            self.codebook = EMACodebook(model.quantize, *options.moving_average_of_codes, vectors_per_step)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = _adam(self.parameters, options)
        self.adversary_start = first_adversarial_step(options, schedule)
        if self.adversary_start is not None:
            torch.manual_seed(derived_seed(schedule.seed, "discriminator"))
            self.discriminator = PatchDiscriminator(model.config.image_channels, size).to(self.device)
            self.discriminator_optimizer = _adam(list(self.discriminator.parameters()), options)
        self.averaged = copy.deepcopy(model) if options.ema else None
        one_pass = self.device.type != "cpu" or model.config.dropout > 0  # whose draws have an order
        self.threads = 1 if one_pass else torch.get_num_threads()
        self.workers = new_workers(self.threads) if self.threads > 1 else None
        winograd = options.winograd == "auto" and not one_pass
        self.convolutions = fast_convolutions(self.device, precision) if winograd else nullcontext()
        self.epoch_counts = torch.zeros(model.config.codebook_size, dtype=torch.int64, device=self.device)
        self.waited = 0.0  # seconds of the epoch

    @property
    def result(self) -> VQGAN:
        """The model to validate and to keep: the moving average where there is one."""
        return self.averaged or self.model

    def take_step(self, step: Step) -> dict[str, float]:
        """One batch: reconstruct it, and move networks and codebook. Every rank takes its share of the rows.

        What `images` raise, and CutShort while they are waited for, comes before anything has moved.
        """
        start = time.perf_counter()
        with cut_short_when_alone():
            pixels = self.images.batch(step)
        self.waited += time.perf_counter() - start
        self.model.train()
        share = local_share(step.rows)
        images = to_unit_range(pixels.to(self.device))
        compute = self.workers.map if self.workers else map
        parts = images.split(math.ceil(len(images) / self.threads))
        passes = list(compute(lambda part: self._reconstruct(part, len(part) / len(images)), parts))
        losses = {name: torch.stack([each.losses[name] for each in passes]).sum() for name in passes[0].losses}
        adversarial = self.adversary_start is not None and step.index >= self.adversary_start
        image_gradients = [each.image_gradient for each in passes]
        if adversarial:
            adversarial_gradients, adversarial_losses = self._judge(images, passes, share)
            image_gradients = [a + b for a, b in zip(image_gradients, adversarial_gradients, strict=True)]
            losses |= adversarial_losses
        figures = _over_ranks(losses, share)
        figures = {"loss": sum(value for name, value in figures.items() if name != "discriminator_loss"), **figures}
        for name, value in figures.items():
            check_finite(value, name.replace("_", " "), step)

        self.optimizer.zero_grad()
        for gradients in compute(partial(self._gradients, share=share), passes, image_gradients):  # in order
            add_gradients(self.parameters, gradients)
        figures["gradient_norm"] = self._finite_norm(self.parameters, step)
        if adversarial:
            self.discriminator_optimizer.zero_grad()
            (losses["discriminator_loss"] * share).backward()
            self._finite_norm(list(self.discriminator.parameters()), step)
            self._apply(self.discriminator_optimizer, step)
        self._apply(self.optimizer, step)
        codes = torch.cat([each.out.codes.flatten() for each in passes])
        if self.codebook:
            latents = torch.cat([each.out.latents.detach() for each in passes])
            self.codebook.update(latents, codes, counted=share > 0)
        counts = torch.bincount(codes, minlength=len(self.epoch_counts)) * (share > 0)
        self.epoch_counts += sum_over_ranks(counts)
        if self.averaged:
            move_average(self.averaged, self.model, self.options.ema, step.index)
        return figures

    def _reconstruct(self, images: Tensor, weight: float) -> "_Pass":
        """Some images of a batch, of which they are `weight`."""
        with autocast(images.device, self.precision), self.convolutions:
            out = self.model(images)
        losses = {
            "pixel_loss": weight * reconstruction_loss(out.images, images),
            "codebook_loss": weight * self.options.codebook_weight * codebook_term(out, self.options),
        }
        if self.perceptual_loss:
            with autocast(images.device, self.precision), self.convolutions:
                distances = self.perceptual_loss(images, out.images)
            losses["perceptual_loss"] = weight * self.perceptual_weight * distances.mean()
        image_loss = torch.stack([loss for name, loss in losses.items() if name != "codebook_loss"]).sum()
        (image_gradient,) = torch.autograd.grad(image_loss, out.images)
        detached = {name: loss.detach() for name, loss in losses.items()}
        return _Pass(out, detached, losses["codebook_loss"], image_gradient)

    def _gradients(self, each: "_Pass", image_gradient: Tensor, share: float) -> tuple[Tensor | None, ...]:
        """Of the parameters, by one pass."""
        outputs = [each.out.images, each.codebook_loss * share]
        return torch.autograd.grad(outputs, self.parameters, [image_gradient * share, None], allow_unused=True)

    def _judge(
        self, images: Tensor, passes: list["_Pass"], share: float
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The weighted gradient of the adversarial loss by each pass's reconstructions, and both sides' losses.

        The discriminator sees the whole batch at once, over which it normalises.
        """
        reconstructions = torch.cat([each.out.images.detach() for each in passes]).requires_grad_()
        with autocast(images.device, self.precision):
            fake_logits = self.discriminator(reconstructions)
            (gradient,) = torch.autograd.grad(-fake_logits.mean(), reconstructions)
            loss = hinge_loss(self.discriminator(images), self.discriminator(reconstructions.detach()))
        gradients = gradient.split([len(each.image_gradient) for each in passes])
        last_layer = self.model.decoder.conv_out.weight

        def at_last_layer(sides: Iterable[Tensor]) -> Tensor:
            of_passes = [
                torch.autograd.grad(each.out.images, last_layer, side, retain_graph=True)[0]
                for each, side in zip(passes, sides, strict=True)
            ]
            return sum_over_ranks(share * torch.stack(of_passes).sum(dim=0))

        weight = self.options.disc_weight * adaptive_weight(
            at_last_layer(each.image_gradient for each in passes), at_last_layer(gradients)
        )
        return tuple(weight * gradient for gradient in gradients), {
            "adversarial_loss": -weight * fake_logits.detach().mean(),
            "discriminator_loss": loss,
        }

    def _finite_norm(self, parameters: list[nn.Parameter], step: Step) -> float:
        """Sum the gradients over the ranks and clip them. Raises NonFiniteError, before any weight has moved."""
        sum_gradients(parameters)
        with one_thread():
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.grad_clip or math.inf).item()
        check_finite(norm, "norm of the gradient", step)
        return norm

    def _apply(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step.index, self.schedule, self.options)
        with one_thread():
            optimizer.step()

    def epoch_figures(self) -> dict[str, float]:
        """Codes used, their perplexity, and seconds of waiting for images, of the epoch that ends; all count anew."""
        usage, waited = statistics_of_counts(self.epoch_counts.cpu().numpy()), self.waited
        self.epoch_counts.zero_()
        self.waited = 0.0
        return {
            "epoch_used_codes": usage.used_codes,
            "epoch_perplexity": usage.perplexity,
            "waiting_seconds": waited,
        }

    def validate(self) -> dict[str, float]:
        """Likeness and codebook use on the held-out images; shows some of them. A pass at a time is in memory."""
        counts = torch.zeros_like(self.epoch_counts)
        measured: list[dict[str, Tensor]] = []
        shown: list[tuple[Tensor, Tensor]] = []
        num_shown = 0
        with closing(self.held_out()) as passes:  # a signal leaves it in the middle
            for pixels in passes:
                images = pixels.to(self.device)
                reconstructions, codes = reconstruct(self.result, images)
                counts += torch.bincount(codes.flatten(), minlength=len(counts))
                measured.append(likeness(images, reconstructions))
                if num_shown < SHOWN_IMAGES:
                    shown.append((images[: SHOWN_IMAGES - num_shown], reconstructions[: SHOWN_IMAGES - num_shown]))
                    num_shown += len(shown[-1][0])
        originals, reconstructions = (torch.cat(some) for some in zip(*shown, strict=True))
        self.show(originals, reconstructions, counts)
        return figures_of(measured, counts)

    def state_dict(self) -> dict[str, Any]:
        """Both networks and optimisers, the codebook's statistics, the moving average, the epoch's counts."""
        return {**self._besides_optimizers(), **_states(self._optimizers())}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        adversary = {} if self.adversary_start is None else {"discriminator_optimizer": self.discriminator_optimizer}
        return {"optimizer": self.optimizer, **adversary}

    def _parts(self) -> dict[str, nn.Module | EMACodebook]:
        adversary = {} if self.adversary_start is None else {"discriminator": self.discriminator}
        parts: dict[str, nn.Module | EMACodebook | None] = {"model": self.model, "codebook": self.codebook}
        parts |= {"averaged": self.averaged, **adversary}
        return {name: part for name, part in parts.items() if part}

    def _besides_optimizers(self) -> dict[str, Any]:
        return {"epoch_counts": self.epoch_counts, **_states(self._parts())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises StateMisfitError if it does not belong to this training."""
        optimizers = self._optimizers()
        besides = {name: part for name, part in state.items() if name not in optimizers}
        check_alike(besides, self._besides_optimizers(), "its state")
        for name, optimizer in optimizers.items():
            check_optimizer(state.get(name), optimizer, name)
        for name, optimizer in optimizers.items():
            load_whole_optimizer(optimizer, state[name])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.epoch_counts.copy_(state["epoch_counts"])


def _states(parts: Mapping[str, nn.Module | EMACodebook | torch.optim.Optimizer]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


@torch.no_grad()
def latents_of(model: VQGAN, passes: Iterable[Tensor]) -> Tensor:
    """The latents (N, D, h, w) of images, passes of (n, C, H, W) uint8. Sets eval mode."""
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model.latents(to_unit_range(images.to(device))) for images in passes])


def first_adversarial_step(options: VQGANTrainingOptions, schedule: Schedule) -> int | None:
    """The step at which the discriminator starts, or None if it never does."""
    start = options.discriminator_start(schedule.steps_per_epoch)
    return start if options.disc_weight and start < schedule.num_steps else None


def learning_rate(step: int, schedule: Schedule, options: VQGANTrainingOptions) -> float:
    """The learning rate of a step: constant, or half a cosine from `lr` to 0."""
    if options.lr_schedule == "constant":
        return options.lr
    return options.lr * (1 + math.cos(math.pi * step / schedule.num_steps)) / 2


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute plus mean squared error of the pixels: L1 for sharp edges, L2 because PSNR measures it."""
    return F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)


def codebook_term(out: Reconstruction, options: VQGANTrainingOptions) -> Tensor:
    """The commitment loss, and the codebook's own loss where gradients train it."""
    term = COMMITMENT_WEIGHT * commitment_loss(out.latents, out.quantized)
    return term + codebook_loss(out.latents, out.quantized) if options.codebook == "loss" else term


def _adam(parameters: list[nn.Parameter], options: VQGANTrainingOptions) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=options.lr, betas=(0.5, 0.9), fused=True)


def _over_ranks(losses: dict[str, Tensor], share: float) -> dict[str, float]:
    """The means over the whole batch, read from the device at once."""
    values = sum_over_ranks(torch.stack([loss.detach() for loss in losses.values()]) * share)
    return dict(zip(losses, values.tolist(), strict=True))
