"""How fast the VQ-GAN trains and encodes, beside the original's way to do it and beside what the machine can do.

    python benchmarks/vqgan_step.py [--rounds 3] [--losses pixels discriminator lpips stlpips] [--precision fp32 bf16]

The default network (32 x 32 RGB) on random images, batch 64, with four losses: of the pixels alone, with the
discriminator, with either perceptual loss too. Images/s of whole training steps (batch from memory, losses, clipping,
optimisers, codebook); of a step as taming-transformers arranges it; of the bare step, which is forward and backward of
the networks on one fixed batch, with plain convolutions; and of the encoder alone. Medians of interleaved rounds, with
a 1024 x 1024 x 1024 float32 matrix product in each: beside its GFLOP/s those that the bare step reaches. Where the two
are equal, only less arithmetic can be faster. The perceptual loss runs on random weights here: its speed is the same,
and nothing is downloaded. glibc's allocator keeps its pages for all of them, the original's included.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vqgpt.data.training_images import LoadedImages
from vqgpt.runtime.device import autocast
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.training.schedule import Schedule, Step
from vqgpt.vqgan.adversary import adaptive_weight, hinge_loss
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.coding import to_unit_range
from vqgpt.vqgan.model import VQGAN, AttnBlock
from vqgpt.vqgan.options import PerceptualKind, VQGANOptions, VQGANTrainingOptions
from vqgpt.vqgan.perceptual import untrained_perceptual_loss
from vqgpt.vqgan.training import VQGANTraining

SIZE = 32
LOSSES: dict[str, dict[str, Any]] = {
    "pixels": {"disc_weight": 0.0},
    "discriminator": {"disc_start": 0, "warmup": 0},
    "lpips": {"disc_start": 0, "warmup": 0, "perceptual": "lpips"},
    "stlpips": {"disc_start": 0, "warmup": 0, "perceptual": "stlpips"},
}


def new_training(batch: int, precision: str, losses: dict[str, Any]) -> VQGANTraining:
    """A training of the default network on four batches of random images."""
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig.of(VQGANOptions(), 3, SIZE))
    images = torch.randint(256, (4 * batch, 3, SIZE, SIZE), dtype=torch.uint8)
    options = VQGANTrainingOptions(batch_size=batch, n_epochs=1000, **losses)
    schedule = Schedule(seed=0, num_rows=len(images), batch_size=batch, n_epochs=options.n_epochs)
    kind: PerceptualKind | None = None if options.perceptual == "off" else options.perceptual
    perceptual_loss = untrained_perceptual_loss(kind) if kind else None
    loaded = LoadedImages(images)
    held_out = partial(loaded.passes, torch.arange(batch), batch)
    return VQGANTraining(model, perceptual_loss, loaded, held_out, options, schedule, precision, lambda *_: None)


def next_step(training: VQGANTraining, steps: Iterator[Step]) -> None:
    """One whole step."""
    training.take_step(next(steps))


def first_batch(training: VQGANTraining) -> torch.Tensor:
    """The images of the first step, -1 to 1."""
    return to_unit_range(training.images.batch(next(training.schedule.outlook(0))))


def bare_step(training: VQGANTraining, images: torch.Tensor, precision: str) -> None:
    """Forward and backward of the networks that the losses need, each as often as they must, on a fixed batch."""
    training.model.zero_grad()
    with autocast(images.device, precision):
        out = training.model(images)
        loss = out.images.abs().mean()
        if training.passes.perceptual_loss:
            loss = loss + training.passes.perceptual_loss(images, out.images).mean()
        if training.adversary_start is not None:
            loss = loss - training.discriminator(out.images).mean()
            decoys = out.images.detach()
            judged = training.discriminator(images).mean() + training.discriminator(decoys).mean()
            judged.backward()
    loss.backward()


class Original:
    """A training step as taming-transformers arranges it, on the same networks.

    Contiguous memory; attention with all its weights in memory; the codebook by a matrix of all distances, trained by
    its loss; the perceptual loss with a graph for both images; the discriminator's passes and the gradients for the
    adaptive weight on their own; optimisers that take one parameter at a time.
    """

    def __init__(self, batch: int, losses: dict[str, Any]) -> None:
        self.training = new_training(batch, "fp32", {**losses, "codebook": "loss", "winograd": "off"})
        networks: list[nn.Module] = [self.training.model]
        self.perceptual_loss = self.training.passes.perceptual_loss
        if self.perceptual_loss:
            self.perceptual_loss.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.adversarial = self.training.adversary_start is not None
        if self.adversarial:
            networks.append(self.training.discriminator)
        self.optimizers = []
        for network in networks:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            self.optimizers.append(torch.optim.Adam(network.parameters(), lr=4.5e-6, betas=(0.5, 0.9), foreach=False))
        for module in self.training.model.modules():
            if isinstance(module, AttnBlock):
                module.forward = partial(attend, module)  # type: ignore[method-assign]

    def reconstruct(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions and the codebook's loss."""
        model = self.training.model
        latents = model.quant_conv(model.encoder(images))
        vectors, codes = latents.permute(0, 2, 3, 1).flatten(0, 2), model.quantize.embedding.weight
        distances = vectors.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * vectors @ codes.T
        quantized = codes[distances.argmin(1)].view(latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).contiguous()
        loss = F.mse_loss(quantized, latents.detach()) + 0.25 * F.mse_loss(latents, quantized.detach())
        return model.decoder(model.post_quant_conv(latents + (quantized - latents).detach())), loss

    def take_step(self, images: torch.Tensor) -> None:
        """One step of the generator, and one of the discriminator."""
        training = self.training
        reconstructions, loss = self.reconstruct(images)
        image_loss = F.l1_loss(reconstructions, images) + F.mse_loss(reconstructions, images)
        if self.perceptual_loss:
            image_loss = image_loss + self.perceptual_loss(images.clone().requires_grad_(), reconstructions).mean()
        if self.adversarial:
            adversarial_loss = -training.discriminator(reconstructions).mean()
            last_layer = training.model.decoder.conv_out.weight
            gradients = [
                torch.autograd.grad(part, last_layer, retain_graph=True)[0] for part in (image_loss, adversarial_loss)
            ]
            loss = loss + adaptive_weight(*gradients).detach() * adversarial_loss
        self.optimizers[0].zero_grad()
        (image_loss + loss).backward()
        self.optimizers[0].step()
        if self.adversarial:
            judged = training.discriminator(images), training.discriminator(reconstructions.detach())
            self.optimizers[1].zero_grad()
            hinge_loss(*judged).backward()
            self.optimizers[1].step()


def attend(block: AttnBlock, x: torch.Tensor) -> torch.Tensor:
    """What `block` computes, by plain matrix products."""
    y = block.norm(x)
    q, k, v = (project(y).flatten(2) for project in (block.q, block.k, block.v))
    weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=2)
    return x + block.proj_out((v @ weights.transpose(1, 2)).view(x.shape))


@torch.no_grad()
def encode(training: VQGANTraining, images: torch.Tensor, precision: str) -> None:
    """Images to codes."""
    training.model.eval()
    with autocast(images.device, precision):
        training.model.encode(images)
    training.model.train()


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(losses: str, batch: int, precision: str, rounds: int) -> dict[str, float]:
    """The medians, over interleaved rounds, of the seconds of each kind of step, the encoder and a matrix product."""
    training = new_training(batch, precision, LOSSES[losses])
    images = first_batch(training)
    matrix = torch.randn(1024, 1024)
    calls: dict[str, Callable[[], object]] = {
        "matrix": partial(torch.mm, matrix, matrix),
        "step": partial(next_step, training, training.schedule.steps(0)),
        "bare": partial(bare_step, training, images, precision),
        "encoder": partial(encode, training, images, precision),
    }
    if precision == "fp32":
        calls["original"] = partial(Original(batch, LOSSES[losses]).take_step, images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call)
            if index > 0:  # the first is to warm up
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def flops_per_image(losses: str, precision: str) -> float:
    """Floating-point operations of a bare step with plain convolutions, per image."""
    training = new_training(2, precision, LOSSES[losses])
    with FlopCounterMode(display=False) as counter:
        bare_step(training, first_batch(training), precision)
    return counter.get_total_flops() / 2


def main() -> None:
    """Print a table per precision, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    arguments = parser.parse_args()
    keep_memory_pages()
    for precision in arguments.precision:
        print(f"{precision}, batch {arguments.batch}; images/s; GFLOP/s of a matrix product, and of the bare step")
        columns = ("step", "original", "ratio", "bare", "ratio", "encoder", "matrix", "GFLOP/s", "GFLOP/image")
        print(f"{'':14}", *(f"{column:>9}" for column in columns))
        for losses in arguments.losses:
            times = measure(losses, arguments.batch, precision, arguments.rounds)
            speeds = {name: arguments.batch / value for name, value in times.items()}
            original = speeds.get("original", math.nan)
            flops = flops_per_image(losses, precision)
            figures = [speeds["step"], original, speeds["step"] / original, speeds["bare"]]
            figures += [speeds["step"] / speeds["bare"], speeds["encoder"], 2 * 1024**3 / times["matrix"] / 1e9]
            figures += [flops * speeds["bare"] / 1e9, flops / 1e9]
            print(f"{losses:14}", *(f"{figure:9.2f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
