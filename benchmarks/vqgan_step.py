"""How fast the VQ-GAN trains and encodes, beside what the machine can do.

    python benchmarks/vqgan_step.py [--batch 64] [--rounds 3] [--precision fp32 bf16]

The default network (32 x 32 RGB) on random images. For each loss: images/s of whole training steps (batch from memory,
losses, clipping, optimisers, codebook), of the bare step (forward and backward of the networks on one fixed batch), and
their ratio; then the encoder alone. Medians of interleaved rounds. Beside them the arithmetic of a training image, and
the FLOP/s that the bare step reaches, against a 1024 x 1024 x 1024 float32 matrix product in the same rounds: where the
two are equal, only less arithmetic could be faster. The perceptual loss runs on random weights here: its speed is the
same, and nothing is downloaded.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from vqgpt.config.vqgan import VQGANConfig, VQGANOptions, VQGANTrainingOptions
from vqgpt.memory import keep_memory_pages
from vqgpt.pixels import to_unit_range
from vqgpt.runtime import autocast
from vqgpt.schedule import Schedule, Step
from vqgpt.torchvision_import import import_torchvision
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.perceptual import FEATURE_CHANNELS, PerceptualLoss
from vqgpt.vqgan.training import VQGANTraining

SIZE = 32
LOSSES = {
    "pixels": {"disc_weight": 0.0},
    "pixels, discriminator": {"disc_start": 0, "warmup": 0},
    "pixels, discriminator, LPIPS": {"disc_start": 0, "warmup": 0, "perceptual_weight": 1.0},
}


def new_training(batch: int, precision: str, losses: dict) -> VQGANTraining:
    """A training of the default network on four batches of random images."""
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig.of(VQGANOptions(), 3, SIZE))
    images = torch.randint(256, (4 * batch, 3, SIZE, SIZE), dtype=torch.uint8)
    options = VQGANTrainingOptions(batch_size=batch, n_epochs=1000, **losses)
    schedule = Schedule(seed=0, num_rows=len(images), batch_size=batch, n_epochs=options.n_epochs)
    perceptual_loss = None
    if options.perceptual_weight:
        features = import_torchvision("models").vgg16(weights=None).features
        perceptual_loss = PerceptualLoss(features, [torch.rand(width) for width in FEATURE_CHANNELS])
    return VQGANTraining(model, perceptual_loss, images, images[:batch], options, schedule, precision, lambda *_: None)


def next_step(training: VQGANTraining, steps: Iterator[Step]) -> None:
    """One whole step."""
    training.take_step(next(steps))


def bare_step(training: VQGANTraining, images: torch.Tensor, precision: str) -> None:
    """Forward and backward of the networks that the losses need, each as often as they must, on a fixed batch."""
    training.model.zero_grad()
    with autocast(images.device, precision):
        out = training.model(images)
        loss = out.images.abs().mean()
        if training.perceptual_loss:
            loss = loss + training.perceptual_loss(images, out.images).mean()
        if training.adversary_start is not None:
            loss = loss - training.discriminator(out.images).mean()
            decoys = out.images.detach()
            judged = training.discriminator(images).mean() + training.discriminator(decoys).mean()
            judged.backward()
    loss.backward()


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


def main() -> None:
    """Print a table per precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    arguments = parser.parse_args()
    keep_memory_pages()
    matrix = torch.randn(1024, 1024)
    for precision in arguments.precision:
        trainings = {name: new_training(arguments.batch, precision, losses) for name, losses in LOSSES.items()}
        images = to_unit_range(next(iter(trainings.values())).images[: arguments.batch])
        calls: dict[str, Callable[[], object]] = {"matrix": partial(torch.mm, matrix, matrix)}
        for name, training in trainings.items():
            steps = training.schedule.steps(0)
            calls[f"{name}: step"] = partial(next_step, training, steps)
            calls[f"{name}: bare"] = partial(bare_step, training, images, precision)
        calls["encoder"] = partial(encode, training, images, precision)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()  # to warm up
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
        middle = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"{precision}, batch {arguments.batch}: matrix product {2 * 1024**3 / middle['matrix'] / 1e9:.0f} GFLOP/s"
        )
        print(f"{'losses':32} {'step img/s':>10} {'bare img/s':>10} {'ratio':>6} {'GFLOP/img':>10} {'GFLOP/s':>8}")
        for name, training in trainings.items():
            with FlopCounterMode(display=False) as counter:
                bare_step(training, images, precision)
            flops = counter.get_total_flops()
            step, bare = middle[f"{name}: step"], middle[f"{name}: bare"]
            print(
                f"{name:32} {arguments.batch / step:10.1f} {arguments.batch / bare:10.1f} {bare / step:6.2f} "
                f"{flops / arguments.batch / 1e9:10.1f} {flops / bare / 1e9:8.0f}"
            )
        print(f"{'encoder alone':32} {arguments.batch / middle['encoder']:10.1f}\n")


if __name__ == "__main__":
    main()
