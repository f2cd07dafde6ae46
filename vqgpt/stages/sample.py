"""Stage two, `vqgpt sample`: a GPT checkpoint -> a token cache of origin `sampled`.

Must not import the VQ-GAN, image data, torchvision or PIL: rendering is `stages.render`, and is called by the CLI.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.checkpoint import weights_sha256
from vqgpt.config.commands import SampleConfig, samples_path
from vqgpt.config.options import from_json, nearest_hint, to_json
from vqgpt.errors import UsageError
from vqgpt.gpt.checkpoint import LoadedGPT, load_gpt
from vqgpt.gpt.sampling import sample_codes
from vqgpt.progress import Report
from vqgpt.runtime import resolve_precision, select_device
from vqgpt.stages.find import check_dataset, find_gpt
from vqgpt.stages.shards import fill_cache
from vqgpt.tokens import Description, ShardRows, Split
from vqgpt.tokens.layout import code_dtype, default_shard_rows

SPLIT = "samples"


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """What will be sampled: the GPT, the class of each image (N,) int64 (-1 for none), and the cache to write."""

    gpt: LoadedGPT
    checkpoint: Path
    classes: NDArray[np.int64]
    description: Description
    cache: Path

    @property
    def summary(self) -> dict[str, Any]:
        """The plan as a result to show."""
        return {
            "cache": self.cache,
            "dataset": self.description.dataset,
            "images": len(self.classes),
            "grid": self.description.grid,
            "checkpoint": self.checkpoint,
        }


def plan(config: SampleConfig) -> SamplePlan:
    """Load the GPT and settle what to sample. Raises UsageError for classes that the GPT does not know."""
    device = select_device(config.run.device)
    checkpoint = find_gpt(config.checkpoint_gpt, config.dataset)
    gpt = load_gpt(checkpoint, "train one with: vqgpt train", device)
    trained_on = from_json(Description, gpt.cache_description, str(checkpoint))
    check_dataset(config.dataset, trained_on.dataset, checkpoint)
    known_classes = trained_on.class_names if gpt.model.config.num_classes else ()
    turn = class_turn(config.classes, known_classes)
    num_samples = config.sampling.num_samples
    row_bytes = gpt.model.config.block_size * np.dtype(code_dtype(trained_on.codebook_size)).itemsize
    description = replace(
        trained_on,
        origin="sampled",
        label_kind="class" if known_classes else "none",
        source_sha256=weights_sha256(gpt.model, to_json(gpt.model.config)),
        splits=(Split(name=SPLIT, rows=num_samples),),
        limit=None,
        views=("identity",),
        precision=resolve_precision(config.run.precision, device),
        sampling={**to_json(config.sampling), "classes": turn, "seed": config.run.seed},
        shard_rows=default_shard_rows(row_bytes),
    )
    return SamplePlan(
        gpt=gpt,
        checkpoint=checkpoint,
        classes=np.array(turn)[np.arange(num_samples) % len(turn)],
        description=description,
        cache=config.out or samples_path(trained_on.dataset),
    )


def run(plan: SamplePlan, config: SampleConfig, overwrite: bool, report: Report) -> dict[str, Any]:
    """Sample as planned; the result names the cache."""

    def codes_of(shard: ShardRows) -> Iterator[NDArray[np.int64]]:
        classes = torch.from_numpy(plan.classes[shard.start : shard.stop])
        precision = plan.description.precision
        for codes in sample_codes(plan.gpt.model, classes, shard.start, config.run.seed, config.sampling, precision):
            yield codes.numpy()[:, None]

    def labels_of(shard: ShardRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return plan.classes[shard.start : shard.stop], np.arange(shard.start, shard.stop)

    codebook = plan.gpt.codebook.numpy()
    manifest = fill_cache(plan.cache, plan.description, codebook, overwrite, "sample", codes_of, labels_of, report)
    return {**plan.summary, "digest": manifest.digest}


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
        elif name in class_names:
            turn.append(class_names.index(name))
        elif name.isdecimal() and int(name) < len(class_names):
            turn.append(int(name))
        else:
            raise UsageError(f"there is no class {name!r}", nearest_hint(name, class_names))
    return turn
