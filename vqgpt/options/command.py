"""What a command is: its words, options and work; and the options that all commands share. Must not import torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.options.definition import option, options_of
from vqgpt.progress import Report

COMMON = "Common"


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What every command takes."""

    json: bool = option(False, "Print the result as one JSON object on stdout.", group=COMMON)
    quiet: bool = option(False, "Print errors and nothing else.", group=COMMON, short="-q")
    verbose: bool = option(
        False, "Show the whole configuration, not only what differs from the defaults.", group=COMMON, short="-v"
    )
    debug: bool = option(False, "Show the traceback of an error.", group=COMMON)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every command of the pipeline takes."""

    recipe: Path | None = option(
        None, "A .toml file, or the name of one of the recipes that come with vqgpt.", group=COMMON
    )
    overwrite: bool = option(
        False,
        "Replace what the command writes if it exists; what is unfinished, with the same settings, is continued.",
        group=COMMON,
    )
    dry_run: bool = option(False, "Say what would be done, and write nothing.", group=COMMON)
    output: OutputFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command. `run(config, flags, report)` returns the result to show, and its docstring is the help text."""

    words: str
    config: type
    run: Callable[[Any, Flags, Report], Mapping[str, Any]]
    takes_recipe: bool = True
    several_processes: bool = False

    @property
    def table(self) -> str:
        """Its table in a recipe."""
        return self.words.replace(" ", "-")

    @property
    def doc(self) -> str:
        """Its help text."""
        return self.run.__doc__ or ""

    @property
    def flags(self) -> type:
        """The class of its common options."""
        return Flags if self.takes_recipe else OutputFlags

    @property
    def recipe_keys(self) -> dict[str, str]:
        """Its keys in a recipe, and the fields that they set."""
        return {item.key: item.name for item in options_of(self.config)}
