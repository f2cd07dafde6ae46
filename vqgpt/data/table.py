"""The datasets that vqgpt knows, one row each. Must not import torch, torchvision or medmnist.

A row says what there is; `remote_files` has its files, `reading` and `listings` parse them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vqgpt.errors import InputError, UsageError, nearest_hint

Reader = Literal[
    "digits", "torchvision", "medmnist", "dtd", "places365", "tinyimagenet", "imagenet", "celeba", "folder"
]
LabelKind = Literal["class", "bits"]
Source = Literal["embedded", "download", "by hand", "yours"]

DIGIT_NAMES = tuple("0123456789")
MEDMNIST_SIZES = (28, 64, 128, 224)
IMAGENET_TERMS = "research only, not commercial (ImageNet terms)"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset.

    `default_size` is the image side in pixels unless an option says otherwise; `rows` the images of each split, as
    published; `reader_class` the class in torchvision; `hflip_keeps_meaning` is False where a mirrored image is of
    another class, or of the other side of a body; `note` says what its users should know.
    """

    name: str
    reader: Reader
    reader_class: str = ""
    source: Source = "download"
    channels: int = 3
    default_size: int = 32
    rows: Mapping[str, int] = field(default_factory=dict)
    num_classes: int = 0
    label_kind: LabelKind = "class"
    class_names: tuple[str, ...] = ()
    licence: str
    commercial: bool = True
    megabytes: int = 0
    hflip_keeps_meaning: bool = False
    note: str = ""

    @property
    def default_views(self) -> tuple[str, ...]:
        """The views that are encoded unless an option names others."""
        return ("identity", "hflip") if self.hflip_keeps_meaning else ("identity",)


def _medmnist(
    name: str,
    channels: int,
    num_classes: int,
    rows: tuple[int, int, int],
    megabytes: int,
    hflip_keeps_meaning: bool = False,
    label_kind: LabelKind = "class",
    licence: str = "CC BY 4.0",
    note: str = "",
) -> Dataset:
    return Dataset(
        name=name,
        reader="medmnist",
        channels=channels,
        rows=dict(zip(("train", "val", "test"), rows, strict=True)),
        num_classes=num_classes,
        label_kind=label_kind,
        licence=licence,
        commercial=licence == "CC BY 4.0",
        megabytes=megabytes,
        hflip_keeps_meaning=hflip_keeps_meaning,
        note=note,
    )


_ROWS = (
    Dataset(
        name="digits",
        reader="digits",
        source="embedded",
        channels=1,
        default_size=16,
        rows={"train": 1433, "test": 364},
        num_classes=10,
        class_names=DIGIT_NAMES,
        licence="CC BY 4.0",
        note="comes with scikit-learn; every fifth image of a class is the test split",
    ),
    Dataset(
        name="mnist",
        reader="torchvision",
        reader_class="MNIST",
        channels=1,
        rows={"train": 60000, "test": 10000},
        num_classes=10,
        class_names=DIGIT_NAMES,
        licence="CC BY-SA 3.0",
        megabytes=12,
    ),
    Dataset(
        name="fashionmnist",
        reader="torchvision",
        reader_class="FashionMNIST",
        channels=1,
        rows={"train": 60000, "test": 10000},
        num_classes=10,
        licence="MIT",
        megabytes=31,
        hflip_keeps_meaning=True,
    ),
    Dataset(
        name="cifar10",
        reader="torchvision",
        reader_class="CIFAR10",
        rows={"train": 50000, "test": 10000},
        num_classes=10,
        licence="none stated; cite the source",
        megabytes=170,
        hflip_keeps_meaning=True,
    ),
    Dataset(
        name="cifar100",
        reader="torchvision",
        reader_class="CIFAR100",
        rows={"train": 50000, "test": 10000},
        num_classes=100,
        licence="none stated; cite the source",
        megabytes=169,
        hflip_keeps_meaning=True,
        note="the 100 fine classes",
    ),
    Dataset(
        name="svhn",
        reader="torchvision",
        reader_class="SVHN",
        rows={"train": 73257, "test": 26032},
        num_classes=10,
        class_names=DIGIT_NAMES,
        licence="not for commercial use",
        commercial=False,
        megabytes=246,
        note="without the 'extra' images",
    ),
    Dataset(
        name="places365",
        reader="places365",
        default_size=128,
        rows={"train": 1803460, "val": 36500},
        num_classes=365,
        licence="research and education only, not commercial",
        commercial=False,
        megabytes=26200,
        hflip_keeps_meaning=True,
        note="the images of 256 pixels; its test split has no labels and is not read",
    ),
    Dataset(
        name="dtd",
        reader="dtd",
        default_size=128,
        rows={"train": 1880, "val": 1880, "test": 1880},
        num_classes=47,
        licence="research only",
        commercial=False,
        megabytes=597,
        hflip_keeps_meaning=True,
        note="the first of its ten partitions",
    ),
    Dataset(
        name="tinyimagenet",
        reader="tinyimagenet",
        default_size=64,
        rows={"train": 100000, "val": 10000},
        num_classes=200,
        licence=IMAGENET_TERMS,
        commercial=False,
        megabytes=248,
        hflip_keeps_meaning=True,
        note="its test split has no labels and is not read",
    ),
    Dataset(
        name="imagenet",
        reader="imagenet",
        source="by hand",
        default_size=128,
        rows={"train": 1281167, "val": 50000},
        num_classes=1000,
        licence=IMAGENET_TERMS,
        commercial=False,
        megabytes=155000,
        hflip_keeps_meaning=True,
        note="the archives with the devkit beside them, or class folders train/ and val/",
    ),
    Dataset(
        name="celeba",
        reader="celeba",
        source="by hand",
        default_size=256,
        rows={"train": 162770, "val": 19867, "test": 19962},
        num_classes=40,
        label_kind="bits",
        licence="research only, not commercial",
        commercial=False,
        megabytes=1470,
        hflip_keeps_meaning=True,
        note="the aligned images, 178 x 218; folders of CelebA-HQ are --dataset folder",
    ),
    _medmnist("chestmnist", 1, 14, (78468, 11219, 22433), 83, label_kind="bits"),
    _medmnist("bloodmnist", 3, 8, (11959, 1712, 3421), 36, hflip_keeps_meaning=True),
    _medmnist("dermamnist", 3, 7, (7007, 1003, 2005), 20, hflip_keeps_meaning=True, licence="CC BY-NC 4.0"),
    _medmnist("octmnist", 1, 4, (97477, 10832, 1000), 55),
    _medmnist("tissuemnist", 1, 8, (165466, 23640, 47280), 125, hflip_keeps_meaning=True),
    _medmnist("pneumoniamnist", 1, 2, (4708, 524, 624), 4),
    _medmnist("retinamnist", 3, 5, (1080, 120, 400), 3, note="its classes are ordered"),
    Dataset(
        name="folder",
        reader="folder",
        source="yours",
        default_size=64,
        licence="yours",
        note="--data-root: class folders or one flat folder, with train/ and val/ or without, or a zip of them",
    ),
)
DATASETS = {row.name: row for row in _ROWS}


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


def nearest_stored_size(size: int) -> int:
    """The resolution of MedMNIST, in pixels, to take for images of `size`; the larger one of two that are as near."""
    return min(MEDMNIST_SIZES, key=lambda stored: (abs(stored - size), -stored))
