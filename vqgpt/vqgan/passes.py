"""How a batch goes through a VQ-GAN in training, and its gradients back.

    images (B, C, H, W) float in [-1, 1]  ->  losses by name, codes, and the gradients of all weights

The loss is L1 + L2 on the pixels, the perceptual loss, the adversarial term, and the codebook term. On a CPU each
thread takes its part of the batch through the encoder, and then through the decoder; between them, normalisation and
codebook look at the whole batch. One forward serves the adversary too.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.kernels.winograd import fast_convolutions
from vqgpt.options.codec import one_line
from vqgpt.runtime.device import autocast, new_workers, sum_over_ranks
from vqgpt.training.weights import add_gradients
from vqgpt.vqgan.adversary import PatchDiscriminator, adaptive_weight, judge
from vqgpt.vqgan.codebook import codebook_term
from vqgpt.vqgan.model import VQGAN, Quantization
from vqgpt.vqgan.options import VQGANTrainingOptions
from vqgpt.vqgan.perceptual import PerceptualLoss


class _Part(NamedTuple):
    """Some images of a batch, decoded from `latents`, a leaf: their reconstructions and their part of the losses."""

    latents: Tensor
    images: Tensor
    losses: dict[str, Tensor]
    image_gradient: Tensor  # of the losses by the reconstructions


@dataclass
class Batch:
    """A batch on its way: what came in, in parts, what was made of it, and the losses so far.

    `latents` are the leaf that the codebook starts from; `image_gradients` are those of all losses by each part's
    reconstructions.
    """

    images: Tensor
    encoded: list[Tensor]
    latents: Tensor
    quantized: Quantization
    decoded: list[_Part]
    losses: dict[str, Tensor]
    image_gradients: list[Tensor]

    __repr__ = one_line


class Passes:
    """A network in training, whose parameters are divided by where their gradients come from.

    What is frozen gets none. `perceptual_loss` is None for none.
    """

    def __init__(
        self, model: VQGAN, perceptual_loss: PerceptualLoss | None, options: VQGANTrainingOptions, precision: str
    ) -> None:
        self.model, self.perceptual_loss, self.options, self.precision = model, perceptual_loss, options, precision
        self.perceptual_weight = 1.0 if options.perceptual_weight is None else options.perceptual_weight
        self.of_encoder = _trained(model.encoder, model.quant_conv)
        self.of_codebook = _trained(model.quantize)
        self.of_decoder = _trained(model.post_quant_conv, model.decoder)
        self.parameters = [*self.of_encoder, *self.of_codebook, *self.of_decoder]
        device = self.of_decoder[0].device
        one_pass = device.type != "cpu" or model.config.dropout > 0  # whose draws have an order
        self.threads = 1 if one_pass else torch.get_num_threads()
        workers = new_workers(self.threads) if self.threads > 1 else None
        self.compute = workers.map if workers else map
        winograd = options.winograd == "auto" and not one_pass
        self.convolutions = fast_convolutions(device, precision) if winograd else nullcontext()

    def forward(self, images: Tensor, share: float, perceptual: bool) -> Batch:
        """The images of a rank, which are `share` of the batch; all ranks call it together.

        `perceptual` is whether the perceptual loss has started.
        """
        parts = images.split(math.ceil(len(images) / self.threads))
        encoded = list(self.compute(self._encode, parts))
        latents = torch.cat([each.detach() for each in encoded]).requires_grad_()
        norm = self.model.latent_norm
        quantized = self.model.quantize_latents(norm(latents, counted=share > 0) if norm else latents)
        perceptual_loss = self.perceptual_loss if perceptual else None
        decode = partial(self._decode, batch=len(images), perceptual_loss=perceptual_loss)
        decoded = list(self.compute(decode, parts, _split_like(quantized.straight_through, parts)))
        losses = {name: torch.stack([each.losses[name] for each in decoded]).sum() for name in decoded[0].losses}
        if self.of_encoder:
            term = codebook_term(quantized.latents, quantized.quantized, self.options.codebook)
            losses["codebook_loss"] = self.options.codebook_weight * term
        gradients = [each.image_gradient for each in decoded]
        return Batch(images, encoded, latents, quantized, decoded, losses, gradients)

    def _encode(self, images: Tensor) -> Tensor:
        """Latents of some images of a batch; without a graph where the encoder is frozen."""
        trains = torch.set_grad_enabled(bool(self.of_encoder))
        with trains, autocast(images.device, self.precision), self.convolutions:
            return self.model.encoder_latents(images)

    def _decode(self, images: Tensor, latents: Tensor, batch: int, perceptual_loss: PerceptualLoss | None) -> _Part:
        """Some images of a batch of so many, from what stands for their latents."""
        leaf = latents.detach().requires_grad_()
        with autocast(images.device, self.precision), self.convolutions:
            decoded = self.model.decode_latents(leaf)
        weight = len(images) / batch
        losses = {"pixel_loss": weight * reconstruction_loss(decoded, images)}
        if perceptual_loss:
            with autocast(images.device, self.precision), self.convolutions:
                distances = perceptual_loss(images, decoded)
            losses["perceptual_loss"] = weight * self.perceptual_weight * distances.mean()
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), decoded)
        return _Part(leaf, decoded, {name: loss.detach() for name, loss in losses.items()}, gradient)

    def judge(self, batch: Batch, discriminator: PatchDiscriminator, share: float) -> None:
        """Add what a discriminator finds of the reconstructions to the losses and to their gradients."""
        with autocast(batch.images.device, self.precision):
            found = judge(discriminator, batch.images, torch.cat([each.images.detach() for each in batch.decoded]))
        gradients = _split_like(found.gradient, batch.image_gradients)
        last_layer = self.model.decoder.conv_out.weight

        def at_last_layer(sides: Iterable[Tensor]) -> Tensor:
            of_parts = [
                torch.autograd.grad(each.images, last_layer, side, retain_graph=True)[0]
                for each, side in zip(batch.decoded, sides, strict=True)
            ]
            return sum_over_ranks(share * torch.stack(of_parts).sum(dim=0))

        weight = self.options.disc_weight * adaptive_weight(
            at_last_layer(batch.image_gradients), at_last_layer(gradients)
        )
        batch.image_gradients = [a + weight * b for a, b in zip(batch.image_gradients, gradients, strict=True)]
        batch.losses["adversarial_loss"] = weight * found.adversarial_loss
        batch.losses["discriminator_loss"] = found.discriminator_loss

    def backward(self, batch: Batch, share: float) -> None:
        """Add this rank's share of the gradients to those of the parameters, part by part in their order."""
        of_decoded = []
        sides = [share * gradient for gradient in batch.image_gradients]
        for of_latents, *gradients in self.compute(self._through_decoder, batch.decoded, sides):
            of_decoded.append(of_latents)
            add_gradients(self.of_decoder, gradients)
        if not self.of_encoder:
            return
        of_all, *gradients = torch.autograd.grad(
            [batch.quantized.straight_through, batch.losses["codebook_loss"] * share],
            [batch.latents, *self.of_codebook],
            [torch.cat(of_decoded), None],
        )
        add_gradients(self.of_codebook, gradients)
        for through_encoder in self.compute(self._through_encoder, batch.encoded, _split_like(of_all, batch.encoded)):
            add_gradients(self.of_encoder, through_encoder)

    def _through_decoder(self, part: _Part, side: Tensor) -> tuple[Tensor, ...]:
        """The gradient by what was decoded, and those by the decoder's parameters."""
        return torch.autograd.grad(part.images, [part.latents, *self.of_decoder], side)

    def _through_encoder(self, encoded: Tensor, side: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(encoded, self.of_encoder, side)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute plus mean squared error of the pixels: L1 for sharp edges, L2 because PSNR measures it."""
    return F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)


def _trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [weight for module in modules for weight in module.parameters() if weight.requires_grad]


def _split_like(batch: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A batch in parts of as many images as these."""
    return batch.split([len(part) for part in parts])
