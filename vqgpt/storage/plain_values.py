"""What a stranger's file holds beside tensors: containers, numbers and strings, few enough to copy, print and compare.

A container that is referred to in several places counts in each of them, as it does when it is printed or written.
"""

from typing import Any

MOST_VALUES = 2**22
DEEPEST = 64
LARGEST_NUMBER = 128  # bits


def check_plain(content: Any) -> None:
    """Raise ValueError, saying what there is, for more values, or deeper ones, than a checkpoint or a manifest has.

    Also for numbers that do not fit elsewhere, and for strings that cannot be written as UTF-8.
    """
    _measure(content, 0, {})


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values there are, and how many levels. `known` are the containers that were met, by identity."""
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int) and value.bit_length() > LARGEST_NUMBER:
        raise ValueError(f"a number of {value.bit_length()} bits")
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    if id(value) not in known:
        inner, values, levels = depth + 1, 1, 0
        if inner > DEEPEST:
            raise ValueError(f"more than {DEEPEST} values inside one another")
        if isinstance(value, dict):
            for key in value:
                _measure(key, inner, known)
        for element in value.values() if isinstance(value, dict) else value:
            of_element = _measure(element, inner, known)
            values, levels = values + of_element[0], max(levels, of_element[1])
        known[id(value)] = values, levels + 1
    values, levels = known[id(value)]
    if values > MOST_VALUES or depth + levels > DEEPEST:
        raise ValueError(f"more than {MOST_VALUES} values, or {DEEPEST} of them inside one another")
    return values, levels


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text that is no Unicode") from None
