"""The command line. Every command imports its stage when it runs, so that help needs no torch."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any, cast

import typer

from vqgpt.cli.commands import COMMANDS, Flags, OutputFlags, add_command
from vqgpt.cli.options import expand_lists
from vqgpt.config import options_of
from vqgpt.progress import Notice, Report
from vqgpt.stages.config import (
    CacheConfig,
    NoConfig,
    ReconstructConfig,
    RenderConfig,
    SampleConfig,
    TokenizeConfig,
    TrainConfig,
    VQGANTrainConfig,
    vqgan_path,
)
from vqgpt.versions import installed_version

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}

app = typer.Typer(
    context_settings=SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Generate images with a GPT over VQ-GAN tokens, in two stages.\n\n"
    "Stage one turns a dataset into a token cache, once: `vqgpt vqgan train`, `vqgpt tokenize`. "
    "Stage two needs the cache alone: `vqgpt train`, `vqgpt sample`.",
    epilog="Every option can also be set by an environment variable (VQGPT_BATCH_SIZE=64) or in a recipe; a flag wins over both.",
)
vqgan_app = typer.Typer(no_args_is_help=True, help="The tokenizer: train one, look at its reconstructions.")
cache_app = typer.Typer(no_args_is_help=True, help="Look after token caches.")
app.add_typer(vqgan_app, name="vqgan")
app.add_typer(cache_app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"vqgpt {installed_version('vqgpt')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)] = False,
) -> None:
    pass


def _train_vqgan(config: VQGANTrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import train_vqgan

    return train_vqgan.run(config, flags.overwrite, flags.dry_run, report)


def _reconstruct(config: ReconstructConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import reconstruct

    return reconstruct.run(config, flags.overwrite, flags.dry_run, report)


def _tokenize(config: TokenizeConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import tokenize

    return tokenize.run(config, flags.overwrite, flags.dry_run, report)


def _train(config: TrainConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import train_gpt

    return train_gpt.run(config, flags.overwrite, flags.dry_run, report)


def _sample(config: SampleConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import sample

    result = sample.run(config, flags.overwrite, flags.dry_run, report)
    if config.tokens_only or flags.dry_run:
        return result
    vqgan = config.checkpoint_vae or vqgan_path(result["dataset"])
    if config.checkpoint_vae is None and not vqgan.exists():
        report(Notice(text=f"there is no VQ-GAN at {vqgan}: no picture. `vqgpt render {result['cache']}` makes it where there is one"))
        return result
    from vqgpt.config import resolve
    from vqgpt.stages import render

    rendering = resolve(RenderConfig, {"cache": result["cache"], "checkpoint_vae": vqgan, "device": config.run.device})
    return {**result, "picture": render.run(rendering, True, False, report)["picture"]}


def _render(config: RenderConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import render

    return render.run(config, flags.overwrite, flags.dry_run, report)


def _cache_list(config: NoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import caches

    return caches.list_all()


def _cache_info(config: CacheConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import caches

    return caches.info(config.cache)


def _cache_verify(config: CacheConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import caches

    return caches.verify(config.cache)


def _doctor(config: NoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    from vqgpt.stages import doctor

    return doctor.run()


add_command(app, "tokenize", "tokenize", TokenizeConfig, _tokenize, "Stage one: encode a dataset into a token cache.")
add_command(app, "train", "train", TrainConfig, _train, "Stage two: train a GPT on a token cache.")
add_command(app, "sample", "sample", SampleConfig, _sample, "Generate tokens with a GPT, and a picture of them.")
add_command(app, "render", "render", RenderConfig, _render, "Decode a token cache into pictures.")
add_command(app, "doctor", "doctor", NoConfig, _doctor, "Show versions, devices, and what is missing.", takes_recipe=False)
add_command(vqgan_app, "train", "vqgan-train", VQGANTrainConfig, _train_vqgan, "Train a VQ-GAN on a dataset.")
add_command(
    vqgan_app, "reconstruct", "vqgan-reconstruct", ReconstructConfig, _reconstruct, "Show held-out images above their reconstructions."
)
add_command(cache_app, "list", "cache-list", NoConfig, _cache_list, "List the token caches in cache/.", takes_recipe=False)
add_command(cache_app, "info", "cache-info", CacheConfig, _cache_info, "Show what a cache holds and how it uses its codebook.", takes_recipe=False)
add_command(cache_app, "verify", "cache-verify", CacheConfig, _cache_verify, "Check every file of a cache.", takes_recipe=False)


def main() -> None:
    """Entry point of the `vqgpt` command."""
    configs = [*(command.config for command in COMMANDS.values()), Flags, OutputFlags]
    list_flags = {item.flag for config in configs for item in options_of(config) if item.is_list}
    cast(Any, app)(args=expand_lists(sys.argv[1:], list_flags), prog_name="vqgpt")
