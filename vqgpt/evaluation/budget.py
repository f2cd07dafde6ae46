"""What fits into a given time: which features, of how many images, and whether a classifier is trained.

    seconds  ->  Extractor; a number of images

Speed is measured here and now, on a few of the images themselves.
"""

import time
from pathlib import Path
from typing import get_args

import torch

from vqgpt.data.image_sets import ImageSet
from vqgpt.errors import MissingDataError, UsageError, nearest_hint
from vqgpt.evaluation.classifier import Classifier
from vqgpt.evaluation.classifier_training import expected_seconds
from vqgpt.evaluation.consistency import MOST_TRAINING_IMAGES, classifier_path, kept_classifier
from vqgpt.evaluation.extractors import (
    INSTALL,
    Extractor,
    FeatureKind,
    classifier_extractor,
    extractor_of_file,
    is_installed,
    load_inception,
    load_lite0,
)
from vqgpt.runtime.device import of_main, rank

TIMED_IMAGES = 16
FEWEST_IMAGES = 20  # fewer say nothing
SECONDS_FOR_FIGURES = 1.5
SHARE_FOR_CLASSIFIER = 0.6
FEWEST_SECONDS = {"inception": 20.0, "lite0": 5.0}  # for which it is worth loading one
ENOUGH_IMAGES = 500  # of a slower extractor, to be preferred to a faster one


def best_features(
    classifier: Classifier | None, images: ImageSet, seconds: float | None, device: torch.device
) -> FeatureKind:
    """What --features auto means: the best that is installed and that has the time for enough images.

    The main process of a run decides, for what it measures. Raises MissingDataError if none is installed.
    """
    return of_main(_best_features(classifier, images, seconds, device) if rank() == 0 else "classifier")


def _best_features(
    classifier: Classifier | None, images: ImageSet, seconds: float | None, device: torch.device
) -> FeatureKind:
    kinds = [kind for kind in get_args(FeatureKind) if (kind != "classifier" or classifier) and is_installed(kind)]
    if not kinds:
        raise MissingDataError("there are no features to measure distances in", INSTALL)
    if seconds is None:
        return kinds[0]
    for kind in kinds[:-1]:
        if seconds >= FEWEST_SECONDS[kind]:
            extractor = load_features(kind, classifier, device)
            if _within(seconds, extractor, images, 3) >= min(len(images), ENOUGH_IMAGES):
                return kind
    return kinds[-1]


def load_features(features: str, classifier: Classifier | None, device: torch.device) -> Extractor:
    """The extractor of a kind, or of a file with known weights.

    Raises UsageError for a word that is neither, and what loading it raises.
    """
    match features:
        case "inception":
            return load_inception(device)
        case "lite0":
            return load_lite0(device)
        case "classifier":
            assert classifier is not None
            return classifier_extractor(classifier, device)
        case file:
            if not Path(file).suffix and not Path(file).exists():
                raise UsageError(
                    f"there are no features {file!r}", nearest_hint(file, ["auto", *get_args(FeatureKind)])
                )
            return extractor_of_file(Path(file), device)


def within_seconds(seconds: float, extractor: Extractor, images: ImageSet, sets: int) -> int:
    """How many images of each of so many sets an extractor has the time for, beside the figures.

    The main process of a run decides, for what it measures.
    """
    return of_main(_within(seconds, extractor, images, sets) if rank() == 0 else 0)


def _within(seconds: float, extractor: Extractor, images: ImageSet, sets: int) -> int:
    some = images.drawn(TIMED_IMAGES)
    for _ in range(2):  # the first is slower
        start = time.perf_counter()
        extractor.compute(torch.from_numpy(next(some.batches(TIMED_IMAGES)))).sum().item()
        per_image = (time.perf_counter() - start) / len(some)
    return max(FEWEST_IMAGES, int((seconds - SECONDS_FOR_FIGURES) / sets / per_image))


def has_time_for_classifier(seconds: float, training: ImageSet, held_out: ImageSet, device: torch.device) -> bool:
    """True if the classifier is there, or its training takes little enough of the time: the main process decides."""
    return of_main(_has_time(seconds, training, held_out, device) if rank() == 0 else False)


def _has_time(seconds: float, training: ImageSet, held_out: ImageSet, device: torch.device) -> bool:
    path = classifier_path(training)
    if path is not None and kept_classifier(path, training, held_out, device) is not None:
        return True
    images, count = torch.zeros((1, *training.shape), dtype=torch.uint8), min(len(training), MOST_TRAINING_IMAGES)
    labels = torch.zeros(1, dtype=torch.int64)
    expected = expected_seconds(images.expand(count, -1, -1, -1), labels.expand(count), training.class_names, device)
    return expected <= SHARE_FOR_CLASSIFIER * seconds
