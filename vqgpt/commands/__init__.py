"""One module per command: its options, its `run`, its help text. Only the command line imports them.

A module here has a `COMMAND`; there is no other list. Must not import torch before a command runs.
"""

import importlib
import pkgutil

from vqgpt.options.definition import Command


def all_commands() -> dict[str, Command]:
    """Every command, by its table in a recipe."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    commands: list[Command] = [module.COMMAND for module in modules]
    return {command.table: command for command in commands}
