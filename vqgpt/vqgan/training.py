"""Training of the VQ-GAN, on uint8 images from anywhere.

    images (n, C, H, W) uint8 of each step -> a trained model in place, and its figures on the held-out images

The generator's loss is L1 + L2 on the pixels, the perceptual loss, the adversarial term, and the codebook term. One
forward of the generator serves both optimisers; on a CPU each thread takes its part of the batch through it.
"""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
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
from vqgpt.tokens.arrays import effective_rank, statistics_of_counts
from vqgpt.training.schedule import Schedule, Step, check_finite
from vqgpt.training.weights import add_gradients, check_alike, check_optimizer, load_whole_optimizer, move_average
from vqgpt.vqgan.adversary import PatchDiscriminator, adaptive_weight, judge
from vqgpt.vqgan.codebook import (
    EMACodebook,
    codebook_term,
    covariance_of,
    moments_of,
    start_codebook,
    to_vectors,
)
from vqgpt.vqgan.coding import figures_of, images_per_pass, likeness, reconstruct, to_unit_range
from vqgpt.vqgan.latent_norm import LatentNorm, fold_latent_norm
from vqgpt.vqgan.model import VQGAN, Quantization
from vqgpt.vqgan.optimizers import adam, first_adversarial_step, learning_rate, new_optimizers
from vqgpt.vqgan.options import VQGANTrainingOptions
from vqgpt.vqgan.perceptual import PerceptualLoss

SHOWN_IMAGES = 16
START_VECTORS = 2**14  # latents that the codebook starts from


class _Pass(NamedTuple):
    """Some images of a batch, decoded from `latents`, a leaf: their reconstructions and their part of the losses.

    `image_gradient` is that of the losses by the reconstructions.
    """

    latents: Tensor
    images: Tensor
    losses: dict[str, Tensor]
    image_gradient: Tensor


class TrainingImages(Protocol):
    """The images to train on, by their rows: (n, C, H, W) uint8 on the CPU. Both methods raise InputError,
    MissingDataError or ResourceError where one cannot be read, which names it.
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
        self.model, self.perceptual_loss, self.images, self.held_out = model, perceptual_loss, images, held_out
        self.options, self.schedule, self.precision, self.show = options, schedule, precision, show
        assert model.config.size is not None
        self.device, size = model.decoder.conv_out.weight.device, model.config.size
        device = self.device
        self.perceptual_weight = 1.0 if options.perceptual_weight is None else options.perceptual_weight
        vectors_per_image = math.prod(model.config.grid(size))
        if options.normalise_latents and model.config.can_normalise_latents:
            model.latent_norm = LatentNorm(model.config.embed_dim).to(device)
        self._start_from_latents(size)
        self.codebook: EMACodebook | None = None
        self.decoder_only = options.train == "decoder"
        if self.decoder_only:
            for part in (model.encoder, model.quant_conv, model.quantize):
                part.requires_grad_(False)
        elif options.codebook == "ema":
            vectors_per_step = options.batch_size * vectors_per_image
            self.codebook = EMACodebook(model.quantize, *options.moving_average_of_codes, vectors_per_step)
        self.encoder_parameters = _trained(model.encoder, model.quant_conv)
        self.codebook_parameters = _trained(model.quantize)
        self.decoder_parameters = _trained(model.post_quant_conv, model.decoder)
        self.parameters = [*self.encoder_parameters, *self.codebook_parameters, *self.decoder_parameters]
        self.optimizers = new_optimizers(model, self.parameters, options)
        self.adversary_start = first_adversarial_step(options, schedule)
        if self.adversary_start is not None:
            torch.manual_seed(derived_seed(schedule.seed, "discriminator"))
            self.discriminator = PatchDiscriminator(model.config.image_channels, size).to(device)
            self.optimizers["discriminator_optimizer"] = adam(list(self.discriminator.parameters()), options)
        self.averaged = copy.deepcopy(model) if options.ema else None
        one_pass = device.type != "cpu" or model.config.dropout > 0  # whose draws have an order
        self.threads = 1 if one_pass else torch.get_num_threads()
        self.workers = new_workers(self.threads) if self.threads > 1 else None
        winograd = options.winograd == "auto" and not one_pass
        self.convolutions = fast_convolutions(device, precision) if winograd else nullcontext()
        self.epoch_counts = torch.zeros(model.config.codebook_size, dtype=torch.int64, device=device)
        self.epoch_moments = torch.zeros(2 * (model.config.embed_dim + 1,), device=device)  # of latents
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
        """Of the result, whose normalisation of latents is in its last convolution before the codebook."""
        weights = self.result.state_dict()
        return fold_latent_norm(weights) if self.result.latent_norm else weights

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
        if self.decoder_only:
            self.model.encoder.eval()  # codes are those of token caches: no dropout
        share = local_share(step.rows)
        images = to_unit_range(pixels.to(self.device))
        compute = self.workers.map if self.workers else map
        parts = images.split(math.ceil(len(images) / self.threads))
        encoded = list(compute(self._encode, parts))
        latents = torch.cat([each.detach() for each in encoded]).requires_grad_()
        out = self._quantize(latents, share)
        passes = list(
            compute(partial(self._decode, batch=len(images)), parts, _split_like(out.straight_through, parts))
        )
        losses = {name: torch.stack([each.losses[name] for each in passes]).sum() for name in passes[0].losses}
        losses["codebook_loss"] = self.options.codebook_weight * codebook_term(
            out.latents, out.quantized, self.options.codebook
        )
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

        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        of_decoded = []
        for each in compute(self._decoder_gradients, passes, [share * gradient for gradient in image_gradients]):
            of_decoded.append(each[0])  # in order
            add_gradients(self.decoder_parameters, each[1:])
        if not self.decoder_only:
            of_latents, *of_codebook = torch.autograd.grad(
                [out.straight_through, losses["codebook_loss"] * share],
                [latents, *self.codebook_parameters],
                [torch.cat(of_decoded), None],
            )
            add_gradients(self.codebook_parameters, of_codebook)
            for gradients in compute(self._encoder_gradients, encoded, _split_like(of_latents, parts)):
                add_gradients(self.encoder_parameters, gradients)
        figures["gradient_norm"] = self._finite_norm(self.parameters, step)
        if adversarial:
            (losses["discriminator_loss"] * share).backward()
            self._finite_norm(list(self.discriminator.parameters()), step)
        self._move_weights(step, adversarial)
        if self.model.latent_norm:
            self.model.latent_norm.follow()
        codes = out.codes.flatten()
        if self.codebook:
            self.codebook.update(out.latents.detach(), codes, counted=share > 0)
        self.epoch_moments += sum_over_ranks(moments_of(to_vectors(out.latents.detach())) * (share > 0))
        counts = torch.bincount(codes, minlength=len(self.epoch_counts)) * (share > 0)
        self.epoch_counts += sum_over_ranks(counts)
        if self.averaged:
            move_average(self.averaged, self.model, self.options.ema, step.index)
        return figures

    def _encode(self, images: Tensor) -> Tensor:
        """Some images of a batch -> their latents before normalisation and codebook, which look at the whole batch."""
        with autocast(images.device, self.precision), self.convolutions:
            return self.model.encoder_latents(images)

    def _quantize(self, latents: Tensor, share: float) -> Quantization:
        """The latents of a batch -> what stands for them."""
        norm = self.model.latent_norm
        return self.model.quantize_latents(norm(latents, counted=share > 0) if norm else latents)

    def _decode(self, images: Tensor, latents: Tensor, batch: int) -> _Pass:
        """Some images of a batch of so many, from what stands for their latents."""
        leaf = latents.detach().requires_grad_()
        with autocast(images.device, self.precision), self.convolutions:
            decoded = self.model.decode_latents(leaf)
        weight = len(images) / batch
        losses = {"pixel_loss": weight * reconstruction_loss(decoded, images)}
        if self.perceptual_loss:
            with autocast(images.device, self.precision), self.convolutions:
                distances = self.perceptual_loss(images, decoded)
            losses["perceptual_loss"] = weight * self.perceptual_weight * distances.mean()
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), decoded)
        return _Pass(leaf, decoded, {name: loss.detach() for name, loss in losses.items()}, gradient)

    def _decoder_gradients(self, each: _Pass, image_gradient: Tensor) -> tuple[Tensor, ...]:
        """Of what was decoded, then of the decoder's parameters."""
        return torch.autograd.grad(each.images, [each.latents, *self.decoder_parameters], image_gradient)

    def _encoder_gradients(self, encoded: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(encoded, self.encoder_parameters, gradient)

    def _judge(self, images: Tensor, passes: list[_Pass], share: float) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The weighted gradient of the adversarial loss by each pass's reconstructions, and both sides' losses."""
        with autocast(images.device, self.precision):
            judgement = judge(self.discriminator, images, torch.cat([each.images.detach() for each in passes]))
        gradients = judgement.gradient.split([len(each.images) for each in passes])
        last_layer = self.model.decoder.conv_out.weight

        def at_last_layer(sides: Iterable[Tensor]) -> Tensor:
            of_passes = [
                torch.autograd.grad(each.images, last_layer, side, retain_graph=True)[0]
                for each, side in zip(passes, sides, strict=True)
            ]
            return sum_over_ranks(share * torch.stack(of_passes).sum(dim=0))

        weight = self.options.disc_weight * adaptive_weight(
            at_last_layer(each.image_gradient for each in passes), at_last_layer(gradients)
        )
        return tuple(weight * gradient for gradient in gradients), {
            "adversarial_loss": weight * judgement.adversarial_loss,
            "discriminator_loss": judgement.discriminator_loss,
        }

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
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step.index, self.schedule, self.options)
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


@torch.no_grad()
def latents_of(model: VQGAN, passes: Iterable[Tensor]) -> Tensor:
    """The latents (N, D, h, w) of images, passes of (n, C, H, W) uint8. Sets eval mode."""
    model.eval()
    device = model.decoder.conv_out.weight.device
    return torch.cat([model.latents(to_unit_range(images.to(device))) for images in passes])


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute plus mean squared error of the pixels: L1 for sharp edges, L2 because PSNR measures it."""
    return F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)


def _trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [weight for module in modules for weight in module.parameters() if weight.requires_grad]


def _split_like(batch: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A batch in parts of as many images as these."""
    return batch.split([len(part) for part in parts])


def _over_ranks(losses: dict[str, Tensor], share: float) -> dict[str, float]:
    """The means over the whole batch, read from the device at once."""
    values = sum_over_ranks(torch.stack([loss.detach() for loss in losses.values()]) * share)
    return dict(zip(losses, values.tolist(), strict=True))
