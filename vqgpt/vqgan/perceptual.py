"""How unlike two images look: the distance between the features that a network trained on ImageNet has of them.

    PerceptualLoss  two batches of images (B, C, H, W) float in [-1, 1], grey or RGB  ->  distances (B,) float32

LPIPS (Zhang et al. 2018, arXiv:1801.03924) takes the features of torchvision's VGG16, and the weights of their
differences that the `lpips` package holds. Shift-tolerant LPIPS (`vqgan.stlpips`) takes those of another AlexNet. What
packages hold is only ever data here: they are not imported.
"""

import contextlib
import io
import pickle
from http.client import HTTPException
from pathlib import Path
from typing import assert_never

import torch
from torch import Tensor, nn

from vqgpt.errors import InputError, MissingDataError
from vqgpt.progress import Notice, Report
from vqgpt.runtime.process import import_torchvision, packaged_file
from vqgpt.storage.files import DISK_FULL, check_is_not_special
from vqgpt.vqgan import stlpips
from vqgpt.vqgan.options import SMALLEST_PERCEPTUAL_SIZE, PerceptualKind, VQGANTrainingOptions

VGG16_LAYERS = (3, 8, 15, 22, 29)  # of its `features`: the last activation before each pooling, and the last
VGG16_CHANNELS = (64, 128, 256, 512, 512)
SHIFT = (-0.030, -0.088, -0.188)  # from [-1, 1] to the ImageNet statistics that the networks were trained with
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
SMALLEST_SIZES: dict[PerceptualKind, int] = {"lpips": 16, "stlpips": 21}  # pixels; the last features have one or more
WITHOUT = "--perceptual off trains without this loss"
GET_LPIPS = "--perceptual lpips downloads the weights of VGG16 (530 MB) and needs pip install 'vqgpt[lpips]'"
GET_STLPIPS = f"{stlpips.INSTALL} (64 MB) brings stlpips, whole"


class PerceptualLoss(nn.Module):
    """The distance of a network's normalised features, weighted per channel and averaged over positions; not trained.

    At each of some layers both features are divided by their length at each position; the squares of their differences
    are weighted, summed over the channels, and averaged over the positions; the layers' distances are added (Zhang et
    al. 2018, eq. 1).
    """

    def __init__(self, features: nn.Module, feature_layers: tuple[int, ...], channel_weights: list[Tensor]) -> None:
        """`channel_weights` holds a tensor (c,) for each of the `feature_layers`, by their number in `features`."""
        super().__init__()
        self.features, self.feature_layers = features, feature_layers
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
            if index in self.feature_layers:
                length = x.float().square().sum(dim=1, keepdim=True).sqrt()
                found.append(x.float() / (length + EPSILON))
        return found


def choose_perceptual_loss(options: VQGANTrainingOptions, size: int) -> tuple[PerceptualKind | None, str]:
    """Which perceptual loss images of this side are trained with, None for none; and what to tell of a choice, or "".

    One that is asked for by name, or what is on this machine, LPIPS before the other. If nothing is, a weight that was
    given means LPIPS, whose weights can be downloaded; a start that was given means none. Raises InputError if the
    images are too small for it.
    """
    if options.perceptual == "off" or options.perceptual_weight == 0:
        return None, ""
    wanted = options.perceptual or options.perceptual_weight is not None or options.perceptual_after
    if not wanted and size < SMALLEST_PERCEPTUAL_SIZE:
        return None, ""
    kind, told = (options.perceptual, "") if options.perceptual else _what_is_at_hand(size)
    if kind is None and options.perceptual_weight is not None:
        kind, told = "lpips", ""
    if kind is None and options.perceptual_after:
        kind = next((each for each in SMALLEST_SIZES if has_perceptual_loss(each)), None)  # which is too large
    if kind and size < SMALLEST_SIZES[kind]:
        raise InputError(
            f"images of {size} pixels are too small for the perceptual loss",
            f"use {SMALLEST_SIZES[kind]} or more, or --perceptual off",
        )
    return kind, told


def _what_is_at_hand(size: int) -> tuple[PerceptualKind | None, str]:
    if size >= SMALLEST_SIZES["lpips"] and has_perceptual_loss("lpips"):
        return "lpips", f"the perceptual loss is LPIPS, whose weights are on this machine; for another: {GET_STLPIPS}"
    if size >= SMALLEST_SIZES["stlpips"] and has_perceptual_loss("stlpips"):
        return "stlpips", f"the perceptual loss is stlpips, which is installed; for another: {GET_LPIPS}"
    return None, f"no perceptual loss is on this machine; {GET_STLPIPS}; {GET_LPIPS}"


def has_perceptual_loss(kind: PerceptualKind) -> bool:
    """True if all its weights are on this machine, so that `load_perceptual_loss` downloads nothing."""
    match kind:
        case "lpips":
            heads = _lpips_path()
            return heads is not None and heads.is_file() and _vgg16_path().is_file()
        case "stlpips":
            path = stlpips.weights_path()
            return path is not None and path.is_file()
        case _:
            assert_never(kind)


def load_perceptual_loss(kind: PerceptualKind, device: torch.device, report: Report) -> PerceptualLoss:
    """The loss with its published weights; those of VGG16 from torch's cache, or downloaded to it.

    Raises MissingDataError, with what to do, if a package is not there, or the weights of VGG16 can be neither found
    nor downloaded; InputError if weights are damaged.
    """
    match kind:
        case "lpips":
            channel_weights, weights = _lpips_channel_weights(), _vgg16_weights(report)
        case "stlpips":
            weights, channel_weights = stlpips.read_weights(WITHOUT)
        case _:
            assert_never(kind)
    loss = untrained_perceptual_loss(kind, channel_weights)
    try:
        loss.features.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the weights of {kind} do not fit the network ({str(error).splitlines()[0]})", "delete them"
        ) from None
    return loss.to(device)


def untrained_perceptual_loss(kind: PerceptualKind, channel_weights: list[Tensor] | None = None) -> PerceptualLoss:
    """The loss on a network of random weights, which takes as long; those of the channels too where not given."""
    features: nn.Module
    match kind:
        case "lpips":
            features = import_torchvision("models").vgg16(weights=None).features[: VGG16_LAYERS[-1] + 1]
            layers, channels = VGG16_LAYERS, VGG16_CHANNELS
        case "stlpips":
            features = stlpips.shift_tolerant_alexnet()
            layers, channels = stlpips.FEATURE_LAYERS, stlpips.FEATURE_CHANNELS
        case _:
            assert_never(kind)
    return PerceptualLoss(features, layers, channel_weights or [torch.rand(count) for count in channels])


def _lpips_path() -> Path | None:
    """Where the package `lpips` has its weights, None if it is not installed."""
    return packaged_file("lpips", "lpips/weights/v0.1/vgg.pth")


def _lpips_channel_weights() -> list[Tensor]:
    path = _lpips_path()
    if path is None:
        raise MissingDataError(
            "the perceptual loss needs the package lpips",
            f"pip install 'vqgpt[lpips]'; or --perceptual stlpips ({stlpips.INSTALL}); or {WITHOUT}",
        )
    if not path.is_file():
        raise MissingDataError(f"the package lpips lacks {path}", f"install it again, or {WITHOUT}")
    heads = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{index}.model.1.weight"].flatten() for index in range(len(VGG16_CHANNELS))]


def _vgg16_path() -> Path:
    """Where torch keeps the weights of VGG16."""
    published = import_torchvision("models").VGG16_Weights.IMAGENET1K_V1
    return Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]


def _vgg16_weights(report: Report) -> dict[str, Tensor]:
    """The state dict of VGG16's `features`."""
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
        return {name.removeprefix("features."): weights[name] for name in weights if "features" in name}
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
