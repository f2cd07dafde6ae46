"""`vqgpt run`: from images to pictures, through the stages that are not up to date.

A stage runs as its own command does, with the same recipe. What it made is recorded with what it was made of
(`api.made`).
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from vqgpt.api.evaluation_options import EvaluateSamplesConfig
from vqgpt.api.made import (
    Made,
    content_digest,
    images_digest,
    made_by_command,
    options_that_count,
    read_record,
    what_changed,
    write_record,
)
from vqgpt.api.options import (
    ReconstructConfig,
    RunConfig,
    SampleConfig,
    StageName,
    TokenizeConfig,
    TrainConfig,
    VQGANTrainConfig,
)
from vqgpt.data.options import ImageOptions
from vqgpt.errors import InputError, MissingDataError, UsageError, VQGPTError
from vqgpt.options.codec import to_json
from vqgpt.options.definition import Command, Flags, resolve
from vqgpt.options.paths import RUNS_FOLDER, CachePath, beside, evaluation_path, gpt_path, samples_path
from vqgpt.options.recipe import values_for
from vqgpt.progress import Notice, Report

SHARE_FOR_EVALUATION = 0.1  # of the time of the stages
SECONDS_FOR_EVALUATION = 10.0  # where that is not known
STAGES = get_args(StageName)
NETWORKS = ("vqgan-train", "train")
EVALUATION: StageName = "evaluate-samples"
REPORT: StageName = "report"
AT_THE_END: dict[str, tuple[str, ...]] = {  # a pipeline is done without these; what is shown of their results
    EVALUATION: ("samples", "figures", "class as asked for", "findings", "line"),
    REPORT: ("page",),
}
TAKES_LONG = (*NETWORKS, "tokenize")  # a result of these is replaced only when that is asked for


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with its configuration: what it writes, what it reads by name, and the images that it reads.

    `adds` is true where it adds to its result, as other commands do too.
    """

    command: Command
    config: Any
    record: Path
    results: tuple[CachePath, ...]
    needs: Mapping[str, CachePath]
    images: ImageOptions | None
    adds: bool = False

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
    shown: dict[str, Any] = {}
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
            why, replaces = f"after {makers[0]}", stage.takes_long and bool(now.results)
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
        elif stage.command.table in AT_THE_END:
            state, before, told = make_if_possible(in_its_time(stage, outcomes), now, flags, report)
            shown |= told
        else:
            state, before = "done", make(stage, now, flags, report)[0]
        seconds = before.seconds if before else None
        if seconds is None and state == "would run":
            evaluates = stage.command.table == EVALUATION
            seconds = seconds_for_evaluation(outcomes) if evaluates else expected().get(stage.command.table)
        outcomes[words] = {"state": state, "why": why, "seconds": seconds}
        if flags.dry_run and stops:
            break
    return {"recipe": recipe, "stages": outcomes, **shown}


def make_if_possible(stage: Stage, now: Made, flags: Flags, report: Report) -> tuple[str, Made | None, dict[str, Any]]:
    """Run a stage that is not needed: how that ended, its record, what of it is shown. What is in its way is told."""
    try:
        made, result = make(stage, now, flags, report)
    except (MissingDataError, InputError, UsageError) as error:
        stage.record.unlink(missing_ok=True)
        report(Notice(text=f"{stage.command.words} is left out: {error.message}; {error.hint}"))
        return "left out", None, {}
    shown = stage.command.shown(result)
    return "done", made, {name: shown[name] for name in AT_THE_END[stage.command.table] if name in shown}


def in_its_time(stage: Stage, outcomes: Mapping[str, Mapping[str, Any]]) -> Stage:
    """A stage at the end: an evaluation takes about a tenth of the time of the stages before, unless it says."""
    if stage.command.table != EVALUATION or stage.config.seconds:
        return stage
    return replace(stage, config=replace(stage.config, seconds=seconds_for_evaluation(outcomes)))


def seconds_for_evaluation(outcomes: Mapping[str, Mapping[str, Any]]) -> float:
    """A tenth of the time that the stages before took or take, as far as it is known."""
    known = sum(outcome["seconds"] or 0.0 for outcome in outcomes.values())
    return max(0.1, round(SHARE_FOR_EVALUATION * known, 1)) if known else SECONDS_FOR_EVALUATION


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
    first = {"VQ-GAN that it starts from": train_vqgan.checkpoint_vae} if train_vqgan.checkpoint_vae else {}
    decoded_by = sample.checkpoint_vae or train_vqgan.result
    decoder = {} if sample.tokens_only else {"VQ-GAN": decoded_by}
    drawn = {"GPT": sample.checkpoint_gpt or gpt, **decoder}
    sheet = () if sample.tokens_only else (beside(samples, f"{samples.stem}.png"),)
    evaluation: EvaluateSamplesConfig = resolved(
        EVALUATION, samples=str(samples), cache=tokens, checkpoint_vae=decoded_by
    )

    def stage(table: str, configured: Any, needs: Mapping[str, CachePath], *results: CachePath) -> Stage:
        record, images = RUNS_FOLDER / dataset / f"{table}.made.json", getattr(configured, "images", None)
        return Stage(
            command=commands[table], config=configured, record=record, results=results, needs=needs, images=images
        )

    stages = [
        stage("vqgan-train", train_vqgan, first, train_vqgan.result),
        stage("vqgan-reconstruct", reconstruct, {"VQ-GAN": reconstruct.vqgan.path(dataset)}, reconstruct.result),
        stage("tokenize", tokenize, {"VQ-GAN": vqgan}, tokenize.result),
        stage("train", train, {"token cache": tokens, **start}, gpt),
        stage("sample", sample, drawn, samples, *sheet),
    ]
    seen, record = {"samples": samples, "token cache": tokens, **decoder}, evaluation.out or evaluation_path(dataset)
    if config.evaluate and not sample.tokens_only:
        stages.append(replace(stage(EVALUATION, evaluation, seen, record), images=tokenize.images, adds=True))
        seen = {**seen, "evaluation": record}
    page = resolved(REPORT, runs=[str(RUNS_FOLDER / dataset)], checkpoint_vae=decoded_by)
    stages.append(replace(stage(REPORT, page, {**drawn, **seen}, page.result), adds=True))
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
    from vqgpt.api.estimates import known_images, measured, stage_seconds

    configs = {stage.command.table: stage.config for stage in stages}
    rows, num_classes = known_images(configs)
    if not rows:
        return {}
    report(Notice(text="timing a step of each stage, to say about how long they take here"))
    try:
        return stage_seconds(configs, measured(configs, rows, num_classes), rows)
    except VQGPTError:  # what is wrong with a stage is for the stage to say
        return {}


def judge(stage: Stage, now: Made, before: Made | None) -> tuple[str, bool]:
    """Why a stage has to run, "" if it is up to date; and whether it would replace what it may not, unasked.

    Judged from what is there `now` and what its record says of `before`.
    """
    if not now.results or (stage.adds and before is None):
        return "not finished" if before is None or not before.finished else "its result is gone", False
    if before is not None and not before.finished:
        return "it was interrupted", False
    table, path = stage.command.table, stage.results[0]
    others = before is None or any(before.results.get(name) != digest for name, digest in now.results.items())
    if others and not stage.adds:
        if table == "tokenize":
            return "another command made the cache, so it is checked", False
        if table not in NETWORKS:
            return "another command made what is there", True
        assert isinstance(path, Path)
        before = made_by_command(table, path, now.inputs) or now
    assert before is not None
    changed = what_changed(table, stage.command.config, now, before)
    if changed:
        return changed, stage.takes_long
    gone = [name for name in before.results if name not in now.results]
    return f"{gone[0]} is gone" if gone else "", False


def make(stage: Stage, now: Made, flags: Flags, report: Report) -> tuple[Made, Mapping[str, Any]]:
    """Run a stage and record what it made, and of what; also its result. What it may replace by now is known."""
    if not stage.takes_long:
        write_record(stage.record, replace(now, finished=False))
    overwrite = flags.overwrite or not (stage.takes_long or stage.adds)
    start = time.monotonic()
    result = stage.command.run(stage.config, replace(flags, recipe=None, overwrite=overwrite, dry_run=False), report)
    made = replace(now, results=digests(stage.results), seconds=round(time.monotonic() - start, 1))
    write_record(stage.record, made)
    return made, result
