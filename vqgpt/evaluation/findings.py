"""What looks wrong, in plain sentences, from the figures of an evaluation: a user should not have to know the metrics.

figures  ->  sentences, the gravest first; none where nothing stands out
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.evaluation.samples import ENOUGH_FOR_FRECHET, Figure

MOST_NAMES = 5
SAME_IMAGES = 0.01  # share of the samples that are images of the reference
FEW_DISTINCT = 0.98  # share of different images
RARE = 0.2  # of a class's share in the reference
BLURRED, NOISY = 0.8, 1.25  # relative sharpness
LOW_PRECISION, LOW_RECALL = 0.3, 0.1
COPIES = 0.01  # share of the samples, above that of held-out rows
NEARER_TO_TRAINING = -3.0  # standard deviations
LESS_AUTHENTIC = 0.5  # of the share among held-out images
UNCLEAR = 0.75  # of the classifier's accuracy on real images
NO_BETTER_THAN_CHANCE = 0.25  # of the way from guessing to that accuracy
KNOWS_LITTLE = 0.2  # of the way from guessing to always
TOKENIZER_LIMITS = 0.7  # of the samples' distance


def findings_of_sets(samples: int, in_reference: int, distinct: int, sharpness: float) -> Iterator[str]:
    """Of the sets themselves, of so many samples: of the reference, repeated, blurred or noisy."""
    if in_reference > SAME_IMAGES * samples:
        yield (
            f"{in_reference:,} of {samples:,} samples are images of the reference, pixel for pixel: "
            "the figures do not measure anything new"
        )
    if distinct < FEW_DISTINCT * samples:
        word = "image" if distinct == 1 else "images"
        yield f"the samples repeat themselves: {distinct:,} different {word} among {samples:,}"
    if sharpness < BLURRED:
        yield f"the samples are blurred: neighbouring pixels differ {sharpness:.2f} times as much as in the reference"
    if sharpness > NOISY:
        yield f"the samples are noisy: neighbouring pixels differ {sharpness:.2f} times as much as in the reference"


def findings_of_numbers(samples: int, reference: int) -> Iterator[str]:
    """Whether there are enough images of both sets."""
    if min(samples, reference) < ENOUGH_FOR_FRECHET:
        yield (
            f"{samples:,} samples against {reference:,} images are few: below {ENOUGH_FOR_FRECHET:,} the Frechet "
            "distance is far too high and depends on the number; compare MIND and KID instead"
        )


def findings_of_figures(figures: Mapping[str, Figure]) -> Iterator[str]:
    """Of precision and recall."""
    precision, recall = figures["precision"].value, figures["recall"].value
    if precision is not None and precision < LOW_PRECISION:
        yield f"few samples look like real images: precision {precision:.2f}"
    if recall is not None and recall < LOW_RECALL:
        yield f"the samples show little of the variety of real images: recall {recall:.2f}"


def findings_of_classes(
    seen: NDArray[np.int64], reference: NDArray[np.int64], class_names: tuple[str, ...], how: str
) -> Iterator[str]:
    """Classes that are missing or rare among samples; `how` says how their classes are known."""
    shares = [np.bincount(each[each >= 0], minlength=len(class_names)) for each in (seen, reference)]
    of_samples, of_reference = (counts / max(1, counts.sum()) for counts in shares)
    if not shares[0].sum():
        return
    expected = of_reference * shares[0].sum()
    missing = [name for number, name in enumerate(class_names) if not shares[0][number] and expected[number] >= 5]
    rare = [
        name
        for number, name in enumerate(class_names)
        if shares[0][number] and expected[number] >= 10 and of_samples[number] < RARE * of_reference[number]
    ]
    if missing:
        yield f"no sample is of {_names('class', missing)}{how}"
    if rare:
        yield f"few samples are of {_names('class', rare)}{how}"


def findings_of_consistency(
    samples: Mapping[str, Any] | None, reconstructions: Mapping[str, Any] | None, accuracy: float, num_classes: int
) -> Iterator[str]:
    """Whether samples and reconstructions show their class, by a classifier that is better than chance."""
    chance = 1 / num_classes
    if accuracy < chance + KNOWS_LITTLE * (1 - chance):
        yield f"the classifier says little: it is right in {accuracy:.0%} of real images; guessing gives {chance:.0%}"
        return
    if samples is not None:
        share = samples["share"]
        if share < chance + NO_BETTER_THAN_CHANCE * (accuracy - chance):
            yield (
                f"the labels do not belong to the samples: {share:.0%} are classified as the class asked for, and "
                f"guessing would give {chance:.0%}"
            )
        elif share < UNCLEAR * accuracy:
            yield f"{share:.0%} of the samples are classified as the class asked for, and {accuracy:.0%} of real images"
    if reconstructions is not None and reconstructions["share"] < UNCLEAR * accuracy:
        yield (
            f"the tokenizer loses the class: {reconstructions['share']:.0%} of reconstructions are classified as their "
            f"class, and {accuracy:.0%} of real images"
        )


def findings_of_copies(tokens: Mapping[str, Any] | None, features: Mapping[str, Any] | None) -> Iterator[str]:
    """Whether samples are copies of training images."""
    if tokens is not None:
        samples, held_out = tokens["samples"], tokens.get("held-out")
        share = samples["copies"] / max(1, samples["images"])
        usual = held_out["copies"] / max(1, held_out["images"]) if held_out else 0.0
        if share > usual + COPIES:
            yield (
                f"{samples['copies']:,} of {samples['images']:,} samples match a training image token for token "
                f"(held-out images: {usual:.1%})"
            )
        elif held_out and samples["nearest_row_differs_in"] < LESS_AUTHENTIC * held_out["nearest_row_differs_in"]:
            yield (
                "the samples are near-copies of training images: the nearest one differs in "
                f"{samples['nearest_row_differs_in']:.1f} tokens, and for held-out images in "
                f"{held_out['nearest_row_differs_in']:.1f}"
            )
    if features is None:
        return
    equal, usual = features["equal_to_a_training_image"], features["equal_held_out"]
    if equal > usual + COPIES or (equal and not usual):
        yield (
            f"{equal:.1%} of the samples equal a training image in all pixels (held-out images: {usual:.1%}; among "
            f"{features['searched_for_equals']:,} training images)"
        )
    if features["authentic"] < LESS_AUTHENTIC * features["authentic_held_out"]:
        yield (
            f"samples are suspiciously near to training images: {features['authentic']:.0%} are authentic, of held-out "
            f"images {features['authentic_held_out']:.0%}"
        )
    nearer = features["copying_test"] is not None and features["copying_test"] < NEARER_TO_TRAINING
    if nearer and features["authentic"] < features["authentic_held_out"]:  # what is blurred lies near to everything
        yield f"samples are nearer to training images than held-out images are: C_T {features['copying_test']:.1f}"


def findings_of_tokenizer(distance: float | None, reconstruction_distance: float | None, name: str) -> Iterator[str]:
    """Which of the two stages limits the samples, where the tokenizer was measured in the same features."""
    if distance is None or reconstruction_distance is None:
        return
    if reconstruction_distance > TOKENIZER_LIMITS * distance:
        yield (
            f"the tokenizer limits the samples: its reconstructions have {name} {reconstruction_distance:.1f}, the "
            f"samples {distance:.1f}"
        )


def _names(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    return f"{what} {shown}" if len(names) == 1 else f"{what}es {shown}"
