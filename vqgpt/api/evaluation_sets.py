"""The sets of images that `vqgpt evaluate samples` compares: the samples, real images, and those of the training."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vqgpt.api.evaluation_options import EvaluateSamplesConfig
from vqgpt.api.image_sets import cache_named, check_enough, find_images, made_comparable, references_of
from vqgpt.api.sources import check_same_codes
from vqgpt.data.image_sets import ImageSet
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.paths import cache_path
from vqgpt.progress import Notice, Report
from vqgpt.tokens import TokenCache


@dataclass(frozen=True, kw_only=True)
class Sets:
    """What is compared with what: the samples, the reference, and training images, of which there may be none.

    `held_out` are real images that were not trained on: those of the dataset, else the reference. `cache` is the token
    cache of the samples, `training_cache` that of the training, where there are such.
    """

    samples: ImageSet
    reference: ImageSet
    training: ImageSet | None
    held_out: ImageSet
    cache: TokenCache | None
    training_cache: TokenCache | None

    @property
    def dataset(self) -> str | None:
        """The dataset that the token cache of the samples records."""
        return self.cache.description.dataset if self.cache else None

    def drawn(self, count: int) -> "Sets":
        """The same with at most `count` samples and reference images; 0 for all. Raises InputError for fewer than 2."""
        found = replace(self, samples=self.samples.drawn(count), reference=self.reference.drawn(count))
        for images in (found.samples, found.reference, *([found.training] if found.training else [])):
            check_enough(images)
        return found


def find_sets(config: EvaluateSamplesConfig, report: Report) -> Sets:
    """The sets of images that the options name. Raises what finding them raises, and InputError if they differ."""
    cache = cache_named(config.samples)
    _check_no_flag_is_ignored(config, cache)
    samples = find_images(config.samples, config.size, None, config.sources, report)
    training_cache = _training_cache(config, cache, report)
    found = None
    needs_training = config.training is None and (config.training_images > 0 or config.classify)
    if cache is not None and (config.against is None or needs_training):
        try:
            found = references_of(cache, config.sources, report, training_cache)
        except (MissingDataError, UsageError, InputError) as error:
            if config.against is None:
                raise
            report(Notice(text=f"no training images, so samples are not searched for copies of them: {error.message}"))
    if config.against is not None:
        reference = find_images(config.against, config.size, samples, config.sources, report)
    elif found is not None:
        reference = found.held_out
    else:
        raise UsageError(
            f"{config.samples} does not record its dataset", "name the real images to compare with, with --against"
        )
    training = found.training if found else None
    if config.training is not None:
        training = find_images(config.training, config.size, samples, config.sources, report)
    samples, reference = made_comparable(samples, reference)
    if training is not None:
        training = made_comparable(samples, training)[1]
    return Sets(
        samples=samples,
        reference=reference,
        training=training,
        held_out=found.held_out if found else reference,
        cache=cache,
        training_cache=training_cache,
    )


def _check_no_flag_is_ignored(config: EvaluateSamplesConfig, cache: TokenCache | None) -> None:
    """Raise UsageError for a flag that would have no effect on these sets."""
    given = [source for source in (config.against, config.training) if source is not None]
    if cache is not None and config.size is not None and not given:
        raise UsageError(
            f"--size is for pictures and datasets, and {config.samples} is a token cache", "leave --size out"
        )
    for flag, value in (("--checkpoint-vae", config.sources.checkpoint_vae), ("--remap", config.sources.remap)):
        if value is not None and cache is None and not any(cache_named(source) for source in given):
            raise UsageError(f"{flag} decodes token caches, and there is none", f"leave {flag} out")


def _training_cache(config: EvaluateSamplesConfig, samples: TokenCache | None, report: Report) -> TokenCache | None:
    """The token cache of the training images, where it is at hand and goes with the samples.

    Raises InputError if one that was given does not.
    """
    if config.cache is not None:
        if samples is None:
            raise UsageError(
                f"--cache needs samples that are a token cache, and {config.samples} is none", "leave it out"
            )
        training = TokenCache(config.cache)
        check_same_codes(training, samples)
        return training
    if samples is None or samples.description.origin != "sampled":
        return None
    place = cache_path(samples.description.dataset)
    if not place.exists():
        return None
    try:
        training, theirs = TokenCache(place), samples.description
    except InputError as error:
        report(Notice(text=f"samples are not compared with training tokens: {error.message}"))
        return None
    same = training.description.tokenizer_sha256 == theirs.tokenizer_sha256
    return training if same and training.description.grid == theirs.grid else None


def check_classes(sets: Sets, by_class: bool | None, report: Report) -> None:
    """Raise UsageError if figures by class are asked for and impossible; tell why there are none otherwise."""
    if by_class is False or have_comparable_classes(sets):
        return
    samples, reference = sets.samples, sets.reference
    if not samples.class_names and not reference.class_names:
        why = f"neither {samples.name} nor {reference.name} has classes"
    elif not samples.class_names or not reference.class_names:
        without = reference if samples.class_names else samples
        why = f"{without.name} has no classes"
    else:
        why = f"{samples.name} and {reference.name} have different classes"
    if by_class:
        raise UsageError(f"there are no figures by class: {why}", "leave --by-class out, or give sets in class folders")
    if samples.class_names or reference.class_names:
        report(Notice(text=f"no figures by class: {why}"))


def have_comparable_classes(sets: Sets) -> bool:
    """True if both sets have labels, and the reference has all classes of the samples."""
    both = (sets.samples, sets.reference)
    labelled = all(images.class_names and (images.labels >= 0).any() for images in both)
    return labelled and set(sets.samples.class_names) <= set(sets.reference.class_names)


def labels_among(images: ImageSet, class_names: tuple[str, ...]) -> NDArray[np.int64]:
    """The labels of a set as numbers of these classes, (N,); -1 for none, and for a class that is not among them."""
    numbers = {name: number for number, name in enumerate(class_names)}
    table = np.array([*(numbers.get(name, -1) for name in images.class_names), -1])
    return table[images.labels]
