"""Labels of images: as a command names them and as token caches have them -> as `GPT.start` takes them.

A class is its number, -1 for none. Bits (L,) are 1 for yes, -1 for no, 0 for unspecified. Must not import torch.

    --class cat 3 name:3 number:3 number:all     of each word one meaning; a word that has several is refused
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import UsageError, composed, nearest_hint, printable
from vqgpt.gpt.options import GPTConfig
from vqgpt.progress import Notice, Report
from vqgpt.tokens import Description, SplitTokens
from vqgpt.tokens.statistics import names_without, occurring

ALL, NONE = "all", "none"
NAME, NUMBER = "name:", "number:"  # say which of the two a word is
DECIMAL = re.compile(r"0|[1-9][0-9]{0,8}")


def no_label(gpt: GPTConfig) -> Any:
    """The label of an image without one."""
    return [0] * gpt.num_classes if gpt.options.condition == "bits" else -1


def labels_of_rows(tokens: SplitTokens, description: Description) -> NDArray[np.int64]:
    """The labels of rows of a cache of this description, (N,) or (N, L)."""
    if description.label_kind != "bits":
        return tokens.labels.astype(np.int64)
    if (
        description.origin == "sampled"
    ):  # its labels have the same number for a bit that is off and one that is unspecified
        cycle = np.array(description.sampling["classes"], dtype=np.int64)
        return cycle[tokens.source_index % len(cycle)]
    return tokens.labels.astype(np.int64) * 2 - 1


def _as_shown(name: str) -> str:
    """A name as lists and errors show it, with escapes for control characters: it may be given so, or as it is."""
    return printable(composed(name))


def number_word(number: int) -> str:
    """The word that means this class, whatever classes are called; -1 is none."""
    return f"{NUMBER}{NONE if number == -1 else number}"


@dataclass(frozen=True, kw_only=True)
class KnownLabels:
    """What a GPT can be asked for: classes or, `by_bits`, attributes. `seen` are those that its training images had."""

    names: tuple[str, ...]
    by_bits: bool
    seen: frozenset[int]

    @classmethod
    def of(cls, gpt: GPTConfig, names: Sequence[str], seen: Iterable[int] | None) -> "KnownLabels":
        """Those of a GPT that was trained on a cache with these names; `seen` is None where that is not known."""
        known = tuple(map(_as_shown, names)) if gpt.num_classes else ()
        by_bits = gpt.options.condition == "bits"
        return cls(names=known, by_bits=by_bits, seen=frozenset(range(len(known)) if seen is None else seen))

    def cycle(self, words: Sequence[str], report: Report) -> list[Any]:
        """The labels that generated images cycle through, as `GPT.start` takes them.

        `all`, or no word, is every one that was seen; a notice names the others. Raises UsageError for a word that
        has no meaning or several, and for a label that was not seen.
        """
        if not self.names:
            if tuple(words) not in ((), (NONE,), (NUMBER + NONE,)):
                raise UsageError(
                    "this GPT was trained without classes", "leave --class out, or train one with --condition class"
                )
            return [-1]
        words = tuple(map(_as_shown, words)) or (NUMBER + ALL,)
        labels = [label for word in words for label in self._meant_by(word)]
        self.check_seen(labels)
        unseen = names_without(self.seen, self.names)
        if unseen and {ALL, NUMBER + ALL} & set(words):
            report(Notice(text=f"left out, since no image that the GPT was trained on has this label: {unseen}"))
        return labels

    def check_seen(self, labels: Sequence[Any]) -> None:
        """Raise UsageError for a label that no training image had: the GPT could not learn what it means."""
        array: NDArray[Any] = np.array(labels)
        unseen = sorted(occurring(array > 0 if self.by_bits else array) - self.seen)
        if unseen:
            raise UsageError(
                f"no image that the GPT was trained on has the label {self.names[unseen[0]]!r}",
                "give other labels with --class, or train it on images of this one",
            )

    def _meant_by(self, word: str) -> list[Any]:
        """The labels that a word stands for, in order. Raises UsageError if it has no meaning, or several."""
        one_each = {(number,) for number in _numbers_meant_by(word, self.names)}
        meanings = sorted(_sets_meant_by(word, self.names) if self.by_bits else one_each)
        keyword = word.removeprefix(NUMBER)
        is_keyword = keyword in (ALL, NONE)
        if len(meanings) + is_keyword > 1:
            said = [f"{self._words(meaning, NUMBER)} for {self._words(meaning)!r}" for meaning in meanings]
            said += [f"{NUMBER}{keyword} for {keyword} of them"] if is_keyword else []
            raise UsageError(f"--class {word} has several meanings", f"say which: {', '.join(said)}")
        if keyword == ALL and self.seen:
            return [self._label((number,)) for number in sorted(self.seen)]
        if is_keyword:
            return [[0] * len(self.names) if self.by_bits else -1]
        if meanings:
            return [self._label(meanings[0])]
        parts = word.split("+") if self.by_bits else [word]
        unknown = next(part for part in parts if not _numbers_meant_by(part, self.names))
        if unknown.startswith(NUMBER):
            raise UsageError(f"there is no class {unknown!r}", f"give a number of 0 to {len(self.names) - 1}")
        unknown = unknown.removeprefix(NAME)
        raise UsageError(f"there is no class {unknown!r}", nearest_hint(unknown, self.names))

    def _words(self, meaning: tuple[int, ...], prefix: str = "") -> str:
        return "+".join(f"{prefix}{number}" if prefix else self.names[number] for number in meaning)

    def _label(self, on: tuple[int, ...]) -> Any:
        return [1 if number in on else -1 for number in range(len(self.names))] if self.by_bits else on[0]


def _numbers_meant_by(word: str, names: Sequence[str]) -> set[int]:
    """The numbers of all classes that a word can mean, by name or by number.

    A number means a class of another number too, if that has it at an end of its name, as in folders 001, 002, 003.
    """
    if word.startswith(NAME):
        return {number for number, name in enumerate(names) if name == word.removeprefix(NAME)}
    digits = word.removeprefix(NUMBER)
    by_number = {int(digits)} & set(range(len(names))) if DECIMAL.fullmatch(digits) else set()
    if word.startswith(NUMBER):
        return by_number
    by_name = {number for number, name in enumerate(names) if name == word}
    if by_number and not by_name:
        by_name = {number for number, name in enumerate(names) if int(word) in _numbers_at_the_ends(name)}
    return by_name | by_number


def _numbers_at_the_ends(name: str) -> set[int]:
    return {int(digits) for digits in re.findall(r"^\d{1,9}(?!\d)|(?<!\d)\d{1,9}$", name)}


def _sets_meant_by(word: str, names: Sequence[str]) -> set[tuple[int, ...]]:
    """All that attributes with + between them can mean, each as its numbers in order; a name may have a + in it."""
    meanings: set[tuple[int, ...]] = {(number,) for number in _numbers_meant_by(word, names)}
    if meanings and word.startswith(NAME):
        return meanings
    for place in (place for place, letter in enumerate(word) if letter == "+"):
        for first in _numbers_meant_by(word[:place], names):
            meanings |= {tuple(sorted({first, *rest})) for rest in _sets_meant_by(word[place + 1 :], names)}
    return meanings
