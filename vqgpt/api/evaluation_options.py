"""What `vqgpt evaluate samples` and `vqgpt evaluate tokenizer` take. Must not import torch."""

import math
from dataclasses import dataclass
from pathlib import Path

from vqgpt.api.options import EncoderOptions, SourceOptions
from vqgpt.data.options import ImageOptions
from vqgpt.options.definition import (
    DATA,
    RUN,
    SIZE,
    argument,
    check,
    check_positive,
    check_seed,
    option,
    out_option,
)
from vqgpt.options.paths import CachePath

FEATURES = option(
    "auto",
    "What distances are measured in. inception: the network of FID; lite0: EfficientNet-Lite0, ten times faster; "
    "classifier: one that is trained here on the real training images; or a file with the weights of one of the first "
    "two. auto takes the first of them that is there.",
    group=DATA,
)
SEED_OF_EVALUATION = option(0, "Seed of subsets, directions and resamples.", group=RUN)
RECORD = out_option("The record of evaluations to add this one to", "runs/DATASET/evaluation.json")


@dataclass(frozen=True, kw_only=True)
class EvaluateSamplesConfig:
    """`vqgpt evaluate samples`."""

    samples: str = argument(
        "The images to judge: a token cache, a folder, zip or tar file of pictures, an .npz file (arr_0), or a split "
        "of a dataset (mnist:test). SOURCE:SPLIT names a split of any of them."
    )
    against: str | None = option(
        None,
        "The real images to compare with, named in the same way (default: the held-out images of the dataset that the "
        "token cache records).",
        group=DATA,
    )
    training: str | None = option(
        None,
        "The training images, named in the same way: searched for copies, and used to train the classifier "
        "(default: those of the dataset that the token cache records).",
        group=DATA,
    )
    cache: CachePath | None = option(
        None,
        "The token cache that the GPT was trained on: its tokens are searched for copies "
        "(default: cache/DATASET.zarr, if it is there).",
        group=DATA,
    )
    size: int | None = option(
        None,
        "Prepare pictures and datasets at this many pixels (default: pictures as they are, datasets as the samples).",
        group=DATA,
    )
    features: str = FEATURES
    limit: int = option(10_000, "At most this many images of each set, drawn at random; 0 for all.", group=DATA)
    training_images: int = option(
        2048,
        "Compute features of at most this many training images, to search them for copies; 0 for none.",
        group=DATA,
    )
    by_class: bool | None = option(
        None, "Figures of each class (default: where the reference has all classes of the samples).", group=DATA
    )
    classify: bool = option(
        True,
        "Train a small classifier on the training images, once, and report how many samples are classified as the "
        "class asked for.",
        group=DATA,
    )
    seconds: float | None = option(
        None, "Aim for about this many seconds: fewer images, and faster features where --features is auto.", group=RUN
    )
    seed: int = SEED_OF_EVALUATION
    out: Path | None = RECORD
    sources: SourceOptions

    def __post_init__(self) -> None:
        check_positive(self, "size", "seconds")
        check(self.seconds is None or self.seconds < math.inf, "seconds", self.seconds, "a finite number")
        for name in ("limit", "training_images"):
            value = getattr(self, name)
            check(value == 0 or value > 1, name, value, "0, or 2 or more")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerConfig:
    """`vqgpt evaluate tokenizer`."""

    images: ImageOptions
    size: int | None = SIZE
    vqgan: EncoderOptions
    split: str | None = option(None, "Measure this split alone (default: all).", group=DATA)
    features: str = FEATURES
    limit: int = option(2048, "At most this many images of each split, drawn at random; 0 for all.", group=DATA)
    perturb: float = option(
        0.5,
        "For pFID: the share of codes that are replaced by one of the nearest 2.4 % of the others; 0 for no pFID, "
        "which is faster.",
        group=DATA,
    )
    worst: int = option(16, "How many of the worst reconstructions the picture shows; 0 for no picture.", group=DATA)
    seed: int = SEED_OF_EVALUATION
    out: Path | None = RECORD

    def __post_init__(self) -> None:
        check_positive(self, "size")
        check(self.limit == 0 or self.limit > 1, "limit", self.limit, "0, or 2 or more")
        check(self.worst >= 0, "worst", self.worst, "0 or more")
        check(0 <= self.perturb <= 1, "perturb", self.perturb, "from 0 to 1")
        check_seed(self.seed)
