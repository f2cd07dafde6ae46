"""Configuration: every option is defined once, as a field of a frozen dataclass.

From that one definition come the command-line flag, the environment variable, the recipe key, the saved
configuration and the reference page. Values are plain Python (int, float, bool, str, Path, tuples of them).
Must not import torch: `vqgpt --help` reads these classes.
"""

import difflib
import functools
import operator
import types
import typing
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from vqgpt.errors import InputError, UsageError
from vqgpt.options.cache_path import CachePath, expand_home, parse_cache_path

MOST_NAMES = 50  # in a hint

ConfigT = TypeVar("ConfigT")

LONGEST_VALUE = 200  # characters of a value in a message


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
    if typing.get_origin(annotation) in (Union, types.UnionType):
        annotation = _without_none(annotation)
    return Option(
        name=item.name,
        flag="--" + (item.metadata["flag"] or item.name).replace("_", "-"),
        short=item.metadata["short"],
        help=item.metadata["help"],
        group=item.metadata["group"],
        type=annotation,
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
            arguments[item.name] = convert(given[item.name], hints[item.name], item.name, typed=True)
    return config_class(**arguments)


def convert(value: Any, annotation: Any, name: str, typed: bool = False) -> Any:
    """Check `value` (from a flag, a TOML or a JSON file) against a field's type and give it that type.

    A `typed` value is one that a user wrote, now and here: homes are expanded in paths. One out of a file that vqgpt
    wrote stays as it is. Raises UsageError that names the option, what it takes and what it was given.
    """
    if typed and isinstance(value, str) and annotation in (Path, CachePath):
        value = expand_home(value, name)
    if annotation == CachePath:
        if isinstance(value, str):
            return parse_cache_path(value)
        annotation = Path
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else convert(value, _without_none(annotation), name, typed)
    if origin is Literal:
        if value in args:
            return value
        raise UsageError(f"{name} = {_shown(value)} is not one of {', '.join(args)}", nearest_hint(str(value), args))
    if is_dataclass(annotation) and isinstance(value, Mapping):
        return from_json(typing.cast(type, annotation), value, name)
    if origin is dict and isinstance(value, Mapping):
        return {args[0](key): convert(element, args[1], f"{name}.{key}") for key, element in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        element_types = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(element_types) == len(value):
            return tuple(
                convert(element, kind, name, typed) for element, kind in zip(value, element_types, strict=True)
            )
    elif annotation == tuple[str, ...] and isinstance(value, str):  # a list of one word in a recipe
        return (value,)
    elif annotation is Path and isinstance(value, str):
        return Path(value)
    elif annotation is float and type(value) is int:
        return float(value)
    elif (
        isinstance(annotation, type)
        and isinstance(value, annotation)
        and isinstance(value, bool) == (annotation is bool)
    ):
        return value
    raise UsageError(f"{name} = {_shown(value)} has the wrong type", f"{name} takes {_describe(annotation)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _without_none(annotation: Any) -> Any:
    return functools.reduce(operator.or_, (arg for arg in typing.get_args(annotation) if arg is not type(None)))


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        args = typing.get_args(annotation)
        if args[-1] is Ellipsis:
            return f"a list of {args[0].__name__}"
        return f"a list of {len(args)} {args[0].__name__}"
    return f"one {getattr(annotation, '__name__', annotation)}"


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


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts and lists that JSON and `torch.save` can hold. Inverse of `from_json`."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, (tuple, list)):
        return [_plain(element) for element in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    return str(value) if isinstance(value, CachePath) else value


def from_json(config_class: type[ConfigT], data: Mapping[str, Any], source: str) -> ConfigT:
    """The configuration that `to_json` wrote. Raises InputError, naming `source`, on missing, unknown or bad fields."""
    hints = typing.get_type_hints(config_class)
    known = {item.name: item for item in fields(typing.cast(Any, config_class))}
    required = {name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
    wrong = sorted(set(data) - set(known)) + sorted(required - set(data))
    if wrong:
        raise InputError(
            f"{source}: the configuration does not fit this version of vqgpt (fields: {', '.join(wrong)})",
            "make the file again with this version, or use the version that wrote it",
        )
    try:
        return config_class(**{name: convert(value, hints[name], f"{source}: {name}") for name, value in data.items()})
    except (UsageError, InputError) as error:
        named = error.message if source in error.message else f"{source}: {error.message}"
        raise InputError(named, error.hint) from None


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What differs between two configurations in JSON form, both sides shown; "" if nothing does."""
    new, old = flat(ours), flat(theirs)
    names = [name for name in {**new, **old} if new.get(name) != old.get(name)]
    return "; ".join(f"{name}: {old.get(name)} there, {new.get(name)} here" for name in names)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings, by their innermost name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value) if isinstance(value, Mapping) else {name: value}
    return found


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """A hint that names what is nearest to `name` among `known`, or the first 50 where nothing is near."""
    known = [composed(word) for word in known]
    near = difflib.get_close_matches(composed(name), known, n=1)
    more = f", and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:MOST_NAMES])}{more}"


def composed(name: str) -> str:
    """A name as names are compared: each letter and its marks in one (NFC), which some systems store apart."""
    return unicodedata.normalize("NFC", name)
