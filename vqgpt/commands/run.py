"""`vqgpt run`: the whole pipeline of a recipe, or of one that is chosen for one's own images."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqgpt.api.options import RunConfig
from vqgpt.data.table import find_dataset
from vqgpt.errors import UsageError
from vqgpt.options.definition import Command, Flags
from vqgpt.options.paths import RUNS_FOLDER
from vqgpt.options.recipe import LARGEST_RECIPE, load_recipe, recipe_path, recipe_toml, recipes
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import canonical_json, read_regular, sha256, write_atomically

WHAT_A_PLAN_IS_FOR = ("dataset", "data_root", "device", "evaluate")  # beside the recipe


def run(config: RunConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Run the whole pipeline of a recipe: every stage that is not up to date, from images to pictures."""
    from vqgpt.api import run
    from vqgpt.commands import all_commands

    recipe, content = recipe_of(config, flags, report)
    if config.budget is not None:
        recipe, content = plan_of(config, recipe, content, flags, report)
    return run.run(config, recipe, content, flags, all_commands(), report)


def recipe_of(config: RunConfig, flags: Flags, report: Report) -> tuple[Path, dict[str, Any]]:
    """The recipe to run and what it says: the one given, that of the dataset, or one that is chosen for it and saved.

    Raises UsageError if neither a recipe nor a dataset is given, and what reading one's own images raises.
    """
    known = recipes()
    if flags.recipe is not None:
        path = recipe_path(flags.recipe)
    elif config.dataset is None:
        remedy = f"give --recipe, one of {', '.join(known)}, or a .toml file; or --dataset folder --data-root DIR"
        raise UsageError("no recipe and no dataset was given", remedy)
    elif config.dataset in known and load_recipe(known[config.dataset])["dataset"] == config.dataset:
        path = known[config.dataset]
    else:
        find_dataset(config.dataset)
        path = RUNS_FOLDER / config.dataset / "recipe.toml"
        if not path.exists():
            from vqgpt.api.chosen_recipe import choose_recipe

            text = choose_recipe(config.data_root, config.device, report)
            saved = "" if flags.dry_run else f" and saved as {path}"
            for line in (f"{config.dataset} has no recipe; this one is chosen{saved}:", *text.splitlines()):
                report(Notice(text=line))
            if not flags.dry_run:
                write_atomically(path, text.encode())
            return path, tomllib.loads(text)
    report(Notice(text=f"recipe: {path}"))
    return path, load_recipe(path)


def plan_of(
    config: RunConfig, recipe: Path, content: dict[str, Any], flags: Flags, report: Report
) -> tuple[Path, dict[str, Any]]:
    """The recipe scaled to `--budget`: the plan that was saved, or one that is made, shown and saved.

    Raises UsageError if the one that was saved is of another recipe, or if the time is too short.
    """
    from vqgpt.api.budget import planned
    from vqgpt.api.run import stages_of
    from vqgpt.commands import all_commands

    first = stages_of(config, content, str(recipe), all_commands())[0]
    path = first.record.with_name(f"budget-{config.budget}.toml")
    asked = {"recipe": content, **{name: str(getattr(config, name)) for name in WHAT_A_PLAN_IS_FOR}}
    planned_for = f"# Planned for: {sha256(canonical_json(asked))}"
    if path.exists() and not flags.overwrite:
        if planned_for not in read_regular(path, LARGEST_RECIPE).decode(errors="replace").splitlines():
            raise UsageError(
                f"{path} was planned for another recipe than {recipe} is now, or with other options",
                "give --overwrite to plan anew, or run it with --recipe",
            )
        report(Notice(text=f"plan: {path}, as saved"))
        return path, load_recipe(path)
    plan, expected = planned(config, content, str(recipe), all_commands(), report)
    stages = ", ".join(f"{table} {value:.0f} s" for table, value in expected.items())
    told = f"# The recipe {recipe.stem}, scaled to {config.budget} on this machine. Expected: {stages}."
    text = f"{told}\n{planned_for}\n{recipe_toml(plan)}"
    where = "" if flags.dry_run else f", saved as {path}"
    for line in (f"the plan for {config.budget}{where}:", *text.splitlines()):
        report(Notice(text=line))
    if not flags.dry_run:
        write_atomically(path, text.encode())
    return path, plan


COMMAND = Command(words="run", config=RunConfig, run=run)
