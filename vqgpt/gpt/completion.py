"""What `vqgpt sample` completes: known codes of prompts, which are rows of a token cache or images.

    --prompt cache:train/17, --keep top-half  ->  codes (n, h, w), -1 where one is to be drawn, and a label each

Must not import the VQ-GAN, image data, torchvision or PIL: images are encoded, and masks read, by functions that are
handed in.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, MissingDataError, UsageError, composed
from vqgpt.gpt.labels import labels_of_rows, no_label
from vqgpt.gpt.options import GPTConfig
from vqgpt.options.codec import one_line
from vqgpt.options.paths import CACHE_FOLDER, CachePath, cache_path, expand_home, parse_cache_path
from vqgpt.tokens import Description, TokenCache

CACHE_PREFIX = "cache:"
ROWS = re.compile(r"(\d+)([ -]?rows?)?")

EncodeImage = Callable[[Path, Description], NDArray[np.int64]]  # -> codes (h, w)
ReadMask = Callable[[Path], NDArray[np.bool_]]  # -> pixels (H, W), True where they are known


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


def is_prefix(known: NDArray[np.int64], scan: NDArray[np.int64]) -> bool:
    """True if the known codes (n, h, w) come before all others in the scan order (T,): the GPT sees them all."""
    drawn = known.reshape(len(known), -1)[:, scan] < 0
    return bool((drawn[:, :-1] <= drawn[:, 1:]).all())
