"""Recipes: TOML files with what a dataset's pipeline sets differently from the defaults. Must not import torch."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vqgpt.errors import UsageError, nearest_hint
from vqgpt.options.definition import Command
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import read_regular

LARGEST_RECIPE = 2**20  # bytes
OWN_IMAGES = "folder"  # the dataset for which `vqgpt run` chooses a recipe


def recipe_values(command: Command, recipe: Path | None, commands: Mapping[str, Command]) -> dict[str, Any]:
    """What a recipe, a path or a name, gives to a command, by option; `commands` are all that it may speak to.

    Raises UsageError if there is no such recipe, or if it is not valid.
    """
    if recipe is None:
        return {}
    path = recipe_path(recipe)
    return values_for(command, load_recipe(path), str(path), commands)


def advise_recipe(dataset: str, report: Report) -> None:
    """A notice that says which recipe is better than the defaults, for a dataset that has one."""
    known = recipes()
    if dataset not in (*known, OWN_IMAGES):
        return
    better = f"--recipe {dataset}" if dataset in known else f"`vqgpt run --dataset {dataset}`, which chooses one,"
    defaults = "the sizes are those of GenerativeZoo, and slow to learn"
    report(Notice(text=f"no recipe and no --lr: {defaults}; {better} is better"))


def values_for(
    command: Command, recipe: Mapping[str, Any], source: str, commands: Mapping[str, Command]
) -> dict[str, Any]:
    """What the recipe read from `source` gives to a command, by option.

    A key at the top of the file goes to each command that has this option, a key in the table `[command]` to that
    command. Raises UsageError that names the nearest known key, for a key that no command has.
    """
    known = {table: item.recipe_keys for table, item in commands.items() if item.takes_recipe}
    tables = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    shared = {key: value for key, value in recipe.items() if key not in tables}
    everywhere = set().union(*known.values())
    for key in shared:
        _check_known(key, everywhere, f"{source}: unknown key {key!r}")
    for table, values in tables.items():
        _check_known(table, known, f"{source}: unknown table [{table}]")
        for key in values:
            _check_known(key, known[table], f"{source}: unknown key {key!r} in [{table}]")
    own = command.recipe_keys
    values = {key: value for key, value in shared.items() if key in own} | tables.get(command.table, {})
    return {own[key]: value for key, value in values.items()}


def recipe_path(recipe: Path) -> Path:
    """The file that `--recipe` means: a path, or a name among the recipes that come with vqgpt."""
    if recipe.suffix == ".toml" or recipe.is_file():
        return recipe
    known = recipes()
    if str(recipe) not in known:
        raise UsageError(
            f"there is no recipe {str(recipe)!r}", f"known: {', '.join(known)}; or give the path of a .toml file"
        )
    return known[str(recipe)]


def recipes() -> dict[str, Path]:
    """The recipes that come with vqgpt, by name: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent.parent
    folders = (package.parent / "pipelines", package / "recipes")
    return dict(sorted((path.stem, path) for folder in folders for path in folder.glob("*.toml")))


def load_recipe(path: Path) -> dict[str, Any]:
    """The keys and tables of a recipe. Raises UsageError if there is no such file, or if it is not TOML."""
    try:
        return tomllib.loads(read_regular(path, LARGEST_RECIPE).decode())
    except FileNotFoundError:
        raise UsageError(
            f"there is no recipe {path}", "give the path of a .toml file, or one of the names in pipelines/"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "correct the file at that place") from None


def recipe_toml(content: Mapping[str, Any]) -> str:
    """The keys and tables of a recipe as TOML. Inverse of `tomllib.loads`."""
    tables = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    shared = {key: value for key, value in content.items() if key not in tables}
    parts = [_lines(shared), *(f"\n[{table}]\n{_lines(values)}" for table, values in tables.items())]
    return "".join(parts)


def _lines(values: Mapping[str, Any]) -> str:
    # TOML writes text, numbers, truth values and lists of them as JSON does
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _check_known(name: str, known: Iterable[str], message: str) -> None:
    known = sorted(known)
    if name not in known:
        raise UsageError(message, nearest_hint(name, known))
