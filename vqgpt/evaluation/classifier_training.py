"""The fixed recipe by which a classifier is trained on real images.

    real images (N, C, H, W) uint8 with labels (N,)  ->  Classifier

AdamW with a one-cycle learning rate (Smith and Topin 2017), label smoothing and random shifts. On a CPU the result is a
pure function of the images, the seed and the number of threads. Must not import commands or `api`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.errors import InputError
from vqgpt.evaluation.classifier import LARGEST_SIZE, Classifier, ClassifierNetwork, classes_of, resized, scaled
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.runtime.device import derived_seed, epoch_order

TASK = "train classifier"
RECIPE_VERSION = 1
MOST_EPOCHS = 15
FEWEST_STEPS = 100  # of small sets, which have more epochs
MOST_IMAGES = 300_000  # through the network, over all epochs
BATCH = 128
LEARNING_RATE = 5e-3
WARMUP = 0.25  # share of the steps
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
LARGEST_SHIFT = 1 / 8  # of the size
TIMED_STEPS = 3
SEED = 0


@dataclass(frozen=True, kw_only=True)
class _Training:
    """A network, and the images (N, size, size, C) uint8 with labels (N,) that it learns, all on one device."""

    pixels: Tensor
    labels: Tensor
    network: ClassifierNetwork
    optimizer: torch.optim.Optimizer

    __repr__ = one_line

    def step(self, rows: Tensor, learning_rate: float, mirror: bool, seed: int) -> None:
        """Learn from the images `rows` (B,). A pure function of the seed, on a CPU."""
        rows = rows.to(self.pixels.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        scores = self.network(_shifted(self.pixels, rows, mirror, seed))
        self.optimizer.zero_grad()
        F.cross_entropy(scores, self.labels[rows], label_smoothing=LABEL_SMOOTHING).backward()
        self.optimizer.step()


def train_classifier(
    images: Tensor,
    labels: Tensor,
    held_out: Tensor,
    held_out_labels: Tensor,
    class_names: Sequence[str],
    images_sha256: str,
    device: torch.device,
    report: Report,
    mirror: bool = False,
    seed: int = SEED,
) -> Classifier:
    """Train on images (N, C, H, W) uint8 with labels (N,) int64; those with label -1 are left out.

    With `mirror`, half of the images are mirrored, left to right. Nothing is written. Raises InputError if fewer than
    two classes have images, or if no held-out image has a label.
    """
    images, labels = _labelled(images, labels)
    held_out, held_out_labels = _labelled(held_out, held_out_labels)
    if len(labels.unique()) < 2:
        raise InputError("the training images have fewer than two classes", "use features that need no classes")
    if not len(held_out):
        raise InputError("no held-out image has a label", "use features that need no classes")
    training, order = _new_training(images, labels, len(class_names), device, seed), _order(len(images), seed)
    done, total = 0, sum(map(len, order))
    for index, rows in enumerate(order):
        training.step(rows, _learning_rate(index, len(order)), mirror, derived_seed(seed, "shift", index))
        done += len(rows)
        if done < total:
            report(Progress(task=TASK, done=done, total=total, unit="images"))
    classifier = Classifier(
        network=training.network.eval(),
        class_names=tuple(class_names),
        size=training.pixels.shape[1],
        channels=images.shape[1],
        accuracy=0.0,
        about={
            "images_sha256": images_sha256,
            "recipe": RECIPE_VERSION,
            "mirror": mirror,
            "seed": seed,
            "images": len(images),
            "epochs": _epochs(len(images)),
        },
    )
    right = classes_of(classifier, held_out).cpu() == held_out_labels
    accuracy = float(right.float().mean())
    report(Progress(task=TASK, done=total, total=total, unit="images", values={"accuracy": accuracy}))
    return replace(classifier, accuracy=accuracy)


def expected_seconds(images: Tensor, labels: Tensor, class_names: Sequence[str], device: torch.device) -> float:
    """How long `train_classifier` will take here, in seconds: a few steps are timed."""
    count = int((labels >= 0).sum())
    rows = torch.arange(min(BATCH, count))
    if len(rows) < 2:
        return 0.0
    training = _new_training(images[: len(rows)], labels[: len(rows)].clamp(min=0), len(class_names), device, SEED)
    seconds = []
    for index in range(1 + TIMED_STEPS):  # the first is slower
        start = time.perf_counter()
        training.step(rows, 0.0, False, index)
        training.network.head.bias.sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds) * _epochs(count) * _steps_per_epoch(count)


def _labelled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images that have a label, and their labels."""
    kept = labels >= 0
    return (images, labels) if kept.all() else (images[kept], labels[kept])


def _shifted(pixels: Tensor, rows: Tensor, mirror: bool, seed: int) -> Tensor:
    """Images `rows` (B,) of `pixels` (N, H, W, C) uint8, each shifted, as the network sees them: (B, C, H, W) float32.

    Pixels at the edge are repeated beyond it. A pure function of the seed.
    """
    count, size, device = len(rows), pixels.shape[1], pixels.device
    generator, most = torch.Generator().manual_seed(seed), round(size * LARGEST_SHIFT)
    shifts = torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    places = (torch.arange(size) + shifts).clamp(0, size - 1)  # (2, B, size)
    if mirror:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        places[1] = torch.where(mirrored, places[1].flip(1), places[1])
    down, across = places.to(device)
    return scaled(pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]).permute(0, 3, 1, 2)


def _new_training(images: Tensor, labels: Tensor, classes: int, device: torch.device, seed: int) -> _Training:
    size = min(max(images.shape[2:]), LARGEST_SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "classifier"))
        network = ClassifierNetwork(classes, size, images.shape[1]).to(device)
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return _Training(
        pixels=resized(images, size).permute(0, 2, 3, 1).contiguous().to(device),
        labels=labels.to(device),
        network=network.train(),
        optimizer=torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True),
    )


def _learning_rate(index: int, steps: int) -> float:
    """Up in a straight line, then down along a cosine to 0: one cycle."""
    done = (index + 0.5) / steps
    return LEARNING_RATE * (done / WARMUP if done < WARMUP else math.cos((done - WARMUP) / (1 - WARMUP) * math.pi / 2))


def _epochs(images: int) -> int:
    most = max(MOST_EPOCHS, FEWEST_STEPS // _steps_per_epoch(images))
    return max(1, min(most, round(MOST_IMAGES / images)))


def _steps_per_epoch(images: int) -> int:
    return max(1, images // BATCH)


def _order(images: int, seed: int) -> list[Tensor]:
    """The rows of each step, (B,) int64. An epoch leaves out what does not fill a batch: another part each time."""
    count = _steps_per_epoch(images)
    epochs = [epoch_order(seed, epoch, images)[: count * BATCH] for epoch in range(_epochs(images))]
    return [rows for epoch in epochs for rows in epoch.tensor_split(count)]
