"""The classifier that is trained on real images: what it learns, its file, and what is refused."""

import hashlib

import numpy as np
import pytest
import torch

from tests.conftest import description, write_cache
from vqgpt.errors import InputError, MissingDataError
from vqgpt.evaluation.classifier import (
    classes_of,
    classifier_sha256,
    features_of,
    load_classifier,
    save_classifier,
)
from vqgpt.evaluation.classifier_training import expected_seconds, train_classifier
from vqgpt.evaluation.consistency import consistency
from vqgpt.progress import silent
from vqgpt.storage.checkpoint import save_checkpoint

CPU = torch.device("cpu")
NAMES = ("upright", "flat", "spot")


def drawn(count, size=8, channels=1, seed=0):
    """Noisy images of upright lines, flat lines and spots, (count, channels, size, size) uint8, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 60, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    places = torch.randint(2, size - 2, (count, 2), generator=generator).tolist()
    for image, label, (row, column) in zip(images, labels.tolist(), places, strict=True):
        if label == 0:
            image[..., column] += 150
        elif label == 1:
            image[:, row] += 150
        else:
            image[:, row : row + 2, column : column + 2] += 150
    return images, labels


def trained(count=300, report=silent, digest="d" * 64, **how):
    return train_classifier(*drawn(count), *drawn(90, seed=1), NAMES, digest, CPU, report, **how)


@pytest.fixture(scope="module")
def classifier():
    return trained()


def weights_of(classifier):
    return {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}


def test_a_trained_classifier_tells_classes_that_it_has_not_seen(classifier):
    images, labels = drawn(200, seed=2)
    assert (classes_of(classifier, images) == labels).float().mean() > 0.9
    held_out, held_out_labels = drawn(90, seed=1)
    assert classifier.accuracy == pytest.approx((classes_of(classifier, held_out) == held_out_labels).float().mean())
    assert classifier.accuracy > 0.9


def test_features_are_128_numbers_and_decide_the_class(classifier):
    images, _ = drawn(300, seed=3)  # more than a pass
    features = features_of(classifier, images)
    assert features.shape == (300, 128)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(classifier.network.head(features).argmax(1), classes_of(classifier, images))


def test_no_images_have_no_features_and_no_classes(classifier):
    none = torch.empty(0, 1, 8, 8, dtype=torch.uint8)
    assert features_of(classifier, none).shape == (0, 128)
    assert classes_of(classifier, none).shape == (0,)


def test_training_is_a_function_of_the_images_and_the_seed():
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    first = trained(20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert classifier_sha256(trained(20)) == classifier_sha256(first)
    assert classifier_sha256(trained(20, seed=1)) != classifier_sha256(first)
    assert classifier_sha256(trained(20, mirror=True)) != classifier_sha256(first)


def test_images_without_a_label_change_nothing():
    images, labels = drawn(20)
    more = torch.cat([torch.full((5, 1, 8, 8), 255, dtype=torch.uint8), images])
    more_labels = torch.cat([torch.full((5,), -1), labels])
    held_out = drawn(10, seed=1)
    with_them = train_classifier(more, more_labels, *held_out, NAMES, "d" * 64, CPU, silent)
    without = train_classifier(images, labels, *held_out, NAMES, "d" * 64, CPU, silent)
    assert classifier_sha256(with_them) == classifier_sha256(without)
    assert with_them.about["images"] == 20


def test_large_images_are_reduced_to_64_pixels():
    images, labels = drawn(6, size=100, channels=3)
    large = train_classifier(images, labels, images, labels, NAMES, "d" * 64, CPU, silent)
    assert (large.size, large.channels) == (64, 3)
    reduced = torch.nn.functional.interpolate(images.float(), (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(features_of(large, images), features_of(large, reduced.round().to(torch.uint8)))


def test_one_class_alone_and_held_out_images_without_labels_are_refused():
    images, labels = drawn(20)
    with pytest.raises(InputError, match="fewer than two classes"):
        train_classifier(images, labels * 0, images, labels, NAMES, "d" * 64, CPU, silent)
    with pytest.raises(InputError, match="fewer than two classes"):
        train_classifier(images, labels * 0 - 1, images, labels, NAMES, "d" * 64, CPU, silent)
    with pytest.raises(InputError, match="no held-out image"):
        train_classifier(images, labels, images, labels * 0 - 1, NAMES, "d" * 64, CPU, silent)


def test_images_of_other_channels_are_refused(classifier):
    with pytest.raises(InputError, match="1 channels, and these have 3"):
        classes_of(classifier, drawn(2, channels=3)[0])


def test_progress_counts_images_and_ends_with_the_accuracy():
    events = []
    found = trained(20, report=events.append)
    done = [event.done for event in events]
    assert done == sorted(set(done))
    assert {(event.task, event.unit, event.total) for event in events} == {("train classifier", "images", done[-1])}
    assert events[-1].values == {"accuracy": found.accuracy}


def test_images_without_labels_take_no_time():
    images, labels = drawn(128)
    assert expected_seconds(images, labels, NAMES, CPU) > 0
    assert expected_seconds(images, labels * 0 - 1, NAMES, CPU) == 0


def test_a_classifier_comes_back_from_its_file(classifier, tmp_path):
    path = tmp_path / "classifier.pt"
    save_classifier(path, classifier)
    again = load_classifier(path, CPU)
    assert weights_of(again).keys() == weights_of(classifier).keys()
    for name, tensor in weights_of(classifier).items():
        assert torch.equal(weights_of(again)[name], tensor), name
    for name in ("class_names", "size", "channels", "accuracy", "about"):
        assert getattr(again, name) == getattr(classifier, name)
    assert classifier_sha256(again) == classifier_sha256(classifier)
    images, _ = drawn(50, seed=4)
    assert torch.equal(features_of(again, images), features_of(classifier, images))
    assert [file.name for file in tmp_path.iterdir()] == ["classifier.pt"]


def test_equal_classifiers_have_equal_files(classifier, tmp_path):
    for name in ("a.pt", "b.pt"):
        save_classifier(tmp_path / name, classifier)
    a, b = (hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a.pt", "b.pt"))
    assert a == b


def test_a_missing_file_and_files_of_other_kinds_are_refused(classifier, tmp_path):
    with pytest.raises(MissingDataError, match="there is no checkpoint"):
        load_classifier(tmp_path / "none.pt", CPU)
    save_checkpoint(tmp_path / "gpt.pt", "gpt", {"model": {}})
    with pytest.raises(InputError, match=r"gpt\.pt is a checkpoint of a gpt, not of a classifier"):
        load_classifier(tmp_path / "gpt.pt", CPU)
    with pytest.raises(InputError):
        load_classifier(write_cache(tmp_path / "cache.zarr", description()), CPU)
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(InputError, match=r"noise\.pt"):
        load_classifier(tmp_path / "noise.pt", CPU)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("architecture", {"classes": 3, "size": 4096, "channels": 1}),
        ("architecture", {"classes": 3, "size": 8, "channels": 3}),
        ("architecture", {"classes": 3, "size": True, "channels": 1}),
        ("architecture", {}),
        ("class_names", ["only one"]),
        ("class_names", ["a", "b", 3]),
        ("class_names", ["a", "b"]),
        ("figures", {}),
        ("figures", {"accuracy": 7.0}),
        ("about", []),
        ("model", {}),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(classifier, tmp_path, part, value):
    path = tmp_path / "classifier.pt"
    content = {
        "architecture": {"classes": 3, "size": 8, "channels": 1},
        "model": weights_of(classifier),
        "class_names": list(NAMES),
        "figures": {"accuracy": 1.0},
        "about": {},
    }
    save_checkpoint(path, "classifier", content)
    load_classifier(path, CPU)
    save_checkpoint(path, "classifier", {**content, part: value})
    with pytest.raises(InputError, match=r"classifier\.pt"):
        load_classifier(path, CPU)


def test_a_damaged_file_and_weights_that_are_not_finite_are_refused(classifier, tmp_path):
    path = tmp_path / "classifier.pt"
    save_classifier(path, classifier)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"classifier\.pt"):
        load_classifier(path, CPU)
    weights = weights_of(classifier)
    weights["head.bias"][0] = float("nan")
    content = {"architecture": {"classes": 3, "size": 8, "channels": 1}, "class_names": list(NAMES)}
    save_checkpoint(path, "classifier", {**content, "model": weights, "figures": {"accuracy": 1.0}, "about": {}})
    with pytest.raises(InputError, match="not all finite"):
        load_classifier(path, CPU)


def test_consistency_is_told_of_all_images_and_of_each_class():
    seen, asked = np.array([0, 1, 1, 0, 2]), np.array([0, 0, 1, -1, 1])
    found = consistency(seen, asked, 0, ("zero", "one", "none"))
    assert (found["images"], found["share"]) == (4, 0.5)
    assert found["by_class"] == {"zero": 0.5, "one": 0.5}
    assert consistency(seen, np.full(5, -1), 0, ("zero", "one")) is None
