"""How every command runs: parse, resolve the configuration, do the work, show the result or the error.

Then says which command to give next. Must not import torch before a command's body runs.
"""

import logging
import os
import shlex
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from vqgpt.cli.console import Screen, check_written
from vqgpt.cli.parameters import check_environment
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
from vqgpt.options.definition import Command, Flags, OutputFlags, flat_values, options_of, resolve
from vqgpt.options.recipe import recipe_values
from vqgpt.progress import Notice, Report
from vqgpt.runtime.process import (
    Terminated,
    keep_memory_pages,
    low_limit,
    process_rank,
    processes,
    shortage,
    terminated_as_interrupted,
)

# After a stage: the next one, which of its options takes the result, which option chose that, which figure names it.
AFTER = {
    "vqgan-train": ("tokenize", "checkpoint_vae", "out", "checkpoint"),
    "vqgan-reconstruct": ("tokenize", "checkpoint_vae", "checkpoint_vae", ""),
    "tokenize": ("train", "cache", "cache", "cache"),
    "train": ("sample", "checkpoint_gpt", "out", "checkpoint"),
}


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
                everything = output.verbose or flags.dry_run
                screen.show_configuration(command.words, shown_values(config, everything))
            if scarce := low_limit():
                screen.report(Notice(text=scarce))
            keep_memory_pages()
            with terminated_as_interrupted() if alone else nullcontext(), _warnings_told(screen.report):
                result = command.run(config, flags, screen.report)
                screen.show_result(result)
            if not flags.dry_run:
                screen.show_next(next_line(command, given, result, commands))
            if output.json or flags.dry_run or not command.takes_recipe:  # then nothing else tells what was asked for
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
            failure.hint += f"; then run again: {command_line(command, given)}"
        screen.show_error(failure)
        if output.debug:
            traceback.print_exception(failure)
        return int(failure.exit_code)


class _Notices(logging.Handler):
    """Reports what is logged, each text once."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Called from one thread at a time."""
        text = record.getMessage()
        if text not in self.told:
            self.told.add(text)
            self.report(Notice(text=text))


@contextmanager
def _warnings_told(report: Report) -> Iterator[None]:
    """What our modules log as a warning in the block is told to the user, each once."""
    logger, handler = logging.getLogger("vqgpt"), _Notices(report)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def shown_values(config: Any, everything: bool) -> dict[str, Any]:
    """The option values of a configuration, by name; those that differ from the default, or all."""
    values = flat_values(config)
    return {
        item.name: values[item.name]
        for item in options_of(type(config))
        if everything or values[item.name] != item.default
    }


def explain(error: Exception) -> VQGPTError:
    """The error that an exception of Python, torch or the system means to the user."""
    lacking = shortage(error)
    if lacking is not None:
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


def command_line(command: Command, given: Mapping[str, Any]) -> str:
    """The command as it was given, by flags and environment, for a shell."""
    words = ["vqgpt", *command.words.split()]
    for item in [*options_of(command.config), *options_of(Flags)]:
        value = given.get(item.name)
        if item.is_argument:
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(item.flag if value else f"--no-{item.flag[2:]}")
        elif value is not None:
            words += [item.flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def next_line(
    command: Command, given: Mapping[str, Any], result: Mapping[str, Any], commands: Mapping[str, Command]
) -> str:
    """The command to give after this one, "" if none follows: of the same recipe or images, for what it made."""
    if command.table == "sample":
        kept = {name: given[name] for name in ("checkpoint_gpt", "n_head", "device") if name in given}
        return command_line(commands["score"], {**kept, "cache": result["cache"]})
    if command.table == "run" and given.get("until", "sample") != "sample":
        return command_line(
            command, {name: value for name, value in given.items() if name not in ("until", "overwrite")}
        )
    if command.table not in AFTER:
        return ""
    following, takes, chosen_by, named = AFTER[command.table]
    carried = {item.name for item in options_of(ImageOptions)} | {"recipe", "device"}
    kept = {name: value for name, value in given.items() if name in carried}
    made = given.get(chosen_by) or (None if {"recipe", "dataset"} & given.keys() else result.get(named))
    return command_line(commands[following], {**kept, takes: made})
