"""Labels of images: as a command names them and as token caches have them -> as `GPT.start` takes them.

A class is its number, -1 for none. Bits (L,) are 1 for yes, -1 for no, 0 for not told. Must not import torch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.config.gpt import GPTConfig
from vqgpt.config.options import nearest_hint
from vqgpt.errors import UsageError
from vqgpt.tokens import Description, SplitTokens


def untold(gpt: GPTConfig) -> Any:
    """The label of an image of which nothing is told."""
    return [0] * gpt.num_classes if gpt.options.condition == "bits" else -1


def told_labels(tokens: SplitTokens, description: Description) -> NDArray[np.int64]:
    """The labels of rows of a cache of this description, (N,) or (N, L)."""
    if description.label_kind != "bits":
        return tokens.labels.astype(np.int64)
    if description.origin == "sampled":  # the labels do not tell a bit that is off from one that is not told
        turn = np.array(description.sampling["classes"], dtype=np.int64)
        return turn[tokens.source_index % len(turn)]
    return tokens.labels.astype(np.int64) * 2 - 1


def bits_turn(wanted: tuple[str, ...], names: tuple[str, ...]) -> list[list[int]]:
    """The bits of the images generated in turn, 1 and -1, or 0 where none is told; `all` is each bit alone in turn.

    Raises UsageError for a name that the GPT does not know.
    """
    turn: list[list[int]] = []
    for item in wanted or ("all",):
        if item == "none":
            turn.append([0] * len(names))
        elif item == "all":
            turn += [[1 if name == one else -1 for name in names] for one in names]
        else:
            told = {class_number(name, names) for name in item.split("+")}
            turn.append([1 if number in told else -1 for number in range(len(names))])
    return turn


def class_turn(wanted: tuple[str, ...], class_names: tuple[str, ...]) -> list[int]:
    """The classes that are generated in turn, as numbers, -1 for none: image i is of class `turn[i % len(turn)]`.

    Raises UsageError for a class that the GPT does not know, with the nearest name.
    """
    if not class_names:
        if wanted not in ((), ("none",)):
            raise UsageError(
                "this GPT was trained without classes", "leave --class out, or train one with --condition class"
            )
        return [-1]
    turn: list[int] = []
    for name in wanted or ("all",):
        if name == "all":
            turn += range(len(class_names))
        elif name == "none":
            turn.append(-1)
        else:
            turn.append(class_number(name, class_names))
    return turn


def class_number(word: str, class_names: tuple[str, ...]) -> int:
    """The class that is called so, or has this number. Raises UsageError, with the nearest name, if there is none."""
    if word in class_names:
        return class_names.index(word)
    if word.isdecimal() and int(word) < len(class_names):
        return int(word)
    raise UsageError(f"there is no class {word!r}", nearest_hint(word, class_names))
