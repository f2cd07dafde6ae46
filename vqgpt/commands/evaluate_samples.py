"""`vqgpt evaluate samples`: how near samples are to real images, and whether they are copies of training images."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgpt.api.evaluation_options import EvaluateSamplesConfig
from vqgpt.data.table import held_out_or_none
from vqgpt.errors import UsageError
from vqgpt.evaluation.record import (
    check_replaceable,
    command_text,
    keep_evaluation,
    latest_evaluation,
    picture_path,
    short,
)
from vqgpt.options.codec import to_json
from vqgpt.options.definition import Command, Flags
from vqgpt.options.paths import evaluation_path
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import check_can_be_written, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from vqgpt.api.evaluation_sets import Sets
    from vqgpt.data.image_sets import ImageSet
    from vqgpt.evaluation.classifier import Classifier
    from vqgpt.evaluation.extractors import Extractor
    from vqgpt.evaluation.features import Features

PAIRS_SHOWN = 16


def run(config: EvaluateSamplesConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Measure how near samples are to real images (FID, KID, MIND), and whether they copy training images."""
    from vqgpt.runtime.device import process_group, select_device

    with process_group(select_device(config.sources.device)) as device:
        return _run(config, flags, report, device)


def _run(config: EvaluateSamplesConfig, flags: Flags, report: Report, device: "torch.device") -> dict[str, Any]:
    from vqgpt.api.evaluation_sets import check_classes, find_sets
    from vqgpt.evaluation.budget import best_features, load_features, within_seconds
    from vqgpt.evaluation.features import features_of
    from vqgpt.evaluation.pixels import digests_of
    from vqgpt.runtime.device import main_first, rank

    start = time.monotonic()

    def seconds_left() -> float | None:
        return None if config.seconds is None else config.seconds - (time.monotonic() - start)

    with main_first():  # which downloads what is missing
        sets = find_sets(config, report)
    record = config.out or (evaluation_path(sets.dataset) if sets.dataset else None)
    picture = picture_path(record, "nearest") if record and sets.training and config.training_images else None
    if record is not None:
        check_replaceable(record, [picture] if picture else [], flags.overwrite)
        check_can_be_written(record)
    check_classes(sets, config.by_class, report)
    if flags.dry_run:
        drawn = sets.drawn(config.limit)
        return {"samples": _name(drawn.samples), "reference": _name(drawn.reference), "evaluation": record}
    sets.drawn(config.limit)  # which refuses too few images before anything is trained
    classifier = _classifier(config, sets, seconds_left(), device, report)
    features = config.features
    if features == "auto":
        features = best_features(classifier, sets.samples, seconds_left(), device)
    extractor = load_features(features, classifier, device)
    in_haste = config.seconds is not None
    if in_haste:
        left, number = seconds_left() or 0.0, 3 if sets.training and config.training_images else 2
        count = within_seconds(left, extractor, sets.samples, number)
        report(Notice(text=f"{extractor.kind} features of at most {count:,} images of each set fit the time"))
        config = without_seconds(config, count, features, classifier is not None)
    whole_reference, sets = sets.reference, sets.drawn(config.limit)
    training = sets.training.drawn(config.training_images) if sets.training and config.training_images else None
    images = [sets.samples, sets.reference, *([training] if training else [])]
    found = [features_of(each, extractor, report) for each in images]
    of_images = [each for each in found if each is not None]
    if rank() > 0:
        return {}
    whole_sets = [whole_reference, *([sets.training] if training and sets.training else [])]
    digests = [
        each.digests if in_haste or each.count == len(whole) else digests_of(whole, report)
        for each, whole in zip(of_images[1:], whole_sets, strict=True)
    ]
    entry = measure(config, sets, of_images, digests, extractor, classifier, report)
    if record is None:
        return entry
    entry["findings"] += _tokenizer_findings(record, entry, extractor, sets)
    if picture and training:
        drawing = closest_picture(sets.samples, training, of_images[0], of_images[2], config)
        entry["pictures"] = {"nearest": str(picture)}
    keep_evaluation(record, "samples", entry)
    if picture and training:  # after the entry that names it: a picture that none names is not replaced
        write_atomically(picture, drawing)
    return {**entry, "evaluation": str(record)}


def without_seconds(config: EvaluateSamplesConfig, count: int, features: str, classify: bool) -> EvaluateSamplesConfig:
    """The options that measure the same without looking at the clock: `count` images of each set fit the time."""
    limit, training_images = (min(count, number or count) for number in (config.limit, config.training_images))
    return replace(
        config,
        seconds=None,
        limit=limit,
        training_images=training_images if config.training_images else 0,
        features=features,
        classify=classify,
    )


def _classifier(
    config: EvaluateSamplesConfig, sets: "Sets", seconds: float | None, device: "torch.device", report: Report
) -> "Classifier | None":
    """The classifier of the training images; None without classes or time for one."""
    from vqgpt.evaluation.budget import has_time_for_classifier
    from vqgpt.evaluation.consistency import can_be_classified, classifier_for

    training, held_out = sets.training, sets.held_out
    wanted = config.features == "classifier"
    possible = training is not None and can_be_classified(training, held_out)
    if wanted and not possible:
        raise UsageError(
            "the features of a classifier need training images with classes, and held-out ones of the same classes",
            "name them with --training and --against, or give other --features",
        )
    if training is None or not possible or not (config.classify or wanted):
        return None
    if wanted or seconds is None or has_time_for_classifier(seconds, training, held_out, device):
        return classifier_for(training, held_out, device, report)
    report(Notice(text="no classifier: training it would take longer than --seconds allows"))
    return None


def measure(
    config: EvaluateSamplesConfig,
    sets: "Sets",
    features: list["Features"],
    digests: list["NDArray[np.uint8]"],
    extractor: "Extractor",
    classifier: "Classifier | None",
    report: Report,
) -> dict[str, Any]:
    """All that is measured, in JSON form; `features` are those of the samples, of the reference, of training images.

    Equal images are searched for among those of the reference, and of the training, that have the `digests`.
    """
    from vqgpt.api.evaluation_sets import have_comparable_classes, labels_among
    from vqgpt.evaluation import findings, memorisation
    from vqgpt.evaluation import samples as figures_of
    from vqgpt.evaluation.consistency import seen_classes

    samples, reference, *training = features
    name, seed = extractor.distance_name, config.seed
    figures = figures_of.sample_figures(samples, reference, name, seed)
    in_reference = int(figures_of.images_in_both(samples, digests[0]).sum())
    distinct = figures_of.distinct_images(samples)
    sharpness = figures_of.relative_sharpness(samples, reference)
    names, by_class = sets.reference.class_names, None
    labels, of_reference = labels_among(sets.samples, names), sets.reference.labels
    if config.by_class is not False and have_comparable_classes(sets):
        by_class = figures_of.figures_by_class(samples, reference, labels, of_reference, names, name, seed)
    seen = seen_classes(sets.samples, classifier, report) if classifier else labels * 0 - 1
    classes = class_figures(config, sets, classifier, seen, report) if classifier else None
    shown, how = (labels, "") if (labels >= 0).any() else (seen, ", as a classifier sees them")
    tokens, copies = token_copies(sets, report), None
    if training:
        copies = memorisation.feature_figures(samples, reference, training[0], digests[1])
    found = [
        *findings.findings_of_sets(samples.count, in_reference, distinct, sharpness),
        *findings.findings_of_copies(tokens, copies),
        *(_class_findings(classes, classifier) if classes and classifier else ()),
        *(findings.findings_of_classes(shown, of_reference, names, how) if names else ()),
        *findings.findings_of_figures(figures),
        *findings.findings_of_numbers(samples.count, reference.count),
    ]
    entry: dict[str, Any] = {
        "samples": _name(sets.samples),
        "reference": _name(sets.reference),
        "features": {"kind": extractor.kind, "weights": extractor.sha256, "preprocessing": extractor.preprocessing},
        "figures": {key: to_json(figure) for key, figure in figures.items() if figure.value is not None},
        "different_images": distinct,
        "in_the_reference": in_reference,
        "relative_sharpness": sharpness,
        "by_class": by_class,
        "class_consistency": classes,
        "copies_by_tokens": tokens,
        "copies_by_features": copies,
        "findings": found,
    }
    entry["line"] = _line(config, sets, entry)
    entry["of"] = {
        "samples": sets.samples.sha256,
        "reference": sets.reference.sha256,
        "training": training[0].about["images"] if training else None,
        "training_cache": sets.training_cache.digest if sets.training_cache else None,
        "classifier": classifier is not None,
        "by_class": by_class is not None,
        "weights": extractor.sha256,
        "seed": seed,
    }
    return entry


def class_figures(
    config: EvaluateSamplesConfig, sets: "Sets", classifier: "Classifier", seen: "NDArray[np.int64]", report: Report
) -> dict[str, Any]:
    """How many samples, of which the classifier has `seen` the classes (N,), show the class asked for.

    Also how many reconstructions of held-out images do so, where their codes are at hand.
    """
    from vqgpt.api.evaluation_sets import labels_among
    from vqgpt.api.image_sets import cache_images
    from vqgpt.evaluation.consistency import MOST_HELD_OUT, consistency, seen_classes

    names, of_reconstructions = classifier.class_names, None
    cache = sets.training_cache
    split = held_out_or_none(cache.split_names) if cache else None
    if cache and split and cache.description.class_names == names:
        decoded = cache_images(cache, split, config.sources).drawn(min(config.limit or MOST_HELD_OUT, MOST_HELD_OUT))
        of_reconstructions = consistency(seen_classes(decoded, classifier, report), decoded.labels, config.seed, names)
    return {
        "samples": consistency(seen, labels_among(sets.samples, names), config.seed, names),
        "reconstructions": of_reconstructions,
        "real_held_out_images": {"share": classifier.accuracy},
        "classifier": dict(classifier.about),
    }


def _class_findings(classes: Mapping[str, Any], classifier: "Classifier") -> list[str]:
    from vqgpt.evaluation.findings import findings_of_consistency

    shares = classes["samples"], classes["reconstructions"]
    return list(findings_of_consistency(*shares, classifier.accuracy, len(classifier.class_names)))


def token_copies(sets: "Sets", report: Report) -> dict[str, Any] | None:
    """How near the tokens of samples are to training rows; None where there are no tokens of both."""
    from vqgpt.evaluation.memorisation import first_views, held_out_codes, nearest_rows, token_figures

    cache, training = sets.cache, sets.training_cache
    if cache is None or training is None or "train" not in training.split_names:
        return None
    split = sets.samples.name.rpartition(":")[2] if len(cache.split_names) > 1 else cache.split_names[0]
    codes = first_views(cache, split, sets.samples.rows)
    of_samples, of_held_out = nearest_rows(codes, training, "train", "samples", report), None
    if held_out := held_out_or_none(training.split_names):
        others = held_out_codes(training, held_out)
        of_held_out = nearest_rows(others, training, "train", "held-out images", report)
    return token_figures(of_samples, of_held_out, codes[0].size)


def closest_picture(
    samples: "ImageSet", training: "ImageSet", of_samples: "Features", of_training: "Features", config: Any
) -> bytes:
    """A PNG of the samples that are nearest to training images, each above that image."""
    from vqgpt.evaluation.memorisation import closest_pairs
    from vqgpt.pictures.sheet import comparison_sheet, png_bytes

    pairs = closest_pairs(of_samples, of_training, PAIRS_SHOWN)
    above = samples.images([number for number, _, _ in pairs])
    below = training.images([number for _, number, _ in pairs])
    captions = [f"distance {distance:.3g}" for _, _, distance in pairs]
    return png_bytes(comparison_sheet(above, below, captions), to_json(config))


def _tokenizer_findings(record: Path, entry: Mapping[str, Any], extractor: "Extractor", sets: "Sets") -> list[str]:
    """What the latest evaluation of their tokenizer says about these samples, if it used the same features."""
    from vqgpt.evaluation.findings import findings_of_tokenizer

    tokenizer = latest_evaluation(record, "tokenizer")
    if tokenizer is None or sets.cache is None:
        return []
    of, made_by = tokenizer["of"], sets.cache.description.tokenizer_sha256
    if of.get("weights") != extractor.sha256 or made_by not in (of.get("tokenizer"), of.get("vqgan")):
        return []
    distance = entry["figures"].get("MIND", {}).get("value")
    return list(findings_of_tokenizer(distance, tokenizer.get("held_out_MIND"), "MIND"))


def _name(images: "ImageSet") -> str:
    return f"{len(images):,} images of {images.name}"


def _line(config: EvaluateSamplesConfig, sets: "Sets", entry: Mapping[str, Any]) -> str:
    """The result in one line, with all that it takes to get it again."""
    figures = "  ".join(figure_text(name, figure) for name, figure in list(entry["figures"].items())[:2])
    features = entry["features"]
    seeds = f"seed {config.seed}"
    if sets.cache and "seed" in sets.cache.description.sampling:
        seeds = f"sampled with seed {sets.cache.description.sampling['seed']}, evaluated with {config.seed}"
    return (
        f"{figures}  {entry['samples']} against {entry['reference']}  {features['kind']} "
        f"{short(features['weights'])} ({features['preprocessing']})  {seeds}  "
        f"{command_text(COMMAND.words, config)}"
    )


def figure_text(name: str, figure: Mapping[str, Any]) -> str:
    """A figure on a line, with its interval where it has one."""
    interval = "" if figure["low"] is None else f" [{figure['low']:.4g}, {figure['high']:.4g}]"
    return f"{name} {figure['value']:.4g}{interval}"


def shown(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of the result the screen shows: the tables, and what looks wrong."""
    if "figures" not in result:
        return dict(result)
    classes, tokens, copies = (
        result.get(name) for name in ("class_consistency", "copies_by_tokens", "copies_by_features")
    )
    lines: dict[str, Any] = {name: result[name] for name in ("samples", "reference")}
    lines["features"] = result["features"]["kind"]
    lines |= {name: result[name] for name in ("different_images", "in_the_reference", "relative_sharpness")}
    if copies:
        lines |= {name.replace("_", " "): value for name, value in copies.items()}
    lines |= {name: result[name] for name in ("evaluation", "pictures") if result.get(name)}
    tables = {"figures": result["figures"]}
    if classes:
        kinds = ("samples", "reconstructions", "real_held_out_images")
        rows = {kind.replace("_", " "): classes[kind] for kind in kinds if classes[kind]}
        tables["class as asked for"] = {
            kind: {name: row.get(name) for name in ("images", "share", "low", "high")} for kind, row in rows.items()
        }
    if tokens:
        tables["nearest training row, in tokens"] = tokens
    if result["by_class"]:
        tables["by class"] = result["by_class"]
    return {**lines, **tables, "findings": result["findings"], "line": [result["line"]]}


COMMAND = Command(words="evaluate samples", config=EvaluateSamplesConfig, run=run, shown=shown, several_processes=True)
