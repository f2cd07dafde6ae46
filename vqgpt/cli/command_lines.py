"""Command lines that are advised: the one that was given, and the one that comes after it."""

import shlex
from collections.abc import Mapping
from typing import Any

from vqgpt.data.options import ImageOptions
from vqgpt.options.command import Command, Flags
from vqgpt.options.definition import options_of

# After a stage: the next one, which of its options takes the result, which option chose that, which figure names it.
AFTER = {
    "vqgan-train": ("tokenize", "checkpoint_vae", "out", "checkpoint"),
    "vqgan-reconstruct": ("tokenize", "checkpoint_vae", "checkpoint_vae", ""),
    "tokenize": ("train", "cache", "cache", "cache"),
    "train": ("sample", "checkpoint_gpt", "out", "checkpoint"),
}


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
