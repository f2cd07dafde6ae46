"""Configuration: every option is defined once, as a field of a frozen dataclass.

From that one definition come the command-line flag, the environment variable, the recipe key, the saved
configuration and the reference page. Values are plain Python (int, float, bool, str, Path, tuples of them).
Must not import torch: `vqgpt --help` reads these classes.
"""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from vqgpt.errors import UsageError
from vqgpt.options.codec import convert, without_none
from vqgpt.options.paths import CachePath, expand_home

ConfigT = TypeVar("ConfigT")


def option(default: Any, help: str, *, group: str, flag: str = "", short: str = "") -> Any:
    """A dataclass field that is also a command-line option; `flag` is its spelling where it is not the field's name."""
    return field(default=default, metadata={"help": help, "group": group, "flag": flag, "short": short})


def argument(help: str) -> Any:
    """A required dataclass field that is also a positional argument of the command."""
    return field(metadata={"help": help, "group": "", "flag": "", "short": ""})


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option as the command line sees it; `type` has no None in it."""

    name: str
    flag: str
    short: str
    help: str
    group: str
    type: Any
    default: Any

    @property
    def key(self) -> str:
        """Its key in a recipe: the flag with underscores."""
        return self.flag[2:].replace("-", "_")

    @property
    def is_argument(self) -> bool:
        """True if it is given by position, and must be given."""
        return self.default is MISSING

    @property
    def is_list(self) -> bool:
        """True if the flag takes any number of values (`--ch-mult 1 2 2`)."""
        return typing.get_origin(self.type) is tuple and typing.get_args(self.type)[-1] is Ellipsis


def options_of(config_class: type) -> Iterator[Option]:
    """All options of a configuration class, those of nested classes included, in the order of definition."""
    hints = typing.get_type_hints(config_class)
    for item in fields(config_class):
        if is_dataclass(hints[item.name]):
            yield from options_of(typing.cast(type, hints[item.name]))
        elif "help" in item.metadata:
            yield _as_option(item, hints[item.name])


def _as_option(item: "Field[Any]", annotation: Any) -> Option:
    return Option(
        name=item.name,
        flag="--" + (item.metadata["flag"] or item.name).replace("_", "-"),
        short=item.metadata["short"],
        help=item.metadata["help"],
        group=item.metadata["group"],
        type=without_none(annotation),
        default=item.default,
    )


def resolve(config_class: type[ConfigT], *sources: Mapping[str, Any]) -> ConfigT:
    """Build a configuration from sources in falling precedence; a value of None means "not given here".

    In the text of a path, `~` and `~NAME` at the start mean a home. Raises UsageError if a value is out of its range.
    """
    given: dict[str, Any] = {}
    for source in reversed(sources):
        given.update({name: value for name, value in source.items() if value is not None})
    return _build(config_class, given)


def _build(config_class: type[ConfigT], given: Mapping[str, Any]) -> ConfigT:
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for item in fields(typing.cast(Any, config_class)):
        if is_dataclass(hints[item.name]):
            arguments[item.name] = _build(typing.cast(type, hints[item.name]), given)
        elif item.name in given:
            arguments[item.name] = value_of(given[item.name], hints[item.name], item.name)
    return config_class(**arguments)


def value_of(written: Any, annotation: Any, name: str) -> Any:
    """The value of what a user wrote, now and here: of the option's type, with homes expanded in paths.

    A list may be written as its only word. Raises UsageError that names the option.
    """
    kind = without_none(annotation)
    if kind in (Path, CachePath) and isinstance(written, str):
        written = expand_home(written, name)
    elif kind == tuple[str, ...] and isinstance(written, str):
        written = (written,)
    return convert(written, annotation, name)


def check(condition: bool, name: str, value: Any, requirement: str) -> None:
    """Raise UsageError unless `condition` holds: `name` = `value` must be what `requirement` says."""
    if not condition:
        raise UsageError(f"{name} = {value} cannot be used", f"{name} must be {requirement}")


def flat_values(config: Any) -> dict[str, Any]:
    """The option values of a configuration and of those in it, by name."""
    values: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        values |= flat_values(value) if is_dataclass(value) else {item.name: value}
    return values
