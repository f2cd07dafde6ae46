"""Training of the VQ-GAN, on uint8 images from anywhere.

    images (n, C, H, W) uint8 of each step -> a trained model in place, and its figures on the held-out images

A step is a batch through the network and back (`vqgan.passes`), then weights, codebook and averages move.
"""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vqgpt.runtime.device import (
    cut_short_when_alone,
    derived_seed,
    local_share,
    one_thread,
    sum_gradients,
    sum_over_ranks,
)
from vqgpt.tokens.arrays import effective_rank, statistics_of_counts
from vqgpt.training.schedule import Schedule, Step, check_finite
from vqgpt.training.weights import check_alike, check_optimizer, load_whole_optimizer, move_average
from vqgpt.vqgan.adversary import PatchDiscriminator
from vqgpt.vqgan.codebook import EMACodebook, covariance_of, moments_of, start_codebook, to_vectors
from vqgpt.vqgan.coding import figures_of, images_per_pass, likeness, reconstruct, to_unit_range
from vqgpt.vqgan.latent_norm import LatentNorm, fold_latent_norm
from vqgpt.vqgan.model import VQGAN, Decoder, Encoder
from vqgpt.vqgan.optimizers import adam, first_adversarial_step, learning_rate, new_optimizers
from vqgpt.vqgan.options import LARGEST_RATE_OF_DISCRIMINATOR, VQGANTrainingOptions
from vqgpt.vqgan.passes import Passes
from vqgpt.vqgan.patches import Frequencies, fold_frequencies, unfold_frequencies
from vqgpt.vqgan.perceptual import PerceptualLoss

SHOWN_IMAGES = 16
START_VECTORS = 2**14  # latents that the codebook starts from


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
    `perceptual_loss` is None for none. `show` gets, at each validation, some held-out images (n, C, H, W)
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
        self.model, self.images, self.held_out = model, images, held_out
        self.options, self.schedule, self.show = options, schedule, show
        assert model.config.size is not None
        self.device, size = next(model.parameters()).device, model.config.size
        vectors_per_image = math.prod(model.config.grid(size))
        self.frequencies = train_in_frequencies(model, options.train == "all")
        if options.train == "all" and options.normalise_latents and model.config.can_normalise_latents:
            model.latent_norm = LatentNorm(model.config.embed_dim).to(self.device)
        if model.latent_norm or options.start_of_codebook != "uniform":
            self._start_from_latents(size)
        self.codebook: EMACodebook | None = None
        if options.train == "decoder":
            for part in (model.encoder, model.quant_conv, model.quantize):
                part.requires_grad_(False)
        elif options.codebook == "ema":
            vectors_per_step = options.batch_size * vectors_per_image
            self.codebook = EMACodebook(model.quantize, *options.moving_average_of_codes, vectors_per_step)
        self.passes = Passes(model, perceptual_loss, options, precision)
        self.parameters = self.passes.parameters
        self.optimizers = new_optimizers(model, self.parameters, options, self.passes.compute)
        self.adversary_start = first_adversarial_step(options, schedule)
        if self.adversary_start is not None:
            torch.manual_seed(derived_seed(schedule.seed, "discriminator"))
            self.discriminator = PatchDiscriminator(model.config.image_channels, size).to(self.device)
            self.optimizers["discriminator_optimizer"] = adam(list(self.discriminator.parameters()), options)
        self.averaged = copy.deepcopy(model) if options.ema else None
        self.epoch_counts = torch.zeros(model.config.codebook_size, dtype=torch.int64, device=self.device)
        self.epoch_moments = torch.zeros(2 * (model.config.embed_dim + 1,), device=self.device)  # of latents
        self.waited = 0.0  # seconds of the epoch

    def _start_from_latents(self, size: int) -> None:
        """Normalise the latents of some images, and put the codes where `codebook_start` says among them."""
        torch.manual_seed(derived_seed(self.schedule.seed, "codebook"))
        number = math.ceil(START_VECTORS / math.prod(self.model.config.grid(size)))
        rows = torch.randperm(self.schedule.num_rows)[:number]
        latents = latents_of(self.model, self.images.passes(rows, images_per_pass(size, size)))
        if self.model.latent_norm:
            self.model.latent_norm.start(latents)
            latents = self.model.latent_norm(latents)
        start_codebook(self.model.quantize, latents, self.options.start_of_codebook)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of the result, which has in its convolutions what only a network in training has beside them."""
        weights = self.result.state_dict()
        weights = fold_latent_norm(weights) if self.result.latent_norm else weights
        if self.frequencies:
            weights = fold_frequencies(weights, self.options.train == "all", self.frequencies.matrix)
        return weights

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
        if self.options.train == "decoder":
            self.model.encoder.eval()  # codes are those of token caches: no dropout
        share = local_share(step.rows)
        perceptual = step.index >= self.options.perceptual_start(self.schedule.num_steps)
        batch = self.passes.forward(to_unit_range(pixels.to(self.device)), share, perceptual)
        adversarial = self.adversary_start is not None and step.index >= self.adversary_start
        if adversarial:
            self.passes.judge(batch, self.discriminator, share)
        figures = _over_ranks(batch.losses, share)
        figures = {"loss": sum(value for name, value in figures.items() if name != "discriminator_loss"), **figures}
        for name, value in figures.items():
            check_finite(value, name.replace("_", " "), step)

        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.passes.backward(batch, share)
        figures["gradient_norm"] = self._finite_norm(self.parameters, step)
        if adversarial:
            (batch.losses["discriminator_loss"] * share).backward()
            self._finite_norm(list(self.discriminator.parameters()), step)
        self._move_weights(step, adversarial)
        if self.model.latent_norm:
            self.model.latent_norm.follow()
        latents, codes = batch.quantized.latents.detach(), batch.quantized.codes.flatten()
        if self.codebook:
            self.codebook.update(latents, codes, counted=share > 0)
        self.epoch_moments += sum_over_ranks(moments_of(to_vectors(latents)) * (share > 0))
        counts = torch.bincount(codes, minlength=len(self.epoch_counts)) * (share > 0)
        self.epoch_counts += sum_over_ranks(counts)
        if self.averaged:
            move_average(self.averaged, self.model, self.options.ema, step.index)
        return figures

    def _finite_norm(self, parameters: list[nn.Parameter], step: Step) -> float:
        """Sum the gradients over the ranks and clip them. Raises NonFiniteError, before any weight has moved."""
        sum_gradients(parameters)
        with one_thread():
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.grad_clip or math.inf).item()
        check_finite(norm, "norm of the gradient", step)
        return norm

    def _move_weights(self, step: Step, adversarial: bool) -> None:
        """By their gradients; the discriminator's only once it has some."""
        for name, optimizer in self.optimizers.items():
            if name == "discriminator_optimizer" and not adversarial:
                continue
            largest = LARGEST_RATE_OF_DISCRIMINATOR if name == "discriminator_optimizer" else math.inf
            for group in optimizer.param_groups:
                group["lr"] = min(learning_rate(step.index, self.schedule, self.options), largest)
            with one_thread():
                optimizer.step()

    def epoch_figures(self) -> dict[str, float]:
        """Codes used, their perplexity, the rank of the latents, seconds of waiting for images, of the epoch that ends.

        All count anew.
        """
        usage, waited = statistics_of_counts(self.epoch_counts.cpu().numpy()), self.waited
        rank = effective_rank(covariance_of(self.epoch_moments).cpu().numpy())
        self.epoch_counts.zero_()
        self.epoch_moments.zero_()
        self.waited = 0.0
        return {
            "epoch_used_codes": usage.used_codes,
            "epoch_perplexity": usage.perplexity,
            "epoch_latent_rank": rank,
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
        return figures_of(measured, counts, self.result.quantize.vectors())

    def state_dict(self) -> dict[str, Any]:
        """Both networks and optimisers, the codebook's statistics, the moving average, what the epoch counted."""
        return {**self._besides_optimizers(), **_states(self.optimizers)}

    def _parts(self) -> dict[str, nn.Module | EMACodebook]:
        adversary = {} if self.adversary_start is None else {"discriminator": self.discriminator}
        parts: dict[str, nn.Module | EMACodebook | None] = {"model": self.model, "codebook": self.codebook}
        parts |= {"averaged": self.averaged, **adversary}
        return {name: part for name, part in parts.items() if part}

    def _besides_optimizers(self) -> dict[str, Any]:
        counted = {"epoch_counts": self.epoch_counts, "epoch_moments": self.epoch_moments}
        return {**counted, **_states(self._parts())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises StateMisfitError if it does not belong to this training."""
        besides = {name: part for name, part in state.items() if name not in self.optimizers}
        check_alike(besides, self._besides_optimizers(), "its state")
        for name, optimizer in self.optimizers.items():
            check_optimizer(state.get(name), optimizer, name)
        for name, optimizer in self.optimizers.items():
            load_whole_optimizer(optimizer, state[name])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.epoch_counts.copy_(state["epoch_counts"])
        self.epoch_moments.copy_(state["epoch_moments"])


def _states(parts: Mapping[str, nn.Module | EMACodebook | torch.optim.Optimizer]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def train_in_frequencies(model: VQGAN, encoder: bool) -> Frequencies | None:
    """Let a network be fed the frequencies of patches and give them; without `encoder`, give them alone.

    None for a network without patches.
    """
    if model.config.patch == 1:
        return None
    frequencies = Frequencies(model.config.image_channels, model.config.patch).to(next(model.parameters()).device)
    model.load_state_dict(unfold_frequencies(model.state_dict(), encoder, frequencies.matrix))
    assert isinstance(model.encoder, Encoder)
    assert isinstance(model.decoder, Decoder)
    model.encoder.frequencies, model.decoder.frequencies = frequencies if encoder else None, frequencies
    return frequencies


@torch.no_grad()
def latents_of(model: VQGAN, passes: Iterable[Tensor]) -> Tensor:
    """The latents (N, D, h, w) of images, passes of (n, C, H, W) uint8. Sets eval mode."""
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model.latents(to_unit_range(images.to(device))) for images in passes])


def _over_ranks(losses: dict[str, Tensor], share: float) -> dict[str, float]:
    """The means over the whole batch, read from the device at once."""
    values = sum_over_ranks(torch.stack([loss.detach() for loss in losses.values()]) * share)
    return dict(zip(losses, values.tolist(), strict=True))
