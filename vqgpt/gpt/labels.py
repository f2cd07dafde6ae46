"""What a user asks a GPT for: labels, as a command names them -> as `GPT.start` takes them; and prompts to complete.

A class is its number, -1 for none. Bits (L,) are 1 for yes, -1 for no, 0 for unspecified. A prompt is a row of a token
cache or an image, of which some codes (h, w) are known, -1 where one is to be drawn. Must not import torch; images
are encoded, and masks read, by functions that are handed in.

    --class cat 3 name:3 number:3 number:all     of each word one meaning; a word that has several is refused
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, MissingDataError, UsageError, composed, nearest_hint, printable
from vqgpt.gpt.options import GPTConfig
from vqgpt.options.codec import one_line
from vqgpt.options.paths import CACHE_FOLDER, CachePath, cache_path, expand_home, parse_cache_path
from vqgpt.progress import Notice, Report
from vqgpt.tokens import Description, SplitTokens, TokenCache
from vqgpt.tokens.arrays import names_without, occurring

ALL, NONE = "all", "none"
NAME, NUMBER = "name:", "number:"  # say which of the two a word is
DECIMAL = re.compile(r"0|[1-9][0-9]{0,8}")
CACHE_PREFIX = "cache:"
ROWS = re.compile(r"(\d+)([ -]?rows?)?")
EncodeImage = Callable[[Path, Description], NDArray[np.int64]]  # -> codes (h, w)
ReadMask = Callable[[Path], NDArray[np.bool_]]  # -> pixels (H, W), True where they are known


def no_label(gpt: GPTConfig) -> Any:
    """The label of an image without one."""
    return [0] * gpt.num_classes if gpt.options.condition == "bits" else -1


def labels_of_rows(tokens: SplitTokens, description: Description) -> NDArray[np.int64]:
    """The labels of rows of a cache of this description, (N,) or (N, L)."""
    if description.label_kind != "bits":
        return tokens.labels.astype(np.int64)
    if description.origin == "sampled":  # whose labels cannot mark a bit as unspecified
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


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """`known` (n, h, w) int64, -1 where a code is to be drawn; a label each, as `GPT.start` takes them."""

    known: NDArray[np.int64]
    labels: list[Any]

    __repr__ = one_line


def read_prompts(
    words: Sequence[str],
    keep: str | None,
    cache: CachePath | None,
    gpt: GPTConfig,
    description: Description,
    encode: EncodeImage,
    read_mask: ReadMask,
) -> Prompts | None:
    """The prompts that --prompt and --keep ask for, of a GPT that was trained on a cache of this description, or None.

    `cache` is meant where a prompt names none; the default is that of the dataset.
    Raises UsageError for one that is not understood, InputError if it does not fit the GPT, and what the two functions
    raise.
    """
    if not words:
        return None
    mask = keep_mask(expand_home(keep or "top-half", "keep"), description, read_mask)
    codes, labels = [], []
    for prompt in words:
        if prompt.startswith(CACHE_PREFIX):
            of_row, label = cache_row(prompt, cache, gpt, description)
        else:
            of_row, label = encode(Path(expand_home(prompt, "prompt")), description), no_label(gpt)
        codes.append(np.where(mask, of_row, -1))
        labels.append(label)
    return Prompts(known=np.stack(codes), labels=labels)


def cache_row(
    prompt: str, cache_of_all: CachePath | None, gpt: GPTConfig, description: Description
) -> tuple[NDArray[np.int64], Any]:
    """Codes (h, w) of `cache:SPLIT/ROW` or `cache:PATH:SPLIT/ROW`, in the first view, and the label of the row.

    A cache whose classes are not the GPT's says nothing of its label.
    """
    path_text, _, place = prompt.removeprefix(CACHE_PREFIX).rpartition(":")
    split, _, row_text = place.rpartition("/")
    if not split or not row_text.isdecimal():
        raise UsageError(
            f"--prompt {prompt} names no row of a token cache", "write it as cache:train/17 or cache:PATH.zarr:train/17"
        )
    given = parse_cache_path(expand_home(path_text, "prompt")) if path_text else cache_of_all
    path = given or cache_path(description.dataset)
    in_cache_folder = CACHE_FOLDER / f"{path_text}.zarr"
    if isinstance(path, Path) and not path.exists() and in_cache_folder.exists():
        path = in_cache_folder
    cache, row = TokenCache(path), int(row_text)
    check_same_tokens(cache, description)
    if row >= cache.rows(split):
        raise UsageError(f"{path} has {cache.rows(split)} rows in {split}, so no row {row}", "rows count from 0")
    shard, inside = divmod(row, cache.description.shard_rows)
    tokens = cache.read_split(split, [shard])
    of_its_kind = cache.description.label_kind == gpt.options.condition != "none"
    if of_its_kind and [*map(composed, cache.description.class_names)] == [*map(composed, description.class_names)]:
        label = labels_of_rows(tokens, cache.description)[inside].tolist()
    else:
        label = no_label(gpt)
    return tokens.codes[inside, 0].astype(np.int64), label


def check_same_tokens(cache: TokenCache, description: Description) -> None:
    """Raise InputError if a cache has other tokens than the GPT was trained on."""
    theirs, ours = cache.description, description
    if theirs.tokenizer_sha256 != ours.tokenizer_sha256:
        raise InputError(
            f"{cache.path} was made with another VQ-GAN ({theirs.tokenizer_sha256[:12]}) than the tokens of the GPT "
            f"({ours.tokenizer_sha256[:12]})",
            "give a cache of the VQ-GAN that the GPT was trained with",
        )
    if (theirs.grid, theirs.codebook_size) != (ours.grid, ours.codebook_size):
        raise InputError(
            f"{cache.path} has {theirs.grid[0]} x {theirs.grid[1]} of {theirs.codebook_size} codes per image, the GPT "
            f"{ours.grid[0]} x {ours.grid[1]} of {ours.codebook_size}",
            "give a cache of images of the same size",
        )


def keep_mask(keep: str, description: Description, read_mask: ReadMask) -> NDArray[np.bool_]:
    """(h, w), True where a code is known.

    Raises UsageError if that is none or all, MissingDataError if there is no such mask, InputError for an unfit one.
    """
    height, width = description.grid
    if height * width == 1:
        raise UsageError("an image of one code has no part to keep", "leave --prompt out")
    mask = np.zeros((height, width), np.bool_)
    rows = ROWS.fullmatch(keep)
    if keep == "top-half":
        mask[: height // 2] = True
    elif keep == "left-half":
        mask[:, : width // 2] = True
    elif rows:
        mask[: int(rows[1])] = True
    elif not Path(keep).exists():
        raise MissingDataError(
            f"--keep {keep} is no part of an image, and there is no such file",
            "keep top-half, left-half, a number of rows, or what is white in an image file",
        )
    else:
        mask = codes_of_pixels(read_mask(Path(keep)), keep, description)
    if mask.all() or not mask.any():
        share = "all" if mask.any() else "none"
        raise UsageError(f"--keep {keep} keeps {share} of the {height} x {width} codes", "keep some, and not all")
    return mask


def codes_of_pixels(pixels: NDArray[np.bool_], name: str, description: Description) -> NDArray[np.bool_]:
    """A mask of the grid's size as it is; of the image's, a code is known if all its pixels are. Raises InputError."""
    (height, width), (tall, wide) = description.grid, description.image_size
    if pixels.shape == description.grid:
        return pixels
    if pixels.shape == description.image_size and tall % height == 0 and wide % width == 0:
        return np.asarray(pixels.reshape(height, tall // height, width, wide // width).all(axis=(1, 3)))
    raise InputError(
        f"the mask {name} has {pixels.shape[1]} x {pixels.shape[0]} pixels",
        f"give one of {width} x {height}, a pixel per code, or of {wide} x {tall}, the size of the images",
    )


def is_prefix(known: NDArray[np.int64], cells: NDArray[np.int64]) -> bool:
    """True if the known codes (n, h, w) come before all others in the order of `cells` (T,): the GPT sees them all."""
    drawn = known.reshape(len(known), -1)[:, cells] < 0
    return bool((drawn[:, :-1] <= drawn[:, 1:]).all())
