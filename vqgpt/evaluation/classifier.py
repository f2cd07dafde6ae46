"""A small classifier of real images, trained here by one fixed recipe, to measure samples of the same data.

    real images (N, C, H, W) uint8 with labels (N,)  ->  Classifier  ->  a class, or features (n, 128), per image

The network is a residual CNN (He et al. 2016) of three stages. The recipe is AdamW with a one-cycle learning rate
(Smith and Topin 2017), label smoothing and random shifts. On a CPU the result is a pure function of the images, the
seed and the number of threads. Must not import commands or `api`.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.errors import InputError
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.runtime.device import derived_seed, epoch_order
from vqgpt.storage.checkpoint import (
    check_fits,
    check_parts,
    load_weights,
    read_checkpoint_file,
    read_tensors,
    save_checkpoint,
    weights_sha256,
)
from vqgpt.storage.stored_tensor import check_is_file

KIND = "classifier"
TASK = "train classifier"
PARTS = {"architecture": dict, "class_names": list, "about": dict}
PREPROCESSING = "other sizes bilinear to the classifier's size with antialiasing, rounded; (x - 127.5) / 63.75"
REMEDY = "give a classifier that vqgpt trained"
RECIPE_VERSION = 1
FEATURES = 128
LARGEST_SIZE = 64  # pixels: larger images are reduced to it
MOST_CLASSES = 2**20
MOST_EPOCHS = 15
FEWEST_STEPS = 100  # of small sets, which have more epochs
MOST_IMAGES = 300_000  # through the network, over all epochs
BATCH = 128
LEARNING_RATE = 5e-3
WARMUP = 0.25  # share of the steps
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
LARGEST_SHIFT = 1 / 8  # of the size
IMAGES_PER_PASS = 256
TIMED_STEPS = 3
SEED = 0


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, the first with the stride, added to a projection of its input."""

    def __init__(self, width: int, new_width: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(width, new_width, 3, stride)
        self.second = _convolution(new_width, new_width, 3, 1)
        self.shortcut = _convolution(width, new_width, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', H', W')."""
        return F.relu(self.second(F.relu(self.first(images))) + self.shortcut(images))


class ClassifierNetwork(nn.Module):
    """Images (n, channels, size, size) float -> scores (n, classes). `features` gives what the last layer sees."""

    def __init__(self, classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.stem = _convolution(channels, 32, 3, 2 if size > 32 else 1)
        self.stages = nn.Sequential(Block(32, 32, 2), Block(32, 64, 2), Block(64, FEATURES, 2))
        self.head = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """(n, channels, size, size) float -> (n, 128)."""
        maps: Tensor = self.stages(F.relu(self.stem(images)))
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, size, size) float -> (n, classes)."""
        return self.head(self.features(images))


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network in eval mode. `accuracy` is its share of right answers on held-out images, 0 to 1.

    `size` is the height and width of the images that it sees, in pixels. `about` says what it was trained on and how:
    `images_sha256`, `recipe`, `mirror`, `seed`, `images`, `epochs`.
    """

    network: ClassifierNetwork
    class_names: tuple[str, ...]
    size: int
    channels: int
    accuracy: float
    about: Mapping[str, Any]


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


@torch.no_grad()
def classes_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Images (n, C, H, W) uint8 -> the likeliest class of each, (n,) int64 on the network's device."""
    passes = [classifier.network(part).argmax(1) for part in _passes(classifier, images)]
    return torch.cat(passes) if passes else torch.empty(0, dtype=torch.int64)


@torch.no_grad()
def features_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Images (n, C, H, W) uint8 -> features of the penultimate layer, (n, 128) float32 on the network's device."""
    passes = [classifier.network.features(part) for part in _passes(classifier, images)]
    return torch.cat(passes) if passes else torch.empty(0, FEATURES)


def classifier_sha256(classifier: Classifier) -> str:
    """The identity of a classifier: SHA-256 over its architecture and weights."""
    return weights_sha256(classifier.network, _architecture(classifier))


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier as one file, in one step. Raises OSError as `write_atomically` does."""
    content = {
        "architecture": _architecture(classifier),
        "model": {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()},
        "class_names": list(classifier.class_names),
        "figures": {"accuracy": classifier.accuracy},
        "about": dict(classifier.about),
    }
    save_checkpoint(path, KIND, content)


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """Read what `save_classifier` wrote, and put it on a device.

    Raises MissingDataError if there is no file, InputError if it is damaged, or not a classifier.
    """
    check_is_file(path, REMEDY)
    content = check_parts(read_checkpoint_file(path), KIND, PARTS, path, REMEDY)
    names = content["class_names"]
    size, channels = (content["architecture"].get(name) for name in ("size", "channels"))
    accuracy = content["figures"].get("accuracy")
    possible = type(size) is int and 1 <= size <= LARGEST_SIZE and type(channels) is int and channels in (1, 3)
    if not possible or not 2 <= len(names) <= MOST_CLASSES or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} describes a classifier that cannot be", REMEDY)
    if not isinstance(accuracy, float) or not 0 <= accuracy <= 1:
        raise InputError(f"{path} has no accuracy from 0 to 1", REMEDY)
    shapes = {name: stored.shape for name, stored in content["model"].items()}
    check_fits(shapes, lambda: ClassifierNetwork(len(names), size, channels), 1, str(path), REMEDY)
    network = ClassifierNetwork(len(names), size, channels)
    load_weights(network, read_tensors(content, path)["model"], path)
    return Classifier(
        network=network.to(device).eval(),
        class_names=tuple(names),
        size=size,
        channels=channels,
        accuracy=accuracy,
        about=content["about"],
    )


def _architecture(classifier: Classifier) -> dict[str, Any]:
    return {"classes": len(classifier.class_names), "size": classifier.size, "channels": classifier.channels}


def _labelled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images that have a label, and their labels."""
    kept = labels >= 0
    return (images, labels) if kept.all() else (images[kept], labels[kept])


def reduced(images: Tensor) -> Tensor:
    """(n, C, H, W) uint8 as a classifier of such images sees them: of at most 64 pixels a side."""
    return _resized(images, min(max(images.shape[2:]), LARGEST_SIZE))


def _resized(images: Tensor, size: int) -> Tensor:
    """(n, C, H, W) uint8 -> (n, C, size, size) uint8: bilinear with antialiasing, or as they are at that size."""
    if images.shape[2:] == (size, size):
        return images
    passes = images.split(IMAGES_PER_PASS)
    resized = [F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in passes]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in resized])


def _passes(classifier: Classifier, images: Tensor) -> Iterator[Tensor]:
    """Images (n, C, H, W) uint8 as the network sees them, in passes on its device."""
    if images.shape[1] != classifier.channels:
        raise InputError(
            f"the classifier sees images of {classifier.channels} channels, and these have {images.shape[1]}",
            "give images like those it was trained on",
        )
    device = classifier.network.head.weight.device
    for part in images.split(IMAGES_PER_PASS) if len(images) else ():
        pixels = _scaled(_resized(part.to(device), classifier.size))
        yield pixels.contiguous(memory_format=torch.channels_last)


def _scaled(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -2..2."""
    return images.float().sub_(127.5).div_(63.75)


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
    return _scaled(pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]).permute(0, 3, 1, 2)


def _new_training(images: Tensor, labels: Tensor, classes: int, device: torch.device, seed: int) -> _Training:
    size = min(max(images.shape[2:]), LARGEST_SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "classifier"))
        network = ClassifierNetwork(classes, size, images.shape[1]).to(device)
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return _Training(
        pixels=_resized(images, size).permute(0, 2, 3, 1).contiguous().to(device),
        labels=labels.to(device),
        network=network.train(),
        optimizer=torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True),
    )


def _convolution(width: int, new_width: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(width, new_width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(new_width))


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
