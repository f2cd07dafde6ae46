"""Frozen dataclasses as JSON and back, as manifests and checkpoints hold what they say of themselves; and on one line.

Values are plain Python (int, float, bool, str, paths), tuples, dicts and other such dataclasses. One with arrays
says `__repr__ = one_line`, which shows their types and shapes. Must not import torch or numpy.
"""

import functools
import operator
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from vqgpt.errors import InputError, UsageError, nearest_hint
from vqgpt.options.paths import CachePath, parse_cache_path

LONGEST_VALUE = 200  # characters of a value in a message

DataT = TypeVar("DataT")


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts and lists that JSON and `torch.save` can hold. Inverse of `from_json`.

    A field by which two configurations are not compared (`compare=False`) is left out.
    """
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config) if item.compare}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, (tuple, list)):
        return [_plain(element) for element in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    return str(value) if isinstance(value, CachePath) else value


def from_json(config_class: type[DataT], data: Mapping[str, Any], source: str) -> DataT:
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


def convert(value: Any, annotation: Any, name: str) -> Any:
    """Check `value` (from a flag, a TOML or a JSON file) against a field's type and give it that type.

    Raises UsageError that names the field, what it takes and what it was given.
    """
    if annotation == CachePath:
        if isinstance(value, str):
            return parse_cache_path(value)
        annotation = Path
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else convert(value, without_none(annotation), name)
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
            return tuple(convert(element, kind, name) for element, kind in zip(value, element_types, strict=True))
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


def without_none(annotation: Any) -> Any:
    """A type without its None, if it has one: int | None -> int."""
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    return functools.reduce(operator.or_, (arg for arg in typing.get_args(annotation) if arg is not type(None)))


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        args = typing.get_args(annotation)
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"a list of {count}{args[0].__name__}"
    return f"one {getattr(annotation, '__name__', annotation)}"


class Brief(reprlib.Repr):
    """An array by its type and shape, a network by its size, the first few of many elements."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr1(self, x: Any, level: int) -> str:
        """What `reprlib` calls for each value."""
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return f"{x.dtype} {tuple(x.shape)}"
        if hasattr(x, "parameters"):
            return f"{type(x).__name__} of {num_parameters(x):,} parameters"
        return super().repr1(x, level).replace("\n", " ")


def num_parameters(network: Any) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def one_line(self: Any) -> str:
    """The representation of a dataclass."""
    values = (f"{item.name}={Brief().repr(getattr(self, item.name))}" for item in fields(self))
    return f"{type(self).__name__}({', '.join(values)})"
