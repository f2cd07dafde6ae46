"""From configuration classes to typer commands: each option becomes a flag, an environment variable and a recipe key.

A flag that was not given arrives as None, so that the environment, the recipe and the default can have their say.
Flags and variables that vqgpt is known not to have are refused with the reason, never ignored. Must not import torch.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vqgpt.errors import UsageError
from vqgpt.options.definition import Command, Option, options_of
from vqgpt.options.paths import CachePath

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


def typer_parameter(option: Option, words: str) -> inspect.Parameter:
    """The typer parameter of one option of the command `words`."""
    help_text = option.help if option.is_argument else _with_default(option)
    annotation = _typer_type(option.type)
    if option.is_argument:
        return _parameter(option.name, Annotated[annotation, typer.Argument(help=help_text)], inspect.Parameter.empty)
    flag = f"{option.flag}/--no-{option.flag[2:]}" if option.type is bool and not option.short else option.flag
    declared = typer.Option(
        *([flag, option.short] if option.short else [flag]),
        help=help_text,
        envvar=environment_variable(option, words),
        show_envvar=False,
        rich_help_panel=option.group,
        metavar=_metavar(option),
    )
    return _parameter(option.name, Annotated[annotation | None, declared], None)


def default_text(option: Option) -> str:
    """The default as the help and the reference page show it; "" where the help text itself tells."""
    if option.is_argument or option.default is None or option.default == ():
        return ""
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    if isinstance(option.default, tuple):
        return " ".join(map(str, option.default))
    return str(option.default)


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


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_signature(function: Callable[..., None], command: Command) -> Callable[..., None]:
    """Give `function(**values)` the signature that typer reads: the options of the command, in order."""
    options = [*options_of(command.config), *options_of(command.flags)]
    parameters = [typer_parameter(option, command.words) for option in options]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__doc__ = command.doc
    return function


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
        for item in [*options_of(command.config), *options_of(command.flags)]:
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
