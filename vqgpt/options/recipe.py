"""Recipes: TOML files with what a dataset's pipeline sets differently from the defaults. Must not import torch."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vqgpt.errors import UsageError
from vqgpt.options.names import nearest_hint
from vqgpt.storage.files import read_regular

LARGEST_RECIPE = 2**20  # bytes


def read_recipe(path: Path, command: str, options_by_command: Mapping[str, set[str]]) -> dict[str, Any]:
    """The values that the recipe at `path` gives to `command`.

    A key at the top of the file goes to each command that has this option, a key in the table `[command]` to that
    command. Raises UsageError that names the nearest known key, for a key that no command has.
    """
    try:
        recipe = tomllib.loads(read_regular(path, LARGEST_RECIPE).decode())
    except FileNotFoundError:
        raise UsageError(
            f"there is no recipe {path}", "give the path of a .toml file, or one of the names in pipelines/"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "correct the file at that place") from None
    tables = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    shared = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    all_options = set().union(*options_by_command.values())
    for key in shared:
        _check_known(key, all_options, f"{path}: unknown key {key!r}")
    for table, values in tables.items():
        _check_known(table, options_by_command, f"{path}: unknown table [{table}]")
        for key in values:
            _check_known(key, options_by_command[table], f"{path}: unknown key {key!r} in [{table}]")
    values = {key: value for key, value in shared.items() if key in options_by_command[command]}
    return values | tables.get(command, {})


def _check_known(name: str, known: Iterable[str], message: str) -> None:
    known = sorted(known)
    if name not in known:
        raise UsageError(message, nearest_hint(name, known))
