"""Reads a run: its networks, caches, metrics and evaluations, and makes the pictures of its page.

    runs/NAME  ->  RunFacts

What is not there, or cannot be read, is said in `missing`, with the command that makes it. Nothing is written.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from vqgpt.api.image_sets import cache_images, references_of
from vqgpt.api.made import content_digest, read_record
from vqgpt.api.options import SourceOptions, TrainConfig, VQGANTrainConfig
from vqgpt.api.run_files import Run, trained_by
from vqgpt.api.sources import sample_config, tokenize_config
from vqgpt.data.reading import images_at_hand
from vqgpt.data.table import DATASETS
from vqgpt.errors import InputError, MissingDataError, VQGPTError
from vqgpt.evaluation.record import Kind, command_text, read_evaluations
from vqgpt.options.codec import to_json
from vqgpt.options.paths import EVALUATION_FILE
from vqgpt.progress import Progress, Report, silent
from vqgpt.report import sheets
from vqgpt.report.facts import Codebook, Line, RunFacts, Sheet, Stage
from vqgpt.report.sheets import Decoder
from vqgpt.runtime.process import library_versions
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.storage.files import read_regular
from vqgpt.tokens.arrays import codebook_rank
from vqgpt.vqgan.checkpoint import tokenizer_identities, vqgan_sha256

LARGEST_METRICS = 2**26  # bytes
LARGEST_NUMBER = 1e300


def gather(folder: Path, sources: SourceOptions, report: Report) -> RunFacts:
    """All there is to say of the run in `folder`. Raises MissingDataError if there is no run in it."""
    run, missing, done = Run(folder=folder, sources=sources), list[str](), itertools.count(1)
    parts = 1 + len(SHEETS) + len(EVALUATIONS)
    if not any((folder / name).exists() for name in ("gpt.pt", "vqgan.pt", "metrics.jsonl", "samples.zarr")):
        raise MissingDataError(
            f"there is no run in {folder}", f"make one with: vqgpt run --recipe {folder.name or 'digits'}"
        )

    def attempt(what: str, make: Callable[[], Any]) -> Any:
        """What `make` returns; None, and a sentence among those of what is missing, if it cannot."""
        try:
            return make()
        except VQGPTError as error:
            missing.append(f"{what}: {error.message}; {error.hint}")
            return None
        finally:
            report(Progress(task=f"report {folder}", done=next(done), total=parts, unit="parts"))

    codebook = attempt("how the codes are used", partial(codebook_of, run))
    drawn = [attempt(what, partial(make, run)) for what, make in SHEETS.items()]
    evaluations = {what: attempt(what, partial(latest, run, *kind)) for what, kind in EVALUATIONS.items()}
    return RunFacts(
        name=folder.name or str(folder),
        folder=folder,
        stages=stages_of(run),
        evaluations={EVALUATIONS[what][0]: entry for what, entry in evaluations.items() if entry},
        codebook=codebook,
        goes_together=tuple(what_does_not_go_together(run)),
        environment={name: str(version) for name, version in library_versions().items()},
        sheets=tuple(sheet for sheet in drawn if sheet is not None),
        missing=tuple(missing),
    )


def latest(run: Run, kind: Kind, remedy: str) -> Mapping[str, Any]:
    """The last evaluation of a kind that measured what is there now. Raises MissingDataError if none did."""
    entries = read_evaluations(run.folder / EVALUATION_FILE).get(kind, [])
    found = [entry for entry in entries if is_measured_by(run, kind, entry)]
    if not found:
        why = "what was measured was another one" if entries else "not measured"
        raise MissingDataError(why, f"{remedy.format(dataset=run.dataset, folder=run.folder)} does")
    return found[-1]


def is_measured_by(run: Run, kind: Kind, entry: Mapping[str, Any]) -> bool:
    """Whether an entry of an evaluation measured the samples, the VQ-GAN or the GPT that is there now."""
    match kind:
        case "gpt":
            now = {weights_sha256(run.gpt.model, run.gpt.model.config.identity)}
        case "tokenizer":
            now = {vqgan_sha256(run.vqgan)}
        case "samples":
            path = run.sources.checkpoint_vae or run.folder / "vqgan.pt"
            images = cache_images(run.samples, None, replace(run.sources, checkpoint_vae=path))
            number = str(entry.get("samples", "")).partition(" ")[0].replace(",", "")  # "2,000 images of ..."
            now = {images.sha256, images.drawn(int(number) if number.isdecimal() else 0).sha256}
        case _:
            assert_never(kind)
    return entry["of"].get({"tokenizer": "vqgan"}.get(kind, kind)) in now


EVALUATIONS: dict[str, tuple[Kind, str]] = {
    "how good the samples are": ("samples", "vqgpt evaluate samples {folder}/samples.zarr"),
    "what the tokenizer loses": ("tokenizer", "vqgpt evaluate tokenizer --dataset {dataset}"),
    "how well the GPT predicts": ("gpt", "vqgpt evaluate gpt --dataset {dataset}"),
}


def codebook_of(run: Run) -> Codebook:
    """How the training split uses the codes, by the manifest of its cache."""
    manifest = run.cache.manifest
    split = "train" if "train" in manifest.statistics else next(iter(manifest.statistics))
    counts = np.array(manifest.statistics[split].histogram, dtype=np.int64)
    return Codebook(
        counts=counts,
        rank=codebook_rank(run.cache.codebook(), counts) if manifest.description.code_dimension > 1 else 0.0,
        unverified=manifest.description.unverified,
    )


def decoder_of(run: Run) -> Decoder:
    """The VQ-GAN of a run, with how its images are shown."""
    return Decoder(model=run.vqgan)


def _reconstructions(run: Run) -> Sheet:
    description = run.cache.description
    if description.dataset not in DATASETS:
        raise MissingDataError(f"{description.dataset} is no dataset of this vqgpt", "look at the cache's own images")
    images = tokenize_config(run.cache.path, description, run.images).images
    if not images_at_hand(DATASETS[description.dataset], images):
        raise MissingDataError("the images are not here", "give --data-root, the folder of the images")
    return sheets.worst_reconstructions(references_of(run.cache, run.images, silent), run.vqgan, run.device)


def _calibration(run: Run) -> Sheet:
    latest(run, *EVALUATIONS["how well the GPT predicts"])  # which raises if it is not of this GPT
    return sheets.calibration_map(run.folder / "calibration.png")


SHEETS: dict[str, Callable[[Run], Sheet]] = {
    "samples by class": lambda run: sheets.samples_by_class(run.samples_of_cache, decoder_of(run)),
    "completions": lambda run: sheets.completions(run.gpt_of_cache, run.cache, run.held_out, decoder_of(run)),
    "reconstructions": _reconstructions,
    "nearest training images": lambda run: sheets.nearest_training_rows(
        run.samples_of_cache, run.cache, decoder_of(run)
    ),
    "the codes": lambda run: sheets.code_tiles(codebook_of(run).counts, run.cache.description.grid, decoder_of(run)),
    "the calibration map": _calibration,
}


def what_does_not_go_together(run: Run) -> Iterator[str]:
    """Sentences on a GPT, samples and a tokenizer that are not of one run."""
    try:
        cache = run.cache
    except VQGPTError:
        return
    known = {cache.description.tokenizer_sha256}
    try:
        with suppress(MissingDataError):
            known |= set(tokenizer_identities(run.vqgan))
    except InputError as error:
        if cache.description.knows_its_vqgan:
            yield f"{error.message}: what it decodes shows nothing. {error.hint[0].upper()}{error.hint[1:]}"
    with suppress(VQGPTError):
        theirs = run.gpt.description.tokenizer_sha256 if run.gpt.description else None
        if theirs not in (None, *known):
            yield f"the GPT was trained on tokens of another VQ-GAN than {cache.path}: train again"


def stages_of(run: Run) -> dict[str, Stage]:
    """What is known of each stage, from networks and caches, the records of `vqgpt run` and the metrics."""
    found = {}
    for table, (words, configure, checkpoint) in STAGES.items():
        try:
            config = configure(run)
        except VQGPTError:  # which says of another version, or that there is none
            config = None
        record, path = read_record(run.folder / f"{table}.made.json"), run.folder / checkpoint
        found[table] = Stage(
            configuration=to_json(config) if config else {},
            digest=(content_digest(path) or "") if checkpoint else "",
            seconds=record.seconds if record else None,
            command=command_text(words, config) if config else "",
            curves=tuple(curves(run.folder / "metrics.jsonl", checkpoint)) if checkpoint else (),
        )
    return {table: stage for table, stage in found.items() if stage.configuration or stage.curves}


STAGES: dict[str, tuple[str, Callable[[Run], Any], str]] = {  # by table: the command, its options, what it trains
    "vqgan-train": ("vqgan train", lambda run: trained_by(VQGANTrainConfig, run.folder / "vqgan.pt"), "vqgan.pt"),
    "tokenize": ("tokenize", lambda run: tokenize_config(run.cache.path, run.cache.description, run.images), ""),
    "train": ("train", lambda run: trained_by(TrainConfig, run.folder / "gpt.pt"), "gpt.pt"),
    "sample": (
        "sample",
        lambda run: sample_config(run.samples.path, run.samples.description, run.images, run.folder / "gpt.pt"),
        "",
    ),
}


def curves(metrics: Path, checkpoint: str) -> list[Line]:
    """The lines of a training, the last of each step, in order; lines that are none are left out."""
    try:
        lines = read_regular(metrics, LARGEST_METRICS).decode(errors="replace").splitlines()
    except (FileNotFoundError, VQGPTError):
        return []
    by_step: dict[int, Line] = {}
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and line.get("checkpoint") == checkpoint and isinstance(line.get("step"), int):
            by_step[line["step"]] = {name: value for name, value in line.items() if _is_number(value)}
    return [by_step[step] for step in sorted(by_step) if "epoch" in by_step[step]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER
