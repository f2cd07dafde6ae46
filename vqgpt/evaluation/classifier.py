"""A small classifier of real images, to measure samples of the same data: the network, what it sees, and its file.

    images (n, C, H, W) uint8, Classifier  ->  a class, or features (n, 128), per image

The network is a residual CNN (He et al. 2016) of three stages; `classifier_training` trains it. Must not import
commands or `api`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.errors import InputError
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
PARTS = {"architecture": dict, "class_names": list, "about": dict}
PREPROCESSING = "other sizes bilinear to the classifier's size with antialiasing, rounded; (x - 127.5) / 63.75"
REMEDY = "give a classifier that vqgpt trained"
FEATURES = 128
LARGEST_SIZE = 64  # pixels: larger images are reduced to it
MOST_CLASSES = 2**20
IMAGES_PER_PASS = 256


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


def reduced(images: Tensor) -> Tensor:
    """(n, C, H, W) uint8 as a classifier of such images sees them: of at most 64 pixels a side."""
    return resized(images, min(max(images.shape[2:]), LARGEST_SIZE))


def resized(images: Tensor, size: int) -> Tensor:
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
        pixels = scaled(resized(part.to(device), classifier.size))
        yield pixels.contiguous(memory_format=torch.channels_last)


def scaled(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -2..2."""
    return images.float().sub_(127.5).div_(63.75)


def _convolution(width: int, new_width: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(width, new_width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(new_width))
