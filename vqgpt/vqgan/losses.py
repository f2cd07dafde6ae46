"""What a VQ-GAN is trained by beside its pixels: LPIPS with VGG16, and an adversary that judges patches.

    PerceptualLoss      two batches of images (B, C, H, W) float in [-1, 1], grey or RGB  ->  distances (B,) float32
    PatchDiscriminator  images (B, C, H, W) float in [-1, 1]  ->  logits (B, 1, h, w), above 0 for a real patch

LPIPS (Zhang et al. 2018, arXiv:1801.03924) takes the features of torchvision's VGG16, trained on ImageNet, and the
weights of their differences that the `lpips` package holds. Both are only ever data here: the package is not imported.
"""

import contextlib
import importlib.util
import io
import math
import pickle
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.errors import InputError, MissingDataError
from vqgpt.progress import Notice, Report
from vqgpt.runtime.process import import_torchvision
from vqgpt.storage.files import DISK_FULL, check_is_not_special

FEATURE_LAYERS = (3, 8, 15, 22, 29)  # of VGG16's `features`: the last activation before each pooling, and the last
FEATURE_CHANNELS = (64, 128, 256, 512, 512)
SHIFT = (-0.030, -0.088, -0.188)  # from [-1, 1] to the ImageNet statistics that VGG16 was trained with
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
SMALLEST_FOR_LPIPS = 16  # pixels; VGG16 halves the image four times before its last features
WITHOUT = "--perceptual-weight 0 trains without this loss"
BASE_CHANNELS = 64
MOST_LAYERS = 3
SMALLEST_SIZE = 6  # pixels
SMALLEST_NORM = 1e-4
LARGEST_WEIGHT = 1e4


class PerceptualLoss(nn.Module):
    """The distance of VGG16's normalised features, weighted per channel and averaged over positions; not trained."""

    def __init__(self, features: nn.Module, channel_weights: list[Tensor]) -> None:
        """`features` are VGG16's; `channel_weights` five tensors (c,) of its channels at FEATURE_LAYERS."""
        super().__init__()
        self.features = features
        for layer in features.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # what one layer gives is still needed when the next has run
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        for index, weight in enumerate(channel_weights):
            self.register_buffer(f"weight_{index}", weight.view(1, -1, 1, 1))
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Two times (B, C, H, W) -> (B,). A gradient flows to the second only."""
        with torch.no_grad():
            expected = self._normalised_features(images)
        distance = torch.zeros(len(images), device=images.device)
        for index, (one, other) in enumerate(zip(expected, self._normalised_features(others), strict=True)):
            weighted = self.get_buffer(f"weight_{index}") * (one - other).square()
            distance = distance + weighted.sum(dim=1).mean(dim=(1, 2))
        return distance

    def _normalised_features(self, images: Tensor) -> list[Tensor]:
        x = (images.expand(-1, 3, -1, -1) - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for index, layer in enumerate(self.features.children()):
            x = layer(x)
            if index in FEATURE_LAYERS:
                length = x.float().square().sum(dim=1, keepdim=True).sqrt()
                found.append(x.float() / (length + EPSILON))
        return found


def load_perceptual_loss(device: torch.device, report: Report) -> PerceptualLoss:
    """LPIPS with its published weights, those of VGG16 from torch's cache, or downloaded to it.

    Raises MissingDataError, with what to do, if the weights of VGG16 can be neither found nor downloaded, or the
    `lpips` package is not there.
    """
    channel_weights = _channel_weights()
    features = import_torchvision("models").vgg16(weights=None).features[: FEATURE_LAYERS[-1] + 1]
    weights = _vgg16_weights(report)
    try:
        features.load_state_dict(
            {name.removeprefix("features."): weights[name] for name in weights if "features" in name}
        )
    except RuntimeError as error:
        raise InputError(
            f"the weights of VGG16 do not fit the network ({str(error).splitlines()[0]})", "delete them"
        ) from None
    return PerceptualLoss(features, channel_weights).to(device)


def has_perceptual_loss() -> bool:
    """True if all weights of LPIPS are on this machine, so that `load_perceptual_loss` downloads nothing."""
    return _channel_weights_path() is not None and _vgg16_path().is_file()


def _channel_weights_path() -> Path | None:
    """Where the package `lpips` has its weights, None if it is not installed."""
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"


def _channel_weights() -> list[Tensor]:
    path = _channel_weights_path()
    if path is None:
        raise MissingDataError(
            "the perceptual loss needs the package lpips", f"pip install 'vqgpt[lpips]', or {WITHOUT}"
        )
    if not path.is_file():
        raise MissingDataError(f"the package lpips lacks {path}", f"install it again, or {WITHOUT}")
    heads = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{index}.model.1.weight"].flatten() for index in range(len(FEATURE_CHANNELS))]


def _vgg16_path() -> Path:
    """Where torch keeps the weights of VGG16."""
    published = import_torchvision("models").VGG16_Weights.IMAGENET1K_V1
    return Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]


def _vgg16_weights(report: Report) -> dict[str, Tensor]:
    published, place = import_torchvision("models").VGG16_Weights.IMAGENET1K_V1, _vgg16_path()
    if place.parts[0] == "~":  # torch would make a folder of that name
        raise MissingDataError(
            "there is no home folder to keep the weights of VGG16 in", f"set HOME or TORCH_HOME, or {WITHOUT}"
        )
    check_is_not_special(place)  # torch would wait for it
    if not place.exists():
        report(Notice(text=f"downloading the weights of VGG16 to {place} (about 530 MB)"))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            weights: dict[str, Tensor] = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return weights
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, HTTPException) as error:
        if place.exists():
            raise InputError(f"{place} is damaged", f"delete it and run the command again, or {WITHOUT}") from None
        if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK_FULL):
            raise MissingDataError(
                f"the weights of VGG16 cannot be written to {place} ({error.strerror})",
                f"set TORCH_HOME to a folder with room for 530 MB, or {WITHOUT}",
            ) from None
        raise MissingDataError(
            f"the weights of VGG16 are not at {place} and could not be downloaded ({error})",
            f"download {published.url} to {place} on a machine with a network, or {WITHOUT}",
        ) from None


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004, section 6.1.2) with batch normalisation.

    Three halvings as there, fewer for images below 32 pixels, of which nothing would be left.
    Raises InputError below 6 pixels.
    """

    def __init__(self, image_channels: int, size: int) -> None:
        super().__init__()
        if size < SMALLEST_SIZE:
            raise InputError(
                f"images of {size} pixels are too small for the discriminator",
                f"use {SMALLEST_SIZE} or more, or --disc-weight 0 for none",
            )
        halvings = max(1, min(MOST_LAYERS, int(math.log2(size)) - 2))
        widths = [BASE_CHANNELS * 2**index for index in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index in range(1, len(widths)):
            stride = 2 if index < halvings else 1
            layers += [
                nn.Conv2d(widths[index - 1], widths[index], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[index]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, h, w) float32."""
        return self.main(images).float()


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the discriminator minimises (Lim and Ye 2017, arXiv:1705.02894): mean of both hinges, a scalar."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """The weight of the adversarial term, a scalar (Esser et al. 2021, eq. 7).

    It makes the adversarial gradient as long as that of the reconstruction loss, both at the decoder's last layer.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + SMALLEST_NORM)
    return ratio.clamp(0.0, LARGEST_WEIGHT)
