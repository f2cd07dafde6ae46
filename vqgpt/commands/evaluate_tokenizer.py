"""`vqgpt evaluate tokenizer`: what a VQ-GAN keeps of images, its use of codes, its robustness to wrong ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgpt.api.evaluation_options import EvaluateTokenizerConfig
from vqgpt.data.table import Dataset, find_dataset, held_out_split
from vqgpt.errors import UsageError, nearest_hint
from vqgpt.evaluation.record import (
    check_replaceable,
    command_text,
    keep_evaluation,
    picture_path,
    short,
)
from vqgpt.options.codec import to_json
from vqgpt.options.definition import Command, Flags
from vqgpt.options.paths import evaluation_path
from vqgpt.progress import Report
from vqgpt.storage.files import check_can_be_written, write_atomically

if TYPE_CHECKING:
    import torch

    from vqgpt.data.image_sets import ImageSet
    from vqgpt.evaluation.classifier import Classifier
    from vqgpt.evaluation.extractors import Extractor
    from vqgpt.evaluation.tokenizer import Reconstruction
    from vqgpt.vqgan.model import VQGAN

DISTANCES_OF = (("r", "reconstructions"), ("p", "perturbed_codes"))  # the letter before a distance's name


def run(config: EvaluateTokenizerConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Measure what a VQ-GAN keeps of images (PSNR, SSIM, rFID), its codes, and its robustness to wrong ones (pFID)."""
    from vqgpt.runtime.device import process_group, select_device

    with process_group(select_device(config.vqgan.device)) as device:
        return _run(config, flags, report, device)


def _run(config: EvaluateTokenizerConfig, flags: Flags, report: Report, device: "torch.device") -> dict[str, Any]:
    from vqgpt.api.tokenize import image_size
    from vqgpt.data.reading import check_options
    from vqgpt.evaluation.budget import best_features, load_features
    from vqgpt.evaluation.tokenizer import findings_of_reconstructions
    from vqgpt.runtime.device import rank
    from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_sha256, vqgan_sha256

    dataset = find_dataset(config.images.dataset)
    check_options(dataset, config.images)
    path = config.vqgan.path(dataset.name)
    model = load_vqgan(path, dataset.name, device, config.vqgan.remap).eval()
    size = image_size(config.size, model.config, dataset, report)
    record = config.out or evaluation_path(dataset.name)
    picture = picture_path(record, "worst-reconstructions") if config.worst else None
    check_replaceable(record, [picture] if picture else [], flags.overwrite)
    check_can_be_written(record)
    if flags.dry_run:
        return {"evaluation": record, "checkpoint": path, "grid": model.config.grid(size)}
    whole, held_out = _splits(config, dataset, model, path, size, report)
    measured_splits = [config.split] if config.split else list(whole)
    splits = {name: whole[name].drawn(config.limit) for name in measured_splits}
    classifier = _classifier(config, whole, held_out, device, report)
    features = config.features
    if features == "auto":
        features = best_features(classifier, splits[held_out], None, device)
    extractor = load_features(features, classifier, device)
    found = {}
    for name, images in splits.items():
        measured = _measure(config, images, model, extractor, report)
        if measured and name == held_out and picture:
            drawing = worst_picture(config, images, measured[1], model)
        if measured:
            found[name] = measured[0]
    if rank() > 0:
        return {}
    entry: dict[str, Any] = {
        "checkpoint": str(path),
        "features": {"kind": extractor.kind, "weights": extractor.sha256, "preprocessing": extractor.preprocessing},
        "splits": found,
        "held_out_MIND": None if held_out == "train" else found[held_out]["reconstructions"]["MIND"]["value"],
        "findings": list(findings_of_reconstructions(found, held_out)),
        "pictures": {"worst": str(picture)} if picture else {},
        "of": {
            "tokenizer": tokenizer_sha256(model),
            "vqgan": vqgan_sha256(model),
            "images": {name: images.sha256 for name, images in splits.items()},
            "weights": extractor.sha256,
            "perturb": config.perturb,
            "precision": config.vqgan.precision,
            "seed": config.seed,
        },
    }
    entry["line"] = _line(config, entry, held_out, len(splits[held_out]))
    keep_evaluation(record, "tokenizer", entry)
    if picture:  # after the entry that names it: a picture that none names is not replaced
        write_atomically(picture, drawing)
    return {**entry, "evaluation": str(record)}


def _splits(
    config: EvaluateTokenizerConfig, dataset: Dataset, model: "VQGAN", path: Path, size: int, report: Report
) -> tuple[dict[str, "ImageSet"], str]:
    """All splits of the dataset, and the one to judge by. Raises UsageError if there is no such split."""
    from vqgpt.api.image_sets import split_of
    from vqgpt.api.tokenize import preprocessing_for
    from vqgpt.data.reading import read_dataset
    from vqgpt.runtime.device import main_first

    preprocessing = preprocessing_for(config.images, dataset, model.config, path, size)
    with main_first():  # which downloads what is missing
        found = read_dataset(dataset, config.images, size, report)
    if config.split is not None and config.split not in found.splits:
        raise UsageError(f"{dataset.name} has no split {config.split!r}", nearest_hint(config.split, found.splits))
    splits = {name: split_of(dataset, found, name, preprocessing, config.images.workers) for name in found.splits}
    return splits, config.split or held_out_split(found.splits, dataset.name)


def _classifier(
    config: EvaluateTokenizerConfig,
    whole: Mapping[str, "ImageSet"],
    held_out: str,
    device: "torch.device",
    report: Report,
) -> "Classifier | None":
    """The classifier whose features are wanted; None where others are taken."""
    from vqgpt.evaluation.consistency import can_be_classified, classifier_for
    from vqgpt.evaluation.extractors import is_installed

    wanted = config.features == "classifier"
    if not wanted and (config.features != "auto" or is_installed("inception") or is_installed("lite0")):
        return None
    judged_by = held_out if held_out != "train" else held_out_split(whole, config.images.dataset)
    if not can_be_classified(whole["train"], whole[judged_by]):
        if wanted:
            raise UsageError("a classifier needs images with classes", "give other --features")
        return None
    return classifier_for(whole["train"], whole[judged_by], device, report)


def _measure(
    config: EvaluateTokenizerConfig, images: "ImageSet", model: "VQGAN", extractor: "Extractor", report: Report
) -> tuple[dict[str, Any], "Reconstruction"] | None:
    """All figures of one split, in JSON form, and the numbers of each image; None but in the main process."""
    from vqgpt.evaluation.features import features_of
    from vqgpt.evaluation.reconstruction import METRICS
    from vqgpt.evaluation.samples import figures_by_class, sample_figures
    from vqgpt.evaluation.tokenizer import (
        fits_lpips,
        lpips_metric,
        measure_reconstruction,
        perturbed,
        pixel_figures,
        pixel_figures_by_class,
        reconstructed,
    )
    from vqgpt.vqgan.perceptual import has_perceptual_loss, load_perceptual_loss

    metrics, precision = dict(METRICS), config.vqgan.precision
    if fits_lpips(images) and has_perceptual_loss("lpips"):
        device = model.quantize.embedding.weight.device
        metrics["lpips"] = lpips_metric(load_perceptual_loss("lpips", device, report), device)
    found = measure_reconstruction(images, model, metrics, precision, report)
    made = {"reconstructions": reconstructed(images, model, precision)}
    if config.perturb:
        made["perturbed_codes"] = perturbed(images, model, config.perturb, config.seed, precision)
    reference = features_of(images, extractor, report)
    features = {name: features_of(each, extractor, report) for name, each in made.items()}
    if found is None or reference is None:
        return None
    distance = extractor.distance_name
    figures: dict[str, Any] = {"images": len(images), **pixel_figures(found, config.seed)}
    for name, of_made in features.items():
        assert of_made is not None
        all_figures = sample_figures(of_made, reference, distance, config.seed)
        figures[name] = {key: to_json(figure) for key, figure in all_figures.items() if figure.value is not None}
    if images.class_names:
        labels, names = images.labels, images.class_names
        of_reconstructions = features["reconstructions"]
        assert of_reconstructions is not None
        of_features = figures_by_class(of_reconstructions, reference, labels, labels, names, distance, config.seed)
        of_pixels = pixel_figures_by_class(found, labels, names)
        kept = ("MIND", "KID", distance)
        figures["by_class"] = {
            name: {**of_pixels[name], **{key: of_features[name][key] for key in kept}} for name in names
        }
    return figures, found


def worst_picture(
    config: EvaluateTokenizerConfig, images: "ImageSet", found: "Reconstruction", model: "VQGAN"
) -> bytes:
    """A PNG of the images that are reconstructed worst, by PSNR, above their reconstructions."""
    import numpy as np
    import torch

    from vqgpt.api.render import SEED_OF_COLORS, reconstruction_png
    from vqgpt.evaluation.tokenizer import reconstructed

    order = np.argsort(found.numbers["psnr_db"], kind="stable")[: config.worst].tolist()
    made = reconstructed(images, model, config.vqgan.precision)
    originals, reconstructions = (torch.from_numpy(each.images(order)) for each in (images, made))
    counts = torch.from_numpy(found.code_counts)
    return reconstruction_png(originals, reconstructions, counts, to_json(config), SEED_OF_COLORS)


def _line(config: EvaluateTokenizerConfig, entry: Mapping[str, Any], held_out: str, count: int) -> str:
    """The result in one line, with all that it takes to get it again."""
    figures, features = entry["splits"][held_out], entry["features"]
    distances = [
        f"{letter}{name} {figures[kind][name]['value']:.4g}"
        for letter, kind in DISTANCES_OF
        for name in list(figures.get(kind, {}))[:2]
    ]
    return (
        f"PSNR {figures['metrics']['psnr_db']['value']:.2f} dB  {'  '.join(distances)}  {count:,} images of "
        f"{config.images.dataset}:{held_out}  {features['kind']} {short(features['weights'])} "
        f"({features['preprocessing']})  tokenizer {short(entry['of']['tokenizer'])}  seed {config.seed}  "
        f"{command_text(COMMAND.words, config)}"
    )


def shown(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of the result the screen shows: a table of the splits, distances, classes, and what looks wrong."""
    if "splits" not in result:
        return dict(result)
    splits = result["splits"]
    overview, distances, by_class = {}, {}, {}
    for name, figures in splits.items():
        means = {key: metric["value"] for key, metric in figures["metrics"].items()}
        codes = ("used_codes", "dead_codes", "perplexity", "share_of_the_most_used_code")
        overview[name] = {"images": figures["images"], **means, **{key: figures[key] for key in codes}}
        for letter, kind in DISTANCES_OF:
            for key, figure in list(figures.get(kind, {}).items())[:3]:
                distances[f"{letter}{key} of {name}"] = figure
        if "by_class" in figures:
            by_class[f"classes of {name}"] = figures["by_class"]
    return {
        "checkpoint": result["checkpoint"],
        "features": result["features"]["kind"],
        "evaluation": result["evaluation"],
        "pictures": result["pictures"],
        "splits": overview,
        "distances": distances,
        **by_class,
        "findings": result["findings"],
        "line": [result["line"]],
    }


COMMAND = Command(
    words="evaluate tokenizer", config=EvaluateTokenizerConfig, run=run, shown=shown, several_processes=True
)
