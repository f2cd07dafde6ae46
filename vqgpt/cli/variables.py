"""The environment variables that stand in for flags: VQGPT_TRAIN_BATCH_SIZE is --batch-size of `vqgpt train`."""

from collections.abc import Iterable, Mapping

from vqgpt.errors import UsageError
from vqgpt.options.command import Command
from vqgpt.options.definition import Option, options_of

PREFIX = "VQGPT_"
FOR_ALL_COMMANDS = ("data_root", "device", "seed")  # mean the same in each, and belong to the machine or the experiment


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
