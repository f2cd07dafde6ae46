"""`vqgpt run`: from images to pictures, through the stages that are not up to date.

A stage runs as its own command does, with the same recipe. What a stage made is recorded with what it was made of, and
compared by content: a small JSON file, runs/DATASET/STAGE.made.json. File times say nothing.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from vqgpt.api.options import (
    ReconstructConfig,
    RunConfig,
    SampleConfig,
    StageName,
    TokenizeConfig,
    TrainConfig,
    VQGANTrainConfig,
)
from vqgpt.data.file_trees import open_tree
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import check_options
from vqgpt.data.table import find_dataset
from vqgpt.errors import InputError, MissingDataError, UsageError, VQGPTError
from vqgpt.options.codec import flat, from_json, to_json
from vqgpt.options.definition import Command, Flags, options_of, resolve
from vqgpt.options.paths import RUNS_FOLDER, CachePath, CacheURL, beside, gpt_path, samples_path
from vqgpt.options.recipe import values_for
from vqgpt.progress import Notice, Report
from vqgpt.storage.checkpoint import is_ours, read_checkpoint_file
from vqgpt.storage.files import canonical_json, open_regular, read_regular, sha256, write_atomically
from vqgpt.tokens.reader import read_manifest

LARGEST_RECORD = 2**20  # bytes
LEAVE_THE_RESULT_ALIKE = {  # where files lie is not what is in them, which is an input of its own
    *("dataset", "data_root", "out", "cache", "checkpoint_vae", "checkpoint_gpt"),
    *("device", "num_workers", "wandb", "tensorboard", "keep_last", "shard", "show"),
}

STAGES = get_args(StageName)
NETWORKS = ("vqgan-train", "train")
TAKES_LONG = (*NETWORKS, "tokenize")  # a result of these is replaced only when that is asked for


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage made: the digests of its results, by path, of which options and of which inputs, by their digests.

    It is not `finished` while the stage runs. `seconds` is how long that took, None if it is not known.
    """

    options: dict[str, Any]
    inputs: dict[str, str]
    results: dict[str, str]
    finished: bool = True
    seconds: float | None = None


def read_record(path: Path) -> Made | None:
    """The record at `path`; None if there is none, or none that can be read."""
    try:
        return from_json(Made, json.loads(read_regular(path, LARGEST_RECORD)), str(path))
    except (FileNotFoundError, InputError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def write_record(path: Path, made: Made) -> None:
    """Write a record in one step."""
    write_atomically(path, canonical_json(to_json(made)))


def options_that_count(table: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Of a configuration in JSON form, the options that the stage's result depends on, by name."""
    alike = LEAVE_THE_RESULT_ALIKE | ({"batch_size"} if table == "tokenize" else set())
    return {name: value for name, value in flat(configuration).items() if name not in alike}


def what_changed(table: str, config_class: type, now: Made, before: Made) -> str:
    """What differs between two records of one stage, as a user reads it; "" if nothing does.

    An option that the earlier one does not know, from another version of vqgpt, had its default.
    """
    changes = []
    for item in options_of(config_class):
        if item.name in now.options:
            default = list(item.default) if isinstance(item.default, tuple) else item.default
            old, new = before.options.get(item.name, default), now.options[item.name]
            if old != new:
                changes.append(f"{item.key} was {_shown(old)}, is {_shown(new)}")
    settings = [f"[{table}] {'; '.join(changes)}"] if changes else []
    names = [name for name in now.inputs if now.inputs[name] != before.inputs.get(name)]
    return "; ".join([*settings, *(f"the {name} changed" for name in names)])


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def images_digest(options: ImageOptions) -> str | None:
    """Of a published dataset its name, whose files are checked as they are fetched; of one's own, all names and files.

    None if they are not here. Raises UsageError for a folder that was not named, OSError for an unreadable file.
    """
    dataset = find_dataset(options.dataset)
    if dataset.reader != "folder":
        return dataset.name
    if options.data_root is not None and not options.root.exists():
        return None
    check_options(dataset, options)
    tree = open_tree(options.root)
    return sha256(canonical_json({ascii(name): sha256(tree.read(name)) for name in tree.sizes}))


def content_digest(path: CachePath) -> str | None:
    """SHA-256 of a file, or the digest of a token cache; None if it is not there, not finished, or cannot be read."""
    if isinstance(path, CacheURL) or path.suffix == ".zarr":
        try:
            manifest = read_manifest(path)
        except (MissingDataError, InputError):
            return None
        return manifest.digest if manifest.complete else None
    if not path.exists():
        return None
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_by_command(table: str, path: Path, inputs: Mapping[str, str]) -> Made | None:
    """What a trained network says itself of how it was made; None for an imported one, which does not say."""
    content = read_checkpoint_file(path)
    configuration = content["configuration"] if is_ours(content) else {}
    if not configuration or "family" in configuration:
        return None
    known = {"token cache": content["cache_digest"]} if "cache_digest" in content else {}
    return Made(options=options_that_count(table, configuration), inputs={**inputs, **known}, results={})


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with its configuration: what it writes, what it reads by name, and the images that it reads."""

    command: Command
    config: Any
    record: Path
    results: tuple[CachePath, ...]
    needs: Mapping[str, CachePath]
    images: ImageOptions | None

    @property
    def takes_long(self) -> bool:
        """True if what it made is to be kept unless the user asks."""
        return self.command.table in TAKES_LONG


def run(
    config: RunConfig,
    recipe: Path,
    content: Mapping[str, Any],
    flags: Flags,
    commands: Mapping[str, Command],
    report: Report,
) -> dict[str, Any]:
    """Run the stages that are not up to date; the result tells of each what was done, why, and in how many seconds.

    Raises UsageError if what took long is out of date and `flags` do not ask to replace it, and what the stages raise.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    made_anew: dict[CachePath, str] = {}  # by a dry run: which stage would
    digest_of_images = functools.cache(images_digest)
    stages = stages_of(config, content, str(recipe), commands)
    expected = functools.cache(lambda: _expected_seconds(stages, report))
    for stage in stages:
        words = stage.command.words
        before = read_record(stage.record)
        now = Made(options={}, inputs={}, results=digests(stage.results))
        makers = [made_anew[path] for path in stage.needs.values() if path in made_anew]
        if makers:
            why, replaces = f"after {makers[0]}", bool(now.results)
        else:
            options = options_that_count(stage.command.table, to_json(stage.config))
            now = replace(now, options=options, inputs=inputs_of(stage, before, digest_of_images))
            why, replaces = judge(stage, now, before)
        stops = replaces and not flags.overwrite
        if stops and not flags.dry_run:
            raise UsageError(
                f"{stage.results[0]} is not replaced unasked, and vqgpt {words} would: {why}",
                "give --overwrite to replace it, or undo the change",
            )
        report(Notice(text=f"{words}: {why or 'up to date'}"))
        if not why:
            state = "up to date"
            if not flags.dry_run and (before is None or before.results != now.results):  # another command made it
                write_record(stage.record, now)
        elif flags.dry_run:
            state = "stops without --overwrite" if stops else "would run"
            made_anew |= dict.fromkeys(stage.results, words)
        else:
            state, before = "done", make(stage, now, flags, report)
        seconds = before.seconds if before else None
        if seconds is None and state == "would run":
            seconds = expected().get(stage.command.table)
        outcomes[words] = {"state": state, "why": why, "seconds": seconds}
        if flags.dry_run and stops:
            break
    return {"recipe": recipe, "stages": outcomes}


def stages_of(
    config: RunConfig, recipe: Mapping[str, Any], source: str, commands: Mapping[str, Command]
) -> list[Stage]:
    """The stages up to `until`, configured by the recipe read from `source` as their commands are.

    Each takes what the one before it makes. No VQ-GAN is trained where the recipe names another to tokenize with.
    """
    wanted = {"dataset": config.dataset, "data_root": config.data_root, "device": config.device}
    recorded = {"device": "auto", **recipe}
    given = {name: value for name, value in wanted.items() if value is not None and str(value) != recorded.get(name)}

    def resolved(table: str, **made: Any) -> Any:
        return resolve(commands[table].config, given, values_for(commands[table], recipe, source, commands), made)

    train_vqgan: VQGANTrainConfig = resolved("vqgan-train")
    reconstruct: ReconstructConfig = resolved("vqgan-reconstruct", checkpoint_vae=train_vqgan.result)
    tokenize: TokenizeConfig = resolved("tokenize", checkpoint_vae=train_vqgan.result)
    dataset = tokenize.images.dataset
    vqgan = tokenize.vqgan.path(dataset)
    train: TrainConfig = resolved("train", cache=tokenize.result, out=gpt_path(dataset))
    gpt, tokens = train.out or gpt_path(dataset), train.cache or tokenize.result
    sample: SampleConfig = resolved(
        "sample", checkpoint_gpt=gpt, checkpoint_vae=train_vqgan.result, out=samples_path(dataset)
    )
    samples = sample.out or samples_path(dataset)
    start = {"GPT that it starts from": train.checkpoint_gpt} if train.checkpoint_gpt else {}
    decoder = {} if sample.tokens_only else {"VQ-GAN": sample.checkpoint_vae or train_vqgan.result}
    drawn = {"GPT": sample.checkpoint_gpt or gpt, **decoder}
    sheet = () if sample.tokens_only else (beside(samples, f"{samples.stem}.png"),)

    def stage(table: str, configured: Any, needs: Mapping[str, CachePath], *results: CachePath) -> Stage:
        record, images = RUNS_FOLDER / dataset / f"{table}.made.json", getattr(configured, "images", None)
        return Stage(
            command=commands[table], config=configured, record=record, results=results, needs=needs, images=images
        )

    stages = [
        stage("vqgan-train", train_vqgan, {}, train_vqgan.result),
        stage("vqgan-reconstruct", reconstruct, {"VQ-GAN": reconstruct.vqgan.path(dataset)}, reconstruct.result),
        stage("tokenize", tokenize, {"VQ-GAN": vqgan}, tokenize.result),
        stage("train", train, {"token cache": tokens, **start}, gpt),
        stage("sample", sample, drawn, samples, *sheet),
    ]
    if vqgan != train_vqgan.result:
        del stages[0]
    return [each for each in stages if STAGES.index(each.command.table) <= STAGES.index(config.until)]


def digests(paths: tuple[CachePath, ...]) -> dict[str, str]:
    """The digests of what is there, by path."""
    found = {str(path): content_digest(path) for path in paths}
    return {path: digest for path, digest in found.items() if digest is not None}


def inputs_of(
    stage: Stage, before: Made | None, digest_of_images: Callable[[ImageOptions], str | None]
) -> dict[str, str]:
    """The digests of what a stage reads, by name. Images that are not here any more count as they were before."""
    inputs = {name: content_digest(path) or "" for name, path in stage.needs.items()}
    if stage.images is None:
        return inputs
    known = before.inputs.get("images", "") if before else ""
    return {**inputs, "images": digest_of_images(stage.images) or known}


def _expected_seconds(stages: list[Stage], report: Report) -> dict[str, float]:
    """About how long each stage takes here; what is not known is left out."""
    from vqgpt.api.estimates import stage_seconds

    report(Notice(text="timing a step of each stage, to say about how long they take here"))
    try:
        return stage_seconds({stage.command.table: stage.config for stage in stages})
    except VQGPTError:  # what is wrong with a stage is for the stage to say
        return {}


def judge(stage: Stage, now: Made, before: Made | None) -> tuple[str, bool]:
    """Why a stage has to run, "" if it is up to date; and whether it would replace what it may not, unasked.

    Judged from what is there `now` and what its record says of `before`.
    """
    if not now.results:
        return "not finished" if before is None or not before.finished else "its result is gone", False
    if before is not None and not before.finished:
        return "it was interrupted", False
    table, path = stage.command.table, stage.results[0]
    if before is None or any(before.results.get(name) != digest for name, digest in now.results.items()):
        if table == "tokenize":
            return "another command made the cache, so it is checked", False
        if table not in NETWORKS:
            return "another command made what is there", True
        assert isinstance(path, Path)
        before = made_by_command(table, path, now.inputs) or now
    changed = what_changed(table, stage.command.config, now, before)
    if changed:
        return changed, stage.takes_long
    gone = [name for name in before.results if name not in now.results]
    return f"{gone[0]} is gone" if gone else "", False


def make(stage: Stage, now: Made, flags: Flags, report: Report) -> Made:
    """Run a stage and record what it made, and of what. What it may replace by now is known."""
    if not stage.takes_long:
        write_record(stage.record, replace(now, finished=False))
    overwrite = flags.overwrite or not stage.takes_long
    start = time.monotonic()
    stage.command.run(stage.config, replace(flags, recipe=None, overwrite=overwrite, dry_run=False), report)
    made = replace(now, results=digests(stage.results), seconds=round(time.monotonic() - start, 1))
    write_record(stage.record, made)
    return made
