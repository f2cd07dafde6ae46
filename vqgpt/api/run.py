"""`vqgpt run`: from images to pictures, through the stages that are not up to date.

A stage runs as its own command does, with the same recipe; `up_to_date.py` has what decides whether it runs.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vqgpt.api.options import ReconstructConfig, RunConfig, SampleConfig, TokenizeConfig, TrainConfig, VQGANTrainConfig
from vqgpt.api.up_to_date import (
    Made,
    cache_digest,
    gpt_digest,
    images_identity,
    made_by_command,
    options_that_count,
    picture_digest,
    read_record,
    vqgan_digest,
    what_changed,
    write_record,
)
from vqgpt.data.options import ImageOptions
from vqgpt.errors import UsageError
from vqgpt.options.codec import to_json
from vqgpt.options.definition import Command, Flags, resolve
from vqgpt.options.paths import RUNS_FOLDER, CachePath, beside, gpt_path, samples_path
from vqgpt.options.recipe import values_for
from vqgpt.progress import Notice, Report

Digest = Callable[[CachePath], str | None]
Place = tuple[CachePath, Digest]  # a file or cache, and what tells its content

STAGES = ("vqgan-train", "vqgan-reconstruct", "tokenize", "train", "sample")
NETWORKS = ("vqgan-train", "train")
TAKES_LONG = (*NETWORKS, "tokenize")  # a result of these is replaced only when that is asked for


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with its configuration: what it writes, what it reads by name, and the images that it reads."""

    command: Command
    config: Any
    record: Path
    results: tuple[Place, ...]
    needs: Mapping[str, Place] = field(default_factory=dict)
    images: ImageOptions | None = None

    @property
    def takes_long(self) -> bool:
        """True if what it made is to be kept unless the user asks."""
        return self.command.table in TAKES_LONG


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a stage has to run, "" if it is up to date; and whether it would replace what it may not, unasked."""

    why: str = ""
    replaces: bool = False


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
    told: dict[str, dict[str, Any]] = {}
    made_anew: dict[CachePath, str] = {}  # by a dry run: which stage would
    for stage in stages_of(config, content, str(recipe), commands):
        words = stage.command.words
        before = read_record(stage.record)
        now = Made(options={}, inputs={}, results=digests(stage.results))
        makers = [made_anew[path] for path, _ in stage.needs.values() if path in made_anew]
        if makers:
            verdict = Verdict(why=f"after {makers[0]}", replaces=bool(now.results))
        else:
            options = options_that_count(stage.command.table, to_json(stage.config))
            now = replace(now, options=options, inputs=inputs_of(stage, before))
            verdict = judge(stage, now, before)
        stops = verdict.replaces and not flags.overwrite
        if stops and not flags.dry_run:
            raise UsageError(
                f"{stage.results[0][0]} is not replaced unasked, and vqgpt {words} would: {verdict.why}",
                "give --overwrite to replace it, or undo the change",
            )
        report(Notice(text=f"{words}: {verdict.why or 'up to date'}"))
        if not verdict.why:
            state = "up to date"
            if not flags.dry_run:
                keep_record(stage, now, before)
        elif flags.dry_run:
            state = "stops without --overwrite" if stops else "would run"
            made_anew |= dict.fromkeys((path for path, _ in stage.results), words)
        else:
            state, before = "done", make(stage, now, flags, report)
        told[words] = {"state": state, "why": verdict.why, "seconds": before.seconds if before else None}
        if flags.dry_run and stops:
            break
    return {"recipe": recipe, "stages": told}


def stages_of(
    config: RunConfig, recipe: Mapping[str, Any], source: str, commands: Mapping[str, Command]
) -> list[Stage]:
    """The stages up to `until`, configured by the recipe read from `source` as their commands are.

    Each takes what the one before it makes. No VQ-GAN is trained where the recipe names another
    one to tokenize with.
    """
    wanted = {"dataset": config.dataset, "data_root": config.data_root, "device": config.device}
    said = {name: recipe.get(name) for name in wanted} | {"device": recipe.get("device", "auto")}
    given = {name: value for name, value in wanted.items() if value is not None and str(value) != said[name]}

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
    start = {"GPT that it starts from": (train.checkpoint_gpt, gpt_digest)} if train.checkpoint_gpt else {}
    decoder = {} if sample.tokens_only else {"VQ-GAN": (sample.checkpoint_vae or train_vqgan.result, vqgan_digest)}
    sheet = () if sample.tokens_only else ((beside(samples, f"{samples.stem}.png"), picture_digest),)

    def stage(table: str, configured: Any, *results: Place, **read: Any) -> Stage:
        record = RUNS_FOLDER / dataset / f"{table}.made.json"
        return Stage(command=commands[table], config=configured, record=record, results=results, **read)

    stages = [
        stage("vqgan-train", train_vqgan, (train_vqgan.result, vqgan_digest), images=train_vqgan.images),
        stage(
            "vqgan-reconstruct",
            reconstruct,
            (reconstruct.result, picture_digest),
            needs={"VQ-GAN": (reconstruct.vqgan.path(dataset), vqgan_digest)},
            images=reconstruct.images,
        ),
        stage(
            "tokenize",
            tokenize,
            (tokenize.result, cache_digest),
            needs={"VQ-GAN": (vqgan, vqgan_digest)},
            images=tokenize.images,
        ),
        stage("train", train, (gpt, gpt_digest), needs={"token cache": (tokens, cache_digest), **start}),
        stage(
            "sample",
            sample,
            (samples, cache_digest),
            *sheet,
            needs={"GPT": (sample.checkpoint_gpt or gpt, gpt_digest), **decoder},
        ),
    ]
    if vqgan != train_vqgan.result:
        del stages[0]
    return [each for each in stages if STAGES.index(each.command.table) <= STAGES.index(config.until)]


def digests(places: tuple[Place, ...]) -> dict[str, str]:
    """The digests of what is there, by path."""
    found = {str(path): digest(path) for path, digest in places}
    return {path: digest for path, digest in found.items() if digest is not None}


def inputs_of(stage: Stage, before: Made | None) -> dict[str, str]:
    """The digests of what a stage reads, by name. Images that are not here any more count as they were before."""
    inputs = {name: digest(path) or "" for name, (path, digest) in stage.needs.items()}
    if stage.images is None:
        return inputs
    known = before.inputs.get("images", "") if before else ""
    return {**inputs, "images": images_identity(stage.images) or known}


def judge(stage: Stage, now: Made, before: Made | None) -> Verdict:
    """Whether a stage has to run, from what is there `now` and what its record says of `before`."""
    if not now.results:
        return Verdict(why="not finished" if before is None or not before.finished else "its result is gone")
    if before is not None and not before.finished:
        return Verdict(why="it was interrupted")
    table, path = stage.command.table, stage.results[0][0]
    if before is None or any(before.results.get(name) != digest for name, digest in now.results.items()):
        if table == "tokenize":
            return Verdict(why="another command made the cache, so it is checked")
        if table not in NETWORKS:
            return Verdict(why="another command made what is there", replaces=True)
        assert isinstance(path, Path)
        before = made_by_command(table, path, now.inputs) or now
    changed = what_changed(table, stage.command.config, now, before)
    if changed:
        return Verdict(why=changed, replaces=stage.takes_long)
    gone = [name for name in before.results if name not in now.results]
    return Verdict(why=f"{gone[0]} is gone" if gone else "")


def keep_record(stage: Stage, now: Made, before: Made | None) -> None:
    """Record what an up-to-date result was made of, if that is not yet recorded: another command made it."""
    if before is None or before.results != now.results:
        write_record(stage.record, now)


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
