"""The command line: a loop over the commands. Each imports what it needs when it runs, so that help needs no torch."""

import sys
from typing import Annotated, Any, cast

import typer

from vqgpt.cli.console import Screen, secure_streams
from vqgpt.cli.running import check_not_refused, expand_lists, explain, typer_function
from vqgpt.commands import all_commands
from vqgpt.errors import ExitCode, UsageError, VQGPTError

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}
GROUPS = {
    "vqgan": "The tokenizer: train or import one, look at its reconstructions.",
    "cache": "Look after token caches.",
    "evaluate": "Measure how good samples, a tokenizer or a GPT are.",
}
# These come first in help, the others follow by name.
IN_ORDER = ["run", "tokenize", "train", "sample", "render", "score", "export"]
COMMANDS = all_commands()


def _show_version(wanted: bool) -> None:
    if wanted:
        from vqgpt.runtime.process import installed_version

        print(f"vqgpt {installed_version('vqgpt')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def make_app() -> typer.Typer:
    """The typer application of all commands."""
    app = typer.Typer(
        context_settings=SETTINGS,
        pretty_exceptions_enable=False,
        help="Generate images with a GPT over VQ-GAN tokens, in two stages.\n\n"
        "`vqgpt run --recipe digits` does it all. "
        "Stage one turns a dataset into a token cache, once: `vqgpt vqgan train`, `vqgpt tokenize`. "
        "Stage two needs the cache alone: `vqgpt train`, `vqgpt sample`.",
        epilog="Every option can also be set by an environment variable (VQGPT_TRAIN_BATCH_SIZE=64) or in a recipe; "
        "a flag wins over both.",
    )
    app.callback()(_root)
    groups = {"": app, **{name: typer.Typer(help=text) for name, text in GROUPS.items()}}
    for name in GROUPS:
        app.add_typer(groups[name], name=name)
    for command in sorted(COMMANDS.values(), key=lambda each: ([*IN_ORDER, each.words].index(each.words), each.words)):
        group, _, name = command.words.rpartition(" ")
        groups[group].command(name)(typer_function(command, COMMANDS))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `vqgpt` command; always leaves by SystemExit."""
    secure_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    list_flags = {item.flag for command in COMMANDS.values() for item in command.options if item.is_list}
    try:
        check_not_refused(arguments, COMMANDS.values())
        if not arguments or arguments in ([name] for name in GROUPS):  # a command is needed after these
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
        return cast(Any, make_app())(args=arguments, prog_name="vqgpt", standalone_mode=False) or 0
    except Exception as error:  # typer carries its own click, whose exceptions have no public name
        if not hasattr(error, "format_message"):
            failure = explain(error)
            if failure.exit_code is ExitCode.UNEXPECTED:
                raise
            raise failure from error
        named = [*(command.words.split() for command in COMMANDS.values()), *([name] for name in GROUPS), []]
        words = max((name for name in named if arguments[: len(name)] == name), key=len)
        remedy = f"`{' '.join(['vqgpt', *words, '--help'])}` lists what there is"
        message = error.format_message().removesuffix(".").replace(": Value error, ", ": ")
        raise UsageError(message, remedy) from None
