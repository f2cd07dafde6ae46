"""Makes docs/reference.md, the page of all commands and options, from their one definition: `make format` runs it."""

from vqgpt.cli.running import default_text, environment_variable
from vqgpt.commands import all_commands
from vqgpt.errors import ExitCode
from vqgpt.options.definition import Command, Flags, Option, OutputFlags, options_of

HEADING = """# Commands and options

This page is generated from the definitions of the options: `make format` writes it.

Every flag is understood with hyphens and with underscores. An option is looked up on the command line, then in the
environment, then in the recipe (`--recipe`), then in its default. In a recipe, a key at the top goes to each command
that has this option, a key in the table of a command to that command. A path may start with `~` in all of these.

An environment variable names its command: `VQGPT_TRAIN_BATCH_SIZE` is `--batch-size` of `vqgpt train`, and
`VQGPT_VQGAN_TRAIN_BATCH_SIZE` that of `vqgpt vqgan train`. `VQGPT_DATA_ROOT`, `VQGPT_DEVICE` and `VQGPT_SEED` serve
every command that has the option. A name without a command (`VQGPT_BATCH_SIZE`) is an error.
"""

EXIT_CODES = {
    ExitCode.OK: "done, even if the reader of the output went away",
    ExitCode.UNEXPECTED: "a fault of vqgpt's, to be reported",
    ExitCode.USAGE: "the command line, the environment or the recipe asks for something impossible",
    ExitCode.BAD_INPUT: "a file is bad, or does not match another",
    ExitCode.MISSING_DATA: "a dataset, checkpoint, cache or package is not there",
    ExitCode.OUT_OF_RESOURCES: "memory or disk space ran out, also for stdout where it alone has the result",
    ExitCode.NON_FINITE: "a loss or gradient is not finite",
    ExitCode.SIGHUP: "SIGHUP: the terminal hung up",
    ExitCode.SIGINT: "SIGINT: Ctrl-C",
    ExitCode.SIGTERM: "SIGTERM",
}


def reference_page() -> str:
    """The page, in Markdown."""
    sections = [HEADING]
    sections += [_section(command) for command in sorted(all_commands().values(), key=lambda item: item.table)]
    sections.append(_table("Common to the commands of the pipeline", "COMMAND", list(options_of(Flags))))
    sections.append(_table("Common to all commands", "COMMAND", list(options_of(OutputFlags))))
    sections.append(_exit_codes())
    return "\n".join(sections)


def _exit_codes() -> str:
    rows = "".join(f"| {int(code)} | {EXIT_CODES[code]} |\n" for code in ExitCode)
    after_signals = "After a signal, what was done is saved or undone, and the same command can be run again."
    return f"## Exit codes\n\n| code | |\n|---|---|\n{rows}\n{after_signals}\n"


def _section(command: Command) -> str:
    table = f"Table in a recipe: `[{command.table}]`.\n\n" if command.takes_recipe else ""
    heading = f"`vqgpt {command.words}`"
    return _table(heading, command.words, list(options_of(command.config)), f"{command.doc}\n\n{table}")


def _table(title: str, words: str, options: list[Option], introduction: str = "") -> str:
    header = "| option | environment | default | |\n|---|---|---|---|\n" if options else ""
    return f"## {title}\n\n{introduction}{header}" + "".join(_row(option, words) for option in options)


def _row(option: Option, words: str) -> str:
    if option.is_argument:
        return f"| `{option.name.upper()}` | | | {option.help} |\n"
    default = f"`{default_text(option)}`" if default_text(option) else ""
    return f"| `{option.flag}` | `{environment_variable(option, words)}` | {default} | {option.help} |\n"


if __name__ == "__main__":
    print(reference_page(), end="")
