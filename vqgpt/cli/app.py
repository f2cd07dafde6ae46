"""The command line. Every command imports its stage when it runs, so that help needs no torch."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vqgpt.cli.commands import COMMANDS, Flags, OutputFlags, add_command, explain
from vqgpt.cli.console import Screen
from vqgpt.cli.options import expand_lists
from vqgpt.cli.refused import check_not_refused
from vqgpt.cli.streams import secure_streams
from vqgpt.config.cache_commands import (
    CacheConfig,
    CacheImportConfig,
    ExportConfig,
    ListConfig,
    PreviewConfig,
    RemoveConfig,
    VerifyConfig,
)
from vqgpt.config.cache_path import CachePath
from vqgpt.config.commands import (
    DatasetsConfig,
    EncoderOptions,
    ImportConfig,
    NoConfig,
    ReconstructConfig,
    SampleConfig,
    TokenizeConfig,
    TrainConfig,
    VQGANInfoConfig,
    VQGANTrainConfig,
)
from vqgpt.config.options import options_of
from vqgpt.config.output_commands import ModelExportConfig, RenderConfig, ScoreConfig
from vqgpt.config.places import vqgan_path
from vqgpt.errors import ExitCode, UsageError, VQGPTError
from vqgpt.files import check_can_be_written
from vqgpt.progress import Notice, Report
from vqgpt.versions import installed_version

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}

app = typer.Typer(
    context_settings=SETTINGS,
    pretty_exceptions_enable=False,
    help="Generate images with a GPT over VQ-GAN tokens, in two stages.\n\n"
    "Stage one turns a dataset into a token cache, once: `vqgpt vqgan train`, `vqgpt tokenize`. "
    "Stage two needs the cache alone: `vqgpt train`, `vqgpt sample`.",
    epilog="Every option can also be set by an environment variable (VQGPT_BATCH_SIZE=64) or in a recipe; "
    "a flag wins over both.",
)
NAMES_OF_GROUPS: list[list[str]] = [[], ["vqgan"], ["cache"]]  # they need a command after them

vqgan_app = typer.Typer(help="The tokenizer: train or import one, look at its reconstructions.")
cache_app = typer.Typer(help="Look after token caches.")
app.add_typer(vqgan_app, name="vqgan")
app.add_typer(cache_app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"vqgpt {installed_version('vqgpt')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def _train_vqgan(config: VQGANTrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Train a VQ-GAN on a dataset."""
    from vqgpt.stages import train_vqgan

    return train_vqgan.run(config, flags.overwrite, flags.dry_run, report)


def _reconstruct(config: ReconstructConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show held-out images above their reconstructions."""
    from vqgpt.stages import reconstruct

    return reconstruct.run(config, flags.overwrite, flags.dry_run, report)


def _import_vqgan(config: ImportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Make a checkpoint of ours from someone else's."""
    from vqgpt.stages import import_vqgan

    return import_vqgan.run(config, flags.overwrite, flags.dry_run)


def _vqgan_info(config: VQGANInfoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show what a VQ-GAN checkpoint is, without loading its weights."""
    from vqgpt.stages import import_vqgan

    return import_vqgan.info(config.file)


def _tokenize(config: TokenizeConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Stage one: encode a dataset into a token cache."""
    from vqgpt.stages import tokenize

    return tokenize.run(config, flags.overwrite, flags.dry_run, report)


def _train(config: TrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Stage two: train a GPT on a token cache."""
    from vqgpt.stages import train_gpt

    def render(codes: Any, description: Any) -> bytes | None:
        vqgan = vqgan_path(description.dataset)
        stage = _rendering() if vqgan.exists() else None
        return stage.sheet_of(codes, description, vqgan) if stage else None

    return train_gpt.run(config, flags.overwrite, flags.dry_run, report, render)


def _rendering() -> Any:
    """`stages.render`; None where the VQ-GAN's code cannot be imported, as stage two runs without it."""
    try:
        from vqgpt.stages import render
    except ImportError:
        return None
    return render


def _sample(config: SampleConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Generate tokens with a GPT, and a picture of them."""
    from vqgpt.stages import sample
    from vqgpt.stages.completion import read_prompts

    def encode(path: Path, description: Any) -> Any:
        from vqgpt.stages import prompt_images

        vqgan = EncoderOptions(checkpoint_vae=config.checkpoint_vae, device=config.run.device)
        return prompt_images.encode_image(path, description, vqgan)

    def read_mask(path: Path) -> Any:
        from vqgpt.stages import prompt_images

        return prompt_images.read_mask(path)

    plan = sample.plan(config, partial(read_prompts, config, encode=encode, read_mask=read_mask), report)
    vqgan = config.checkpoint_vae or vqgan_path(plan.description.dataset)
    known = plan.description.knows_its_vqgan
    at_hand = config.checkpoint_vae is not None or (known and vqgan.exists())
    render = _rendering() if at_hand and not config.tokens_only else None
    encoder = EncoderOptions(checkpoint_vae=vqgan, device=config.run.device)
    rendering = RenderConfig(cache=plan.cache, vqgan=encoder, show=config.show)
    if render:
        render.check_ready(rendering, plan.description, flags.overwrite)
    if flags.dry_run:
        return plan.summary
    if render:
        check_can_be_written(rendering.result)
    result = sample.run(plan, config, flags.overwrite, report)
    if render:
        return {**result, "picture": render.run(rendering, flags.overwrite, False, report)["picture"]}
    if not config.tokens_only:
        report(Notice(text=f"no picture: {_why_no_picture(plan.cache, known, at_hand, vqgan)}"))
    return result


def _why_no_picture(cache: CachePath, known: bool, at_hand: bool, vqgan: Path) -> str:
    """Why samples were not rendered, and what would: nothing, if their VQ-GAN is not `known`."""
    if not known:
        return "the GPT learned tokens that were imported without their VQ-GAN, so it is not known what decodes them"
    if at_hand:
        return f"the VQ-GAN's code cannot be imported here; where it can, `vqgpt render {cache}` makes one"
    return f"there is no VQ-GAN at {vqgan}; with the one that made the tokens, `vqgpt render {cache}` makes one"


def _render(config: RenderConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Decode a token cache into pictures."""
    from vqgpt.stages import render

    return render.run(config, flags.overwrite, flags.dry_run, report)


def _score(config: ScoreConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Tell how likely a GPT finds every row of a token cache."""
    from vqgpt.stages import score

    return score.run(config, flags.overwrite, flags.dry_run, report)


def _export(config: ModelExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a network in a format that others read: Hugging Face transformers, safetensors."""
    from vqgpt.stages import export_model

    return export_model.run(config, flags.overwrite, flags.dry_run)


def _cache_list(config: ListConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """List the token caches in cache/, or in another folder."""
    from vqgpt.stages import caches

    return caches.list_all(config.folder, report)


def _cache_info(config: CacheConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show what a cache holds and how it uses its codebook."""
    from vqgpt.stages import caches

    return caches.info(config.cache)


def _cache_verify(config: VerifyConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Check every file of a cache; with --repair, make again what is damaged."""
    from vqgpt.stages import caches

    if config.repair:
        from vqgpt.stages import repair

        repair.run(config, report)
    return caches.verify(config.cache)


def _cache_preview(config: PreviewConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Check codes by eye and by figures: random rows, decoded next to their images."""
    from vqgpt.stages import preview

    return preview.run(config, flags.overwrite, flags.dry_run, report)


def _cache_import(config: CacheImportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Make a cache of codes that LlamaGen or RAR extracted."""
    from vqgpt.stages import import_cache

    return import_cache.run(config, flags.overwrite, flags.dry_run, report)


def _cache_export(config: ExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a cache in a format that others read: npy, npz, nanoGPT's bin, WebDataset."""
    from vqgpt.stages import export_cache

    return export_cache.run(config, flags.overwrite, flags.dry_run, report)


def _cache_rm(config: RemoveConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Delete a cache, if --yes is given."""
    from vqgpt.stages import remove_cache

    return remove_cache.run(config, report)


def _datasets(config: DatasetsConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """List the datasets: their splits, licences, and whether they are here."""
    from vqgpt.stages import datasets

    return datasets.list_all(config.root, report)


def _doctor(config: NoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show versions, devices, and what is missing."""
    from vqgpt.stages import doctor

    return doctor.run()


add_command(app, "tokenize", TokenizeConfig, _tokenize, several_processes=True)
add_command(app, "train", TrainConfig, _train, several_processes=True)
add_command(app, "sample", SampleConfig, _sample)
add_command(app, "render", RenderConfig, _render)
add_command(app, "score", ScoreConfig, _score)
add_command(app, "export", ModelExportConfig, _export)
add_command(app, "datasets", DatasetsConfig, _datasets, takes_recipe=False)
add_command(app, "doctor", NoConfig, _doctor, takes_recipe=False)
add_command(vqgan_app, "vqgan train", VQGANTrainConfig, _train_vqgan, several_processes=True)
add_command(vqgan_app, "vqgan reconstruct", ReconstructConfig, _reconstruct)
add_command(vqgan_app, "vqgan import", ImportConfig, _import_vqgan)
add_command(vqgan_app, "vqgan info", VQGANInfoConfig, _vqgan_info, takes_recipe=False)
add_command(cache_app, "cache list", ListConfig, _cache_list, takes_recipe=False)
add_command(cache_app, "cache info", CacheConfig, _cache_info, takes_recipe=False)
add_command(cache_app, "cache verify", VerifyConfig, _cache_verify, takes_recipe=False)
add_command(cache_app, "cache preview", PreviewConfig, _cache_preview)
add_command(cache_app, "cache import", CacheImportConfig, _cache_import)
add_command(cache_app, "cache export", ExportConfig, _cache_export)
add_command(cache_app, "cache rm", RemoveConfig, _cache_rm, takes_recipe=False)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `vqgpt` command; always leaves by SystemExit."""
    secure_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    configs = [*(command.config for command in COMMANDS.values()), Flags, OutputFlags]
    list_flags = {item.flag for config in configs for item in options_of(config) if item.is_list}
    try:
        check_not_refused(arguments)
        if arguments in NAMES_OF_GROUPS:
            _run_typer([*arguments, "--help"])
            code = int(ExitCode.USAGE)
        else:
            code = _run_typer(expand_lists(arguments, list_flags))
    except VQGPTError as error:
        Screen(quiet=False, as_json=False).show_error(error)
        code = int(error.exit_code)
    raise SystemExit(code)


def _run_typer(arguments: list[str]) -> int:
    """Run a command. Raises UsageError for what typer finds wrong with the arguments, in its words.

    Also raises what `explain` makes of the errors of options that are typer's own: --install-completion needs a home.
    """
    try:
        return cast(Any, app)(args=arguments, prog_name="vqgpt", standalone_mode=False) or 0
    except Exception as error:  # typer carries its own click, whose exceptions have no public name
        if not hasattr(error, "format_message"):
            failure = explain(error)
            if failure.exit_code is ExitCode.UNEXPECTED:
                raise
            raise failure from error
        named = [*(command.words.split() for command in COMMANDS.values()), *NAMES_OF_GROUPS]
        words = max((name for name in named if arguments[: len(name)] == name), key=len)
        remedy = f"`{' '.join(['vqgpt', *words, '--help'])}` lists what there is"
        message = error.format_message().removesuffix(".").replace(": Value error, ", ": ")
        raise UsageError(message, remedy) from None
