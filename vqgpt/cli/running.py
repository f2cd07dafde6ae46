"""How every command runs: its options become flags, variables and recipe keys; then its work, its result or its error.

A flag that was not given arrives as None, so that the environment, the recipe and the default can have their say. Flags
and variables that vqgpt is known not to have are refused with the reason, never ignored. After the work, the last line
says which command to give next. Must not import torch before a command's body runs.
"""

import inspect
import logging
import os
import signal
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vqgpt.api.options import StageName
from vqgpt.cli.console import Screen, check_written
from vqgpt.data.options import ImageOptions
from vqgpt.errors import (
    ExitCode,
    InputError,
    InterruptedRun,
    MissingDataError,
    MissingFilesError,
    UsageError,
    VQGPTError,
)
from vqgpt.options.definition import Command, Flags, Option, OutputFlags, command_line, flat_values, options_of, resolve
from vqgpt.options.paths import CachePath
from vqgpt.options.recipe import recipe_values
from vqgpt.progress import Notice, Report
from vqgpt.runtime.process import (
    Terminated,
    keep_memory_pages,
    let_waiting_threads_sleep,
    low_limit,
    process_rank,
    processes,
    shortage,
    terminated_as_interrupted,
)

PREFIX = "VQGPT_"
FOR_ALL_COMMANDS = ("data_root", "device", "seed")  # mean the same in each, and belong to the machine or the experiment
REFUSED = {
    "--sane-index-shape": (
        "it would change nothing: codes are grids (B, h, w) everywhere, in the network and in token caches",
        "leave it out",
    ),
    "--colorize-nlabels": (
        "it shows segmentation maps of more than 3 channels in colours, and every dataset here has 1 or 3 channels",
        "leave it out: images are shown as they are",
    ),
}

LAST_STAGE = typing.get_args(StageName)[-1]
# After a stage: the next one, which of its options takes the result, which option chose that, which figure names it.
AFTER = {
    "vqgan-train": ("tokenize", "checkpoint_vae", "out", "checkpoint"),
    "vqgan-reconstruct": ("tokenize", "checkpoint_vae", "checkpoint_vae", ""),
    "tokenize": ("train", "cache", "cache", "cache"),
    "train": ("sample", "checkpoint_gpt", "out", "checkpoint"),
}


def typer_parameter(option: Option, words: str) -> inspect.Parameter:
    """The typer parameter of one option of the command `words`."""
    kind: Any = _typer_type(option.type)
    default: Any = inspect.Parameter.empty
    declared = typer.Argument(help=option.help)
    if not option.is_argument:
        flag = f"{option.flag}/--no-{option.flag[2:]}" if option.type is bool and not option.short else option.flag
        kind, default = kind | None, None
        declared = typer.Option(
            *([flag, option.short] if option.short else [flag]),
            help=_with_default(option),
            envvar=environment_variable(option, words),
            show_envvar=False,
            rich_help_panel=option.group,
            metavar=_metavar(option),
        )
    annotation: Any = Annotated[kind, declared]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def default_text(option: Option) -> str:
    """The default as the help and the reference page show it; "" where the help text itself says it."""
    if option.is_argument or option.default is None or option.default == ():
        return ""
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    return " ".join(map(str, option.default)) if isinstance(option.default, tuple) else str(option.default)


def _with_default(option: Option) -> str:
    default = default_text(option)
    return f"{option.help.removesuffix('.')} (default: {default})." if default else option.help


def _typer_type(kind: Any) -> Any:
    if kind in (Path, CachePath):
        return str  # pathlib would make one slash of the two in s3://, and `~` of `./~`
    args = typing.get_args(kind)
    is_list = typing.get_origin(kind) is tuple and args[-1] is Ellipsis
    return list[_typer_type(args[0])] if is_list else kind  # type: ignore[misc]


def _metavar(option: Option) -> str | None:
    if option.type == CachePath:
        return "PATH"
    if typing.get_origin(option.type) is Literal:
        return "|".join(typing.get_args(option.type))
    if typing.get_origin(option.type) is tuple:
        names = [kind.__name__.upper() for kind in typing.get_args(option.type) if kind is not Ellipsis]
        return " ".join(names) + (" ..." if option.is_list else "")
    return None if option.type is bool else option.type.__name__.upper()


def typer_function(command: Command, commands: Mapping[str, Command]) -> Callable[..., None]:
    """What typer runs for one of the `commands`; its signature is the options of the command, in order."""

    def run(**values: Any) -> None:
        raise typer.Exit(run_command(command, values, commands))

    parameters = [typer_parameter(option, command.words) for option in command.options]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = command.doc
    return run


def expand_lists(arguments: list[str], list_flags: set[str]) -> list[str]:
    """Rewrite `--ch-mult 1 2 2` as `--ch-mult 1 --ch-mult 2 --ch-mult 2`, which is how click takes lists."""
    expanded: list[str] = []
    current = ""
    for position, argument in enumerate(arguments):
        flag = argument.replace("_", "-")
        if argument.startswith("-") and not _is_number(argument):
            current = flag if flag in list_flags else ""
            expanded.append(argument)
        elif current and position and arguments[position - 1].replace("_", "-") != current:
            expanded += [current, argument]
        else:
            expanded.append(argument)
    return expanded


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def environment_variable(option: Option, words: str) -> str:
    """The variable of an option of the command `words`."""
    return PREFIX + _upper(option.flag[2:] if option.name in FOR_ALL_COMMANDS else f"{words} {option.flag[2:]}")


def _upper(name: str) -> str:
    return name.upper().replace("-", "_").replace(" ", "_")


def check_environment(environment: Mapping[str, str], commands: Iterable[Command]) -> None:
    """Raise UsageError for a variable that names an option and no command (VQGPT_BATCH_SIZE): no command reads it."""
    by_option: dict[str, list[str]] = {}
    for command in commands:
        for item in command.options:
            if not item.is_argument:
                new = environment_variable(item, command.words)
                by_option.setdefault(PREFIX + _upper(item.flag[2:]), []).append(new)
    for name, names in by_option.items():
        if environment.get(name) and name not in names:
            raise UsageError(f"{name} is set, and does not say for which command", f"set {' or '.join(names)} instead")


def check_not_refused(arguments: list[str], commands: Iterable[Command]) -> None:
    """Raise UsageError, with the reason, if a command is given a flag that vqgpt is known not to have."""
    words = next((each.words for each in commands if arguments[: each.words.count(" ") + 1] == each.words.split()), "")
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-").replace("--no-", "--")
        if flag in REFUSED:
            reason, remedy = REFUSED[flag]
            raise UsageError(f"{' '.join(['vqgpt', *words.split()])} has no {flag}: {reason}", remedy)


def run_command(command: Command, values: Mapping[str, Any], commands: Mapping[str, Command]) -> int:
    """Do the work of one of the `commands`, which a recipe may be for, and return its exit code."""
    given = {name: value for name, value in values.items() if value not in (None, [])}
    output = resolve(OutputFlags, given)
    with Screen(quiet=output.quiet, as_json=output.json) as screen:
        try:
            alone = processes() == 1
            if process_rank() > 0:
                screen.quiet, screen.as_json = True, False
            if not alone and not command.several_processes:
                raise UsageError(
                    f"vqgpt {command.words} was started as {processes()} processes and runs as one",
                    "start it without torchrun",
                )
            check_environment(os.environ, commands.values())
            flags = resolve(Flags, given)
            recipe = recipe_values(command, flags.recipe, commands)
            config: Any = resolve(command.config, given, recipe)
            if command.takes_recipe:
                screen.show_configuration(command.words, shown_values(config, output.verbose or flags.dry_run))
            if scarce := low_limit():
                screen.report(Notice(text=scarce))
            keep_memory_pages()
            let_waiting_threads_sleep()
            with terminated_as_interrupted() if alone else nullcontext(), _warnings_reported(screen.report):
                result = command.run(config, flags, screen.report)
                screen.show_result(result if output.json else command.shown(result))
            if not flags.dry_run:
                screen.show_next(next_line(command, given, result, commands))
            if output.json or flags.dry_run or not command.takes_recipe:  # then nothing else has the result
                check_written()
        except VQGPTError as error:
            failure = error
        except KeyboardInterrupt as stop:
            name = stop.signal.name if isinstance(stop, Terminated) else signal.SIGINT.name
            message = f"interrupted by {name} before it was done"
            failure = InterruptedRun(message, "run the same command again", ExitCode[name])
        except Exception as error:
            failure = explain(error)
            failure.__cause__ = error
        else:
            return int(ExitCode.OK)
        if isinstance(failure, MissingFilesError):
            failure.hint += f"; then run again: {command_as_given(command, given)}"
        screen.show_error(failure)
        if output.debug:
            traceback.print_exception(failure)
        return int(failure.exit_code)


class _Notices(logging.Handler):
    """Reports what is logged, each text once."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report
        self.reported: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Called from one thread at a time."""
        text = record.getMessage()
        if text not in self.reported:
            self.reported.add(text)
            self.report(Notice(text=text))


@contextmanager
def _warnings_reported(report: Report) -> Iterator[None]:
    """What our modules log as a warning in the block becomes a notice, each once."""
    logger, handler = logging.getLogger("vqgpt"), _Notices(report)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def shown_values(config: Any, everything: bool) -> dict[str, Any]:
    """The option values of a configuration, by name; those that differ from the default, or all."""
    defaults = {item.name: item.default for item in options_of(type(config))}
    values = flat_values(config).items()
    return {name: value for name, value in values if everything or value != defaults[name]}


def explain(error: Exception) -> VQGPTError:
    """The error that an exception of Python, torch or the system means to the user."""
    if lacking := shortage(error):
        return lacking
    if isinstance(error, OSError) and error.filename is not None:
        return InputError(f"{error.filename}: {error.strerror}", "check the path and its permissions")
    if isinstance(error, ImportError):
        return MissingDataError(str(error), "install it; `vqgpt doctor` tells what is missing")
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib has no class of its own for it
        return UsageError("~ stands for no folder here: HOME is not set, and this user has no home", "set HOME")
    return VQGPTError(
        f"{type(error).__name__}: {error}", "run again with --debug for the traceback, and report it as a bug"
    )


def command_as_given(command: Command, given: Mapping[str, Any]) -> str:
    """The command as it was given, by flags and environment, for a shell."""
    return command_line(command.words, [*options_of(command.config), *options_of(Flags)], given)


def next_line(
    command: Command, given: Mapping[str, Any], result: Mapping[str, Any], commands: Mapping[str, Command]
) -> str:
    """The command to give after this one, "" if none follows: of the same recipe or images, for what it made."""
    if command.table == "sample":
        same = {name: given[name] for name in ("checkpoint_vae", "device") if name in given}
        return command_as_given(commands["evaluate-samples"], {**same, "samples": result["cache"]})
    if command.table == "run" and given.get("until", LAST_STAGE) != LAST_STAGE:
        return command_as_given(command, {name: given[name] for name in given if name not in ("until", "overwrite")})
    if command.table not in AFTER:
        return ""
    following, takes, chosen_by, named = AFTER[command.table]
    carried = {item.name for item in options_of(ImageOptions)} | {"recipe", "device"}
    carried_on = {name: given[name] for name in given if name in carried}
    made = given.get(chosen_by) or (None if {"recipe", "dataset"} & given.keys() else result.get(named))
    return command_as_given(commands[following], {**carried_on, takes: made})
