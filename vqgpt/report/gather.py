"""Reads a run: its networks, caches, metrics and evaluations, and makes the pictures of its page.

    runs/NAME  ->  RunFacts

What is not there, or cannot be read, is said in `missing`, with the command that makes it. Nothing is written.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqgpt.api.image_sets import references_of
from vqgpt.api.made import read_record
from vqgpt.api.options import SourceOptions, TrainConfig, VQGANTrainConfig
from vqgpt.api.render import vqgan_at
from vqgpt.api.sources import check_goes_with, check_same_codes, sample_config, tokenize_config
from vqgpt.data.reading import images_at_hand
from vqgpt.data.table import DATASETS, held_out_or_none
from vqgpt.errors import InputError, MissingDataError, VQGPTError
from vqgpt.evaluation.record import command_text, read_evaluations
from vqgpt.gpt.checkpoint import LoadedGPT, load_gpt
from vqgpt.options.codec import from_json, to_json
from vqgpt.options.paths import EVALUATION_FILE, cache_path
from vqgpt.progress import Notice, Report, silent
from vqgpt.report import sheets
from vqgpt.report.facts import Codebook, Line, RunFacts, Sheet, Stage
from vqgpt.runtime.process import library_versions
from vqgpt.storage.checkpoint import is_ours, read_checkpoint_file
from vqgpt.storage.files import read_regular
from vqgpt.tokens import TokenCache
from vqgpt.tokens.arrays import codebook_rank
from vqgpt.vqgan.checkpoint import tokenizer_identities
from vqgpt.vqgan.model import VQGAN

LARGEST_METRICS = 2**26  # bytes
LARGEST_NUMBER = 1e300
CPU = torch.device("cpu")


def trained_by(config_class: type, path: Path) -> Any:
    """The configuration of a training, as its checkpoint holds it. Raises InputError if it has none of ours."""
    content = read_checkpoint_file(path)
    configuration = content.get("configuration") if is_ours(content) else None
    if not isinstance(configuration, dict):
        raise InputError(f"{path} does not say how it was trained", "train one with vqgpt")
    known = {name: value for name, value in configuration.items() if name != "perceptual_loss"}
    return from_json(config_class, known, str(path))


@dataclass(frozen=True)
class Run:
    """The files of a run, each opened when it is first asked for."""

    folder: Path
    sources: SourceOptions

    @cached_property
    def gpt(self) -> LoadedGPT:
        """Its GPT."""
        return load_gpt(self.folder / "gpt.pt", CPU)

    @cached_property
    def samples(self) -> TokenCache:
        """Its samples."""
        return TokenCache(self.folder / "samples.zarr")

    @cached_property
    def dataset(self) -> str:
        """What it was trained on, by its GPT or its samples, or the name of the folder."""
        with suppress(VQGPTError):
            if self.gpt.description:
                return self.gpt.description.dataset
        with suppress(VQGPTError):
            return self.samples.description.dataset
        with suppress(VQGPTError):
            return trained_by(VQGANTrainConfig, self.folder / "vqgan.pt").images.dataset
        return self.folder.name

    @cached_property
    def cache(self) -> TokenCache:
        """The token cache that its GPT was trained on, or that of its dataset."""
        with suppress(VQGPTError):
            if path := trained_by(TrainConfig, self.folder / "gpt.pt").cache:
                return TokenCache(path)
        return TokenCache(cache_path(self.dataset))

    @cached_property
    def images(self) -> SourceOptions:
        """Where its images and its VQ-GAN are: as asked for, else where the VQ-GAN found them."""
        if self.sources.data_root is not None:
            return self.sources
        with suppress(VQGPTError):
            trained = trained_by(VQGANTrainConfig, self.folder / "vqgan.pt")
            return replace(self.sources, data_root=trained.images.data_root)
        return self.sources

    @cached_property
    def vqgan(self) -> VQGAN:
        """The VQ-GAN that made the tokens. Raises MissingDataError if that of the run is another."""
        path = self.sources.checkpoint_vae or self.folder / "vqgan.pt"
        found = vqgan_at(path, self.cache.description)
        if found is None:
            raise MissingDataError(
                f"{path} is not the VQ-GAN of {self.cache.path}", "give the one that made it, with --checkpoint-vae"
            )
        return found.eval()

    @cached_property
    def decoder(self) -> sheets.Decoder:
        """It, with how its images are shown."""
        return sheets.Decoder(model=self.vqgan)

    @property
    def samples_of_cache(self) -> TokenCache:
        """Its samples. Raises InputError if their codes mean other things than those of the cache."""
        check_same_codes(self.cache, self.samples)
        return self.samples

    @property
    def gpt_of_cache(self) -> LoadedGPT:
        """Its GPT, on the grid of the cache. Raises InputError if it was trained on tokens of another kind."""
        path, grid = self.folder / "gpt.pt", self.cache.description.grid
        gpt = self.gpt if self.gpt.description else load_gpt(path, CPU, None, grid)
        check_goes_with(gpt.model.config, gpt.description, path, self.cache, silent)
        return gpt

    @cached_property
    def held_out(self) -> str:
        """The held-out split. Raises MissingDataError if there is none."""
        split = held_out_or_none(self.cache.split_names)
        if split is None:
            raise MissingDataError(f"{self.cache.path} has no held-out split", "tokenize with --val-split 0.1")
        return split


def gather(folder: Path, sources: SourceOptions, report: Report) -> RunFacts:
    """All there is to say of the run in `folder`. Raises MissingDataError if there is no run in it."""
    run, missing = Run(folder, sources), []
    if not any((folder / name).exists() for name in ("gpt.pt", "vqgan.pt", "metrics.jsonl", "samples.zarr")):
        raise MissingDataError(
            f"there is no run in {folder}", f"make one with: vqgpt run --recipe {folder.name or 'digits'}"
        )

    def attempt(what: str, make: Callable[[], Any]) -> Any:
        """What `make` returns; None, and a sentence among those of what is missing, if it cannot."""
        report(Notice(text=f"report: {what}"))
        try:
            return make()
        except VQGPTError as error:
            missing.append(f"{what}: {error.message}; {error.hint}")
            return None

    codebook = attempt("how the codes are used", partial(codebook_of, run))
    drawn = [attempt(what, partial(make, run)) for what, make in SHEETS.items()]
    evaluations = attempt("evaluations", partial(read_evaluations, folder / EVALUATION_FILE)) or {}
    missing += [
        f"{what}: not measured; vqgpt evaluate {kind} --dataset {run.dataset}"
        for kind, what in (("tokenizer", "what the tokenizer loses"), ("gpt", "how well the GPT predicts"))
        if kind not in evaluations
    ]
    if "samples" not in evaluations:
        missing.append(f"how good the samples are: not measured; vqgpt evaluate samples {folder / 'samples.zarr'}")
    return RunFacts(
        name=folder.name or str(folder),
        folder=folder,
        stages=stages_of(run),
        evaluations={kind: entries[-1] for kind, entries in evaluations.items() if entries},
        codebook=codebook,
        goes_together=tuple(what_does_not_go_together(run)),
        environment={name: str(version) for name, version in library_versions().items()},
        sheets=tuple(sheet for sheet in drawn if sheet is not None),
        missing=tuple(missing),
    )


def codebook_of(run: Run) -> Codebook:
    """How the training split uses the codes, by the manifest of its cache."""
    manifest = run.cache.manifest
    split = "train" if "train" in manifest.statistics else next(iter(manifest.statistics))
    counts = np.array(manifest.statistics[split].histogram, dtype=np.int64)
    return Codebook(
        counts=counts,
        rank=codebook_rank(run.cache.codebook(), counts),
        perplexity=manifest.statistics[split].perplexity,
        unverified=manifest.description.unverified,
    )


def _reconstructions(run: Run) -> Sheet:
    description = run.cache.description
    if description.dataset not in DATASETS:
        raise MissingDataError(f"{description.dataset} is no dataset of this vqgpt", "look at the cache's own images")
    images = tokenize_config(run.cache.path, description, run.images).images
    if not images_at_hand(DATASETS[description.dataset], images):
        raise MissingDataError("the images are not here", "give --data-root, the folder of the images")
    return sheets.worst_reconstructions(references_of(run.cache, run.images, silent), run.vqgan)


def _calibration(run: Run) -> Sheet:
    path = run.folder / "calibration.png"
    if not path.exists():
        raise MissingDataError("it was not measured", f"vqgpt evaluate gpt --dataset {run.dataset} does")
    return sheets.calibration_map(path)


SHEETS: dict[str, Callable[[Run], Sheet]] = {
    "samples by class": lambda run: sheets.samples_by_class(run.samples_of_cache, run.decoder),
    "completions": lambda run: sheets.completions(run.gpt_of_cache, run.cache, run.held_out, run.decoder),
    "reconstructions": _reconstructions,
    "nearest training images": lambda run: sheets.nearest_training_rows(run.samples_of_cache, run.cache, run.decoder),
    "the codes": lambda run: sheets.code_tiles(codebook_of(run).counts, run.cache.description.grid, run.decoder),
    "the calibration map": _calibration,
}


def what_does_not_go_together(run: Run) -> Iterator[str]:
    """Sentences on a GPT, samples and a tokenizer that are not of one run."""
    try:
        cache, gpt = run.cache, run.gpt
        vqgan = vqgan_at(run.folder / "vqgan.pt", cache.description)
    except VQGPTError:
        return
    if (run.folder / "vqgan.pt").exists() and vqgan is None and cache.description.knows_its_vqgan:
        yield (
            f"{run.folder / 'vqgan.pt'} is not the VQ-GAN that made {cache.path}: what it decodes shows nothing; "
            "tokenize and train again"
        )
    theirs = gpt.description.tokenizer_sha256 if gpt.description else None
    known = (cache.description.tokenizer_sha256, *(tokenizer_identities(vqgan) if vqgan else ()))
    if theirs and theirs not in known:
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
            digest=_sha256(path) if checkpoint and path.exists() else "",
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


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
