"""The datasets that vqgpt knows, one row each. Must not import torch, torchvision or medmnist.

`default_size` is the image side in pixels that the pipeline uses unless told otherwise.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vqgpt.config.options import nearest_hint
from vqgpt.errors import InputError, UsageError

Reader = Literal["digits", "torchvision", "medmnist"]
LabelKind = Literal["class", "bits"]
DIGIT_NAMES = tuple("0123456789")
CC_BY = "CC BY 4.0"
RESEARCH = "for research; see the source"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset. `reader_class` is the class that reads it in torchvision or medmnist."""

    name: str
    reader: Reader
    reader_class: str = ""
    channels: int
    default_size: int = 32
    splits: tuple[str, ...] = ("train", "test")
    label_kind: LabelKind = "class"
    class_names: tuple[str, ...] = ()
    licence: str = RESEARCH
    download_megabytes: int


def _medmnist(
    name: str,
    reader_class: str,
    channels: int,
    megabytes: int,
    licence: str = CC_BY,
    label_kind: LabelKind = "class",
) -> Dataset:
    return Dataset(
        name=name,
        reader="medmnist",
        reader_class=reader_class,
        channels=channels,
        splits=("train", "val", "test"),
        licence=licence,
        download_megabytes=megabytes,
        label_kind=label_kind,
    )


DATASETS = {
    row.name: row
    for row in (
        Dataset(
            name="digits",
            reader="digits",
            channels=1,
            default_size=16,
            class_names=DIGIT_NAMES,
            licence=CC_BY,
            download_megabytes=0,
        ),
        Dataset(
            name="mnist",
            reader="torchvision",
            reader_class="MNIST",
            channels=1,
            class_names=DIGIT_NAMES,
            download_megabytes=12,
        ),
        Dataset(
            name="fashionmnist",
            reader="torchvision",
            reader_class="FashionMNIST",
            channels=1,
            licence="MIT",
            download_megabytes=31,
        ),
        Dataset(
            name="cifar10",
            reader="torchvision",
            reader_class="CIFAR10",
            channels=3,
            download_megabytes=170,
        ),
        Dataset(
            name="cifar100",
            reader="torchvision",
            reader_class="CIFAR100",
            channels=3,
            download_megabytes=169,
        ),
        Dataset(
            name="svhn",
            reader="torchvision",
            reader_class="SVHN",
            channels=3,
            class_names=DIGIT_NAMES,
            licence="non-commercial",
            download_megabytes=246,
        ),
        _medmnist("chestmnist", "ChestMNIST", 1, 83, label_kind="bits"),
        _medmnist("bloodmnist", "BloodMNIST", 3, 36),
        _medmnist("dermamnist", "DermaMNIST", 3, 20, licence="CC BY-NC 4.0"),
        _medmnist("octmnist", "OCTMNIST", 1, 55),
        _medmnist("tissuemnist", "TissueMNIST", 1, 125),
        _medmnist("pneumoniamnist", "PneumoniaMNIST", 1, 4),
        _medmnist("retinamnist", "RetinaMNIST", 3, 3),
    )
}


def find_dataset(name: str) -> Dataset:
    """The row of a dataset. Raises UsageError that names the nearest one if there is none."""
    if name not in DATASETS:
        raise UsageError(f"there is no dataset {name!r}", nearest_hint(name, DATASETS))
    return DATASETS[name]


def held_out_split(splits: Iterable[str], source: str) -> str:
    """The split on which trainings are judged: `val`, else `test`. Raises InputError if there is neither."""
    for name in ("val", "test"):
        if name in splits:
            return name
    raise InputError(f"{source} has no held-out split (val or test)", "use a dataset, or a cache of one, that has it")
