"""Whether images show the class that was asked for, by a classifier that knows real ones alone.

training images with classes  ->  Classifier, kept in a file  ->  the class it sees in each image (N,)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.data.image_sets import ImageSet, content_sha256
from vqgpt.errors import InputError, MissingDataError
from vqgpt.evaluation.classifier import Classifier, classes_of, load_classifier, reduced, save_classifier
from vqgpt.evaluation.classifier_training import RECIPE_VERSION, train_classifier
from vqgpt.evaluation.intervals import Estimate, interval
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.device import of_main, rank

MOST_TRAINING_IMAGES = 50_000  # which are in memory at once
MOST_HELD_OUT = 10_000
IMAGES_AT_ONCE = 256


def can_be_classified(training: ImageSet, held_out: ImageSet) -> bool:
    """True if there are at least two classes among the training images, and labels of the same among those held out."""
    labelled = len(np.unique(training.labels[training.labels >= 0])) > 1 and bool((held_out.labels >= 0).any())
    return labelled and training.class_names == held_out.class_names


def classifier_path(training: ImageSet) -> Path | None:
    """Where the classifier of these training images is kept: beside them, or with their run."""
    stem = training.features_stem
    return None if stem is None else stem.with_name(f"{stem.name}-classifier.pt")


def classifier_for(training: ImageSet, held_out: ImageSet, device: torch.device, report: Report) -> Classifier:
    """The classifier of these training images: the one that is kept, or one that is trained and kept now.

    All processes of a run call it together; the main one trains. Trained on up to 50,000 images, with the accuracy of
    up to 10,000 held-out ones.
    """
    found = _kept_or_trained(training, held_out, device, report) if rank() == 0 else None
    found = of_main(found)
    assert found is not None
    return found


def _kept_or_trained(training: ImageSet, held_out: ImageSet, device: torch.device, report: Report) -> Classifier:
    path = classifier_path(training)
    kept = None if path is None else kept_classifier(path, training, held_out, device)
    if kept is not None:
        return kept
    images, judged_by = training.drawn(MOST_TRAINING_IMAGES), held_out.drawn(MOST_HELD_OUT)
    classifier = train_classifier(
        in_memory(images, report),
        torch.from_numpy(images.labels),
        in_memory(judged_by, report),
        torch.from_numpy(judged_by.labels),
        training.class_names,
        identity_of(training, held_out),
        device,
        report,
    )
    if path is not None:
        try:
            save_classifier(path, classifier)
        except (OSError, InputError, MissingDataError) as error:
            report(Notice(text=f"the classifier is not kept: {error}"))
    return classifier


def identity_of(training: ImageSet, held_out: ImageSet) -> str:
    """What a classifier records of the images that it was trained on and judged by."""
    return content_sha256({"training": training.sha256, "held_out": held_out.sha256})


def kept_classifier(path: Path, training: ImageSet, held_out: ImageSet, device: torch.device) -> Classifier | None:
    """The classifier in a file, if it was trained on these images by today's recipe, and judged by these."""
    try:
        classifier = load_classifier(path, device)
    except (MissingDataError, InputError):
        return None
    about, identity = classifier.about, identity_of(training, held_out)
    same = about.get("images_sha256") == identity and about.get("recipe") == RECIPE_VERSION
    return classifier if same else None


def in_memory(images: ImageSet, report: Report) -> Tensor:
    """All images of a set, (N, C, h, w) uint8, large ones reduced to what the classifier sees."""
    found: list[Tensor] = []
    for batch in images.batches(IMAGES_AT_ONCE):
        found.append(reduced(torch.from_numpy(batch)))
        done = sum(map(len, found))
        report(Progress(task=f"load {images.name}", done=done, total=len(images), unit="images"))
    return torch.cat(found)


def seen_classes(images: ImageSet, classifier: Classifier, report: Report) -> NDArray[np.int64]:
    """The class that the classifier sees in each image, (N,)."""
    found: list[NDArray[np.int64]] = []
    for batch in images.batches(IMAGES_AT_ONCE):
        found.append(classes_of(classifier, torch.from_numpy(batch)).cpu().numpy())
        done = sum(map(len, found))
        report(Progress(task=f"classify {images.name}", done=done, total=len(images), unit="images"))
    return np.concatenate(found)


def consistency(
    seen: NDArray[np.int64], asked: NDArray[np.int64], seed: int, class_names: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """The share of images in which the class asked for is seen, with its interval; None if none was asked for.

    Also the share of each class that was asked for, by name.
    """
    right = (seen == asked)[asked >= 0].astype(np.float64)
    if not len(right):
        return None
    low, high = interval(Estimate.mean_of(right), seed)
    numbers = {name: number for number, name in enumerate(class_names) if (asked == number).any()}
    by_class = {name: float((seen == asked)[asked == number].mean()) for name, number in numbers.items()}
    return {"images": len(right), "share": float(right.mean()), "low": low, "high": high, "by_class": by_class}
