"""A trained pair, the GPT and the VQ-GAN of its tokens, and what can be asked of it, many at a time.

    Draw, Decode, Encode or Score tasks of one kind  --Pair.do-->  a result for each

Images are (n, C, H, W) uint8, codes (n, h, w) int64. Knows nothing of HTTP.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.api.library import Generator
from vqgpt.api.run_files import Run
from vqgpt.api.tokenize import Tokenizer
from vqgpt.errors import MissingDataError, VQGPTError
from vqgpt.evaluation.memorisation import nearest_rows
from vqgpt.gpt.generate import Asked, Sampler
from vqgpt.gpt.labels import labels_of_rows
from vqgpt.gpt.options import SamplingOptions
from vqgpt.gpt.sampling import is_guided
from vqgpt.options.codec import one_line
from vqgpt.pictures.sheet import to_displayable
from vqgpt.progress import silent
from vqgpt.runtime.device import resolve_precision
from vqgpt.tokens import TokenCache

Codes = NDArray[np.int64]
MOST_COLOURED = 4096  # codes; of more, no colours are made


@dataclass(kw_only=True, eq=False)
class Draw:
    """Images to draw. While they are drawn, `canvas` (n, h, w) has their codes, -1 where there is none yet."""

    asked: Asked
    canvas: Codes

    __repr__ = one_line

    @classmethod
    def of(cls, asked: Asked, grid: tuple[int, int]) -> "Draw":
        """These images, with what is known of them on the canvas."""
        empty = np.full((len(asked.labels), *grid), -1)
        return cls(asked=asked, canvas=empty if asked.known is None else asked.known.numpy().copy())


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images that were drawn, their codes, and minus the log-probability of each, in bits per token (n,)."""

    codes: Codes
    images: NDArray[np.uint8]
    bits_per_token: NDArray[np.float64]

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Codes -> images."""

    codes: Codes

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Images, prepared as those of the training -> codes."""

    images: NDArray[np.uint8]

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Score:
    """Codes with their labels -> bits of each token (n, h, w)."""

    codes: Codes
    labels: torch.Tensor

    __repr__ = one_line


Task = Draw | Decode | Encode | Score


def kind_of(task: Task) -> tuple[str, bool, bool]:
    """What must be equal for tasks to be done together: of images to draw, whether they are guided, and completed."""
    asked = task.asked if isinstance(task, Draw) else None
    guided, completes = asked is not None and is_guided(asked.settings), asked is not None and asked.known is not None
    return type(task).__name__, guided, completes


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What `vqgpt serve` has loaded. `do` is called from one thread at a time; all else only reads."""

    name: str
    generator: Generator
    tokenizer: Tokenizer
    cache: TokenCache
    defaults: SamplingOptions
    precision: str
    samplers: dict[tuple[str, bool, bool], Sampler] = field(default_factory=dict)

    __repr__ = one_line

    @classmethod
    def open(cls, run: Run, precision: str) -> "Pair":
        """The pair of a run. Raises MissingDataError if something lacks, InputError if they do not go together."""
        folder = run.folder
        if not (folder / "gpt.pt").exists():
            hint = f"make one with: vqgpt run --recipe {folder.name or 'digits'}"
            raise MissingDataError(f"there is no GPT in {folder}: {folder / 'gpt.pt'} does not exist", hint)
        gpt = run.gpt_of_cache
        description = gpt.description or run.cache.description
        return cls(
            name=folder.name or str(folder),
            generator=Generator(path=Path(folder.name), gpt=replace(gpt, description=description), device=run.device),
            tokenizer=Tokenizer(model=run.vqgan, device=run.device),
            cache=run.cache,
            defaults=drawn_with(run),
            precision=resolve_precision(precision, run.device),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """The grid of codes of an image."""
        return self.generator.grid

    @property
    def sees_all(self) -> bool:
        """Whether a completion sees all that is known, wherever it lies."""
        return self.generator.gpt.model.config.options.any_order

    def facts(self) -> dict[str, Any]:
        """What a page has to know."""
        gpt, description = self.generator.gpt.model.config, self.cache.description
        unlabelled = not gpt.num_classes or self.generator.gpt.label_dropout != 0
        return {
            "name": self.name,
            "dataset": description.dataset,
            "condition": gpt.options.condition,
            "classes": list(self.generator.class_names),
            "classes_seen": sorted(self.generator.gpt.labels_seen or range(len(self.generator.class_names))),
            "knows_unlabelled": unlabelled,
            "can_be_guided": bool(gpt.num_classes) and unlabelled,
            "order": gpt.options.order,
            "any_order": self.sees_all,
            "grid": list(self.grid),
            "codebook_size": gpt.codebook_size,
            "image_size": list(description.image_size),
            "image_channels": description.image_channels,
            "rows": {name: self.cache.rows(name) for name in self.cache.split_names},
            "defaults": {
                name: getattr(self.defaults, name)
                for name in ("temperature", "top_k", "top_p", "min_p", "cfg_scale", "cfg_schedule", "cfg_power")
            },
        }

    def do(self, tasks: Sequence[Task], ended: threading.Event) -> Sequence[Any]:
        """The results of tasks of one kind: Drawn, images, codes, or bits of tokens."""
        first = tasks[0]
        match first:
            case Draw():
                return self._draw([task for task in tasks if isinstance(task, Draw)], ended)
            case Decode():
                codes = [task.codes for task in tasks if isinstance(task, Decode)]
                return apart(self.decoded(np.concatenate(codes)), codes)
            case Encode():
                images = [task.images for task in tasks if isinstance(task, Encode)]
                return apart(self.tokenizer.encode(np.concatenate(images)), images)
            case Score():
                scored = [task for task in tasks if isinstance(task, Score)]
                codes, labels = [task.codes for task in scored], torch.cat([task.labels for task in scored])
                return apart(self.generator.score_tokens(np.concatenate(codes), labels, self.precision), codes)
            case _:
                assert_never(first)

    def _draw(self, tasks: Sequence[Draw], ended: threading.Event) -> Sequence[Drawn]:
        model, kind = self.generator.gpt.model, kind_of(tasks[0])
        if kind not in self.samplers:
            if self.generator.device.type != "cpu":  # each has keys and values of its own on the device
                self.samplers.clear()
            self.samplers[kind] = Sampler(model, self.precision, guided=kind[1], completes=kind[2])
        canvas = torch.from_numpy(np.concatenate([task.canvas for task in tasks])).flatten(1)
        sizes = [task.canvas for task in tasks]
        for task, part in zip(tasks, apart(canvas.numpy().reshape(-1, *self.grid), sizes), strict=True):
            task.canvas = part
        passes = list(self.samplers[kind].codes(together([task.asked for task in tasks]), canvas, ended))
        if ended.is_set():
            raise CancelledError
        codes = torch.cat([codes for codes, _ in passes]).numpy()
        bits = -torch.cat([nats for _, nats in passes]).double().numpy() / np.log(2) / model.config.block_size
        parts = zip(apart(codes, sizes), apart(self.decoded(codes), sizes), apart(bits, sizes), strict=True)
        return [Drawn(codes=own, images=images, bits_per_token=rate) for own, images, rate in parts]

    def decoded(self, codes: Codes) -> NDArray[np.uint8]:
        """Codes -> images to be shown."""
        images = self.tokenizer.decode(codes)
        if images.shape[1] <= 3:
            return images
        return np.concatenate([to_displayable(image[None], 0) for image in images])  # each by itself, whoever else asks

    def nearest_row(self, codes: Codes) -> tuple[int, int, int]:
        """Codes (1, h, w) -> the training row, and its view, that differ in the fewest tokens, and in how many."""
        found = nearest_rows(codes, self.cache, self.training_split, "an image", silent)
        return int(found.rows[0]), int(found.views[0]), int(found.distances[0])

    @property
    def training_split(self) -> str:
        """The split that the GPT was trained on."""
        return "train" if "train" in self.cache.split_names else self.cache.split_names[0]

    def row(self, split: str, number: int, view: int) -> tuple[Codes, list[str]]:
        """The codes (1, h, w) of a view of a row, and the classes of the row. Raises MissingDataError without it."""
        if split not in self.cache.split_names or not 0 <= number < self.cache.rows(split):
            rows = ", ".join(f"{self.cache.rows(name):,} in {name}" for name in self.cache.split_names)
            raise MissingDataError(
                f"there is no row {number} in split {split!r}", f"rows count from 0; there are {rows}"
            )
        shard, inside = divmod(number, self.cache.description.shard_rows)
        tokens = self.cache.read_split(split, [shard])
        label, names = labels_of_rows(tokens, self.cache.description)[inside], self.cache.description.class_names
        on = np.flatnonzero(label > 0) if label.ndim else [label] if label >= 0 else []
        return tokens.codes[inside : inside + 1, view].astype(np.int64), [names[each] for each in on]

    @cached_property
    def colours(self) -> NDArray[np.uint8]:
        """The mean colour (K, C) of what each code stands for, among codes of its own kind; (0, C) of very many."""
        size = self.tokenizer.model.config.codebook_size
        if size > MOST_COLOURED:
            return np.zeros((0, 3), np.uint8)
        codes = np.broadcast_to(np.arange(size)[:, None, None], (size, 2, 2))
        return self.decoded(np.ascontiguousarray(codes)).mean(axis=(2, 3)).round().astype(np.uint8)


def drawn_with(run: Run) -> SamplingOptions:
    """The settings that the samples of a run were drawn with; the defaults where there are none."""
    try:
        recorded = run.samples.description.sampling
        names = ("temperature", "top_k", "top_p", "min_p", "cfg_scale", "cfg_schedule", "cfg_power")
        return SamplingOptions(**{name: recorded[name] for name in names if name in recorded})
    except (VQGPTError, TypeError):
        return SamplingOptions()


def together(asked: Sequence[Asked]) -> Asked:
    """The images of all, one after the other."""
    known = [each.known for each in asked if each.known is not None]
    return Asked(
        labels=torch.cat([each.labels for each in asked]),
        seeds=[seed for each in asked for seed in each.seeds],
        numbers=[number for each in asked for number in each.numbers],
        settings=[settings for each in asked for settings in each.settings],
        known=torch.cat(known) if known else None,
    )


def apart(whole: NDArray[Any], sizes: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Rows (N, ...) -> those of each part, which has as many rows as one of `sizes`."""
    return np.split(whole, np.cumsum([len(each) for each in sizes])[:-1])
