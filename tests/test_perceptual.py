"""Perceptual losses: their arithmetic against that of the packages, which one is taken, what is said without one."""

import importlib.metadata
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import assert_refused, run_here
from vqgpt.errors import InputError, MissingDataError, UsageError, VQGPTError
from vqgpt.progress import silent
from vqgpt.runtime.process import import_torchvision, installed_version
from vqgpt.vqgan import perceptual, stlpips
from vqgpt.vqgan.options import VQGANTrainingOptions
from vqgpt.vqgan.perceptual import (
    SMALLEST_SIZES,
    choose_perceptual_loss,
    has_perceptual_loss,
    load_perceptual_loss,
    untrained_perceptual_loss,
)

CPU = torch.device("cpu")
TRAIN = ["vqgan", "train", "--dataset", "digits"]
OF_PHOTOS = ["vqgan", "train", "--dataset", "folder", "--data-root", "photos", "--out", "v.pt"]
SMALL = ["--channels", "32", "--ch-mult", "1", "1", "1", "--num-res-blocks", "1", "--attn-resolutions", "0"]
SMALL += ["--batch-size", "8", "--n-epochs", "1", "--codebook-start", "uniform", "-q"]

needs_lpips = pytest.mark.skipif(installed_version("lpips") is None, reason="the package lpips is not there")
needs_stlpips = pytest.mark.skipif(not has_perceptual_loss("stlpips"), reason="stlpips-pytorch is not installed")


@needs_lpips
@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_that_of_the_lpips_package(monkeypatch, channels):
    """The same random VGG16 in both, the published weights of the channels in both."""
    import_torchvision("models")
    import lpips

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision and torch.load in their old ways
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    inner = [part for index in range(1, 6) for part in getattr(theirs.net, f"slice{index}").children()]
    weights = torch.nn.Sequential(*inner).state_dict()
    monkeypatch.setattr(perceptual, "_vgg16_weights", lambda report: weights)
    ours = load_perceptual_loss("lpips", CPU, silent)
    images, others = torch.rand(2, 2, channels, 32, 32) * 2 - 1
    others.requires_grad_(True)
    distance = ours(images, others)
    expected = theirs(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)).flatten()
    torch.testing.assert_close(distance, expected, rtol=1e-3, atol=1e-6)
    distance.sum().backward()
    assert others.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_stlpips_has_the_figures_that_its_package_gave():
    """On random weights, which are made here as they were made there, with the names that the package gives them."""
    draws = np.random.RandomState(0)

    def draw(*shape):
        return torch.from_numpy(draws.standard_normal(shape)).float()

    shapes = [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)]
    stored = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "net.slice1.1.filt": torch.zeros(64, 1, 3, 3)}
    names = ["slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13"]
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        stored[f"net.{name}.weight"] = draw(*shape) * (2 / np.prod(shape[1:])) ** 0.5
        stored[f"net.{name}.bias"] = draw(shape[0]) * 0.1
        stored[f"lin{index}.model.1.weight"] = draw(1, shape[0], 1, 1).abs()
    weights, channel_weights = stlpips.parse_weights(stored)
    loss = untrained_perceptual_loss("stlpips", channel_weights)
    loss.features.load_state_dict(weights)
    images, others = draw(2, 3, 24, 29).clamp(-1, 1), draw(2, 3, 24, 29).clamp(-1, 1).requires_grad_()
    distance = loss(images, others)
    torch.testing.assert_close(distance, torch.tensor([1.2695866823, 1.1680506468]), rtol=0, atol=1e-5)
    distance.sum().backward()
    assert others.grad.norm().item() == pytest.approx(0.1397252083, rel=1e-4)
    some = others.grad[1, 2, [0, 9, 23], [0, 28, 14]]
    torch.testing.assert_close(some, torch.tensor([-4.24954895e-4, 2.53215176e-3, -2.25739568e-4]), rtol=0, atol=1e-6)


@needs_stlpips
def test_stlpips_with_its_published_weights():
    """The images are formulas; the figures are those of the package, version 0.0.2."""
    across = torch.linspace(-1, 1, 64)
    images = torch.stack([across.expand(64, 64), across[:, None].expand(64, 64), (across * across[:, None])])[None]
    others = images.flip(3) * 0.5
    loss = load_perceptual_loss("stlpips", CPU, silent)
    torch.testing.assert_close(loss(images, others), torch.tensor([0.6150616407]), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss(images, images), torch.zeros(1))
    grey = images[:, :1], others[:, :1]
    assert loss(*grey) == loss(*(each.expand(-1, 3, -1, -1) for each in grey)) > 0


@pytest.mark.parametrize("kind", ["lpips", "stlpips"])
def test_the_smallest_images_of_each_loss(kind):
    smallest, loss = SMALLEST_SIZES[kind], untrained_perceptual_loss(kind)
    images = torch.rand(2, 1, 3, smallest, smallest)
    assert loss(*images) > 0
    with pytest.raises(RuntimeError):
        loss(*images[..., 1:, 1:])
    with pytest.raises(InputError, match="too small"):
        choose_perceptual_loss(VQGANTrainingOptions(perceptual=kind), smallest - 1)


@pytest.mark.parametrize(
    ("options", "size", "there", "expected"),
    [
        ({}, 32, {"lpips", "stlpips"}, None),
        ({}, 64, {"lpips", "stlpips"}, "lpips"),
        ({}, 64, {"stlpips"}, "stlpips"),
        ({}, 64, set(), None),
        ({"perceptual": "stlpips"}, 64, {"lpips"}, "stlpips"),
        ({"perceptual": "lpips"}, 32, {"stlpips"}, "lpips"),
        ({"perceptual": "off"}, 128, {"lpips"}, None),
        ({"perceptual_weight": 0.0}, 128, {"lpips"}, None),
        ({"perceptual_weight": 0.5}, 32, {"stlpips"}, "stlpips"),
        ({"perceptual_weight": 0.5}, 64, set(), "lpips"),
        ({"perceptual_weight": 0.5}, 16, {"stlpips"}, "lpips"),
        ({"perceptual_after": 0.5}, 32, {"stlpips"}, "stlpips"),
        ({"perceptual_after": 0.5}, 32, {"lpips", "stlpips"}, "lpips"),
        ({"perceptual_after": 0.5, "perceptual": "stlpips"}, 32, {"lpips", "stlpips"}, "stlpips"),
    ],
)
def test_which_loss_is_taken(monkeypatch, options, size, there, expected):
    monkeypatch.setattr(perceptual, "has_perceptual_loss", lambda kind: kind in there)
    kind, told = choose_perceptual_loss(VQGANTrainingOptions(**options), size)
    assert kind == expected
    assert bool(told) == (kind in there and "perceptual" not in options) or (size == 64 and not options and not there)


def test_a_choice_is_told_with_how_to_get_the_other(monkeypatch):
    told = {}
    for there in ("lpips", "stlpips", ""):
        monkeypatch.setattr(perceptual, "has_perceptual_loss", lambda kind, there=there: kind == there)
        told[there] = choose_perceptual_loss(VQGANTrainingOptions(), 64)[1]
    assert "is LPIPS" in told["lpips"]
    assert "vqgpt[stlpips]" in told["lpips"]
    assert "is stlpips" in told["stlpips"]
    assert "vqgpt[lpips]" in told["stlpips"]
    assert all(words in told[""] for words in ("no perceptual loss", "vqgpt[stlpips]", "vqgpt[lpips]"))


def test_a_start_alone_asks_for_what_is_at_hand(monkeypatch):
    monkeypatch.setattr(perceptual, "has_perceptual_loss", lambda kind: False)
    kind, told = choose_perceptual_loss(VQGANTrainingOptions(perceptual_after=0.5), 32)
    assert kind is None
    assert "no perceptual loss is on this machine" in told


def test_a_training_with_a_start_and_no_loss_at_hand_goes_without(here, monkeypatch):
    monkeypatch.setattr(perceptual, "has_perceptual_loss", lambda kind: False)
    outcome = run_here(*TRAIN, *SMALL[:-1], "--perceptual-after", "0.5", "--size", "32", "--max-steps", "1")
    assert outcome.code == 0, outcome.err
    assert "no perceptual loss is on this machine" in outcome.err


def test_images_too_small_for_the_loss_at_hand_are_named(monkeypatch):
    monkeypatch.setattr(perceptual, "has_perceptual_loss", lambda kind: kind == "stlpips")
    with pytest.raises(InputError, match="20 pixels are too small"):
        choose_perceptual_loss(VQGANTrainingOptions(perceptual_after=0.5), 20)


@pytest.mark.parametrize("options", [{"perceptual": "off"}, {"perceptual_weight": 0.0}])
def test_a_start_of_no_loss_is_refused(options):
    with pytest.raises(UsageError, match="perceptual_after"):
        VQGANTrainingOptions(perceptual_after=0.5, **options)


@pytest.mark.parametrize("options", [("off", 0.5), ("lpips", 0.0), ("stlpips", 0.0)])
def test_a_loss_and_a_weight_that_contradict_each_other_are_refused(options):
    with pytest.raises(UsageError, match="perceptual_weight"):
        VQGANTrainingOptions(perceptual=options[0], perceptual_weight=options[1])


@needs_lpips
def test_without_the_weights_of_vgg16_the_error_says_what_to_do(here, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse_to_download)
    place = str(here / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth")
    outcome = run_here(*TRAIN, "--perceptual", "lpips", "--size", "16")
    assert_refused(outcome, 4, "VGG16", place, "https://", "--perceptual off")
    assert not (here / "runs").exists()


def refuse_to_download(*_arguments, **_named):
    raise OSError("no network")


@pytest.mark.timeout(60)
@needs_lpips
def test_a_pipe_in_place_of_the_weights_of_vgg16_is_not_waited_for(here, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(here))
    (here / "hub/checkpoints").mkdir(parents=True)
    os.mkfifo(here / "hub/checkpoints/vgg16-397923af.pth")
    outcome = run_here(*TRAIN, "--perceptual", "lpips", "--size", "16")
    assert_refused(outcome, 3, "vgg16-397923af.pth is a pipe")


@pytest.mark.parametrize("kind", ["lpips", "stlpips"])
def test_without_its_package_the_error_says_what_to_do(monkeypatch, kind):
    def find_nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", find_nothing)
    with pytest.raises(MissingDataError, match=kind) as caught:
        load_perceptual_loss(kind, CPU, silent)
    assert "--perceptual off" in caught.value.hint
    assert f"vqgpt[{kind}]" in caught.value.hint


@pytest.fixture
def packaged(here, monkeypatch):
    """A folder in which the package `stlpips-pytorch` is found; its weights are random, their digest the right one."""
    torch.manual_seed(3)
    network = stlpips.shift_tolerant_alexnet()
    stored = {f"net.slice1.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, count in enumerate(stlpips.FEATURE_CHANNELS):
        stored[f"lin{index}.model.1.weight"] = torch.rand(1, count, 1, 1)
    about = here / "site" / "stlpips_pytorch-0.0.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stlpips-pytorch\nVersion: 0.0.2\n")
    file = here / "site" / stlpips.FILE
    file.parent.mkdir(parents=True)
    torch.save(stored, file)
    monkeypatch.syspath_prepend(str(here / "site"))
    monkeypatch.setattr(stlpips, "SHA256", stlpips.sha256(file.read_bytes()))
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    (here / "photos").mkdir()
    for number in range(10):
        Image.new("L", (64, 64), 20 * number).save(here / "photos" / f"{number}.png")
    return file


def test_a_file_with_another_digest_is_not_read(packaged):
    packaged.write_bytes(packaged.read_bytes() + b"x")
    assert_refused(
        run_here(*OF_PHOTOS, *SMALL, "--size", "24", "--perceptual", "stlpips"), 3, "SHA-256", "install it again"
    )
    assert not Path("v.pt").exists()


def test_the_loss_that_was_used_is_recorded(packaged):
    command = [*OF_PHOTOS, *SMALL, "--size", "64"]
    assert run_here(*command, "--dry-run", "--json").json["perceptual"] == "stlpips"
    outcome = run_here(*command)
    assert outcome.code == 0, outcome.err
    configuration = torch.load("v.pt", weights_only=True)["configuration"]
    assert configuration["perceptual_loss"] == "stlpips"
    assert configuration["training"]["perceptual"] is None
    step = json.loads(Path("metrics.jsonl").read_text().splitlines()[0])
    assert step["perceptual_loss"] > 0


def test_a_continued_training_never_changes_its_loss(packaged, monkeypatch):
    """What is on the machine may have changed when the same command is given again."""

    def stop(*_):
        raise VQGPTError("stopped", "")

    command = [*OF_PHOTOS, *SMALL, "--size", "64"]
    with monkeypatch.context() as patch:
        patch.setattr("vqgpt.training.run.TrainingFiles.finish", stop)
        assert "stopped" in run_here(*command).err
    assert Path("v.unfinished.pt").exists()
    with monkeypatch.context() as patch:
        patch.setattr(perceptual, "has_perceptual_loss", lambda kind: False)
        assert_refused(run_here(*command), 3, "perceptual: stlpips there, off here", "--overwrite")
    outcome = run_here(*command, "--perceptual", "stlpips")
    assert outcome.code == 0, outcome.err


def test_help_names_the_losses(here):
    assert "stlpips" in run_here("vqgan", "train", "--help").out
