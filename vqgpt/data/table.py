"""The datasets that vqgpt knows, one row each, and where their files come from. Must not import torch.

A row says what there is, `FILES` what has to be fetched, with digests; `reading` and `listings` parse it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from vqgpt.errors import InputError, UsageError, nearest_hint

DIGIT_NAMES = tuple("0123456789")
MEDMNIST_SIZES = (28, 64, 128, 224)
IMAGENET_TERMS = "research only, not commercial (ImageNet terms)"
LabelKind = Literal["class", "bits"]
Source = Literal["embedded", "download", "by hand", "yours"]


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file that has to be below the data root: where from, and its digest.

    `path` is relative to the data root. `content` is what it is unpacked to; where it is empty, the file is read as it
    is. With `in_place`, either will do: the file is read without unpacking.
    """

    path: str
    url: str
    md5: str
    content: str = ""
    in_place: bool = False


def _files(url: str, *rows: tuple[str, str, str], in_place: bool = False) -> tuple[RemoteFile, ...]:
    """Files of (path, MD5 digest, content). `url` is the folder of all of them, or the page where to ask for them."""
    return tuple(
        RemoteFile(
            path=path,
            url=url + PurePosixPath(path).name if url.endswith("/") else url,
            md5=md5,
            content=content,
            in_place=in_place,
        )
        for path, md5, content in rows
    )


def _idx_files(folder: str, url: str, *md5: str) -> tuple[RemoteFile, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    places = [f"{folder}/raw/{name}-ubyte" for name in names]
    return _files(url, *((f"{place}.gz", digest, place) for place, digest in zip(places, md5, strict=True)))


FILES: dict[str, tuple[RemoteFile, ...]] = {
    "mnist": _idx_files(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashionmnist": _idx_files(
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "cifar10": _files(
        "https://www.cs.toronto.edu/~kriz/",
        ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    ),
    "cifar100": _files(
        "https://www.cs.toronto.edu/~kriz/",
        ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
    ),
    "svhn": _files(
        "http://ufldl.stanford.edu/housenumbers/",
        ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", ""),
        ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", ""),
    ),
    "places365": _files(
        "http://data.csail.mit.edu/places/places365/",
        ("filelist_places365-standard.tar", "35a0585fee1fa656440f3ab298f8479c", "places365_train_standard.txt"),
        ("train_256_places365standard.tar", "53ca1c756c3d1e7809517cc47c5561c5", "data_256_standard"),
        ("val_256.tar", "e27b17d8d44f4af9a78502beb927f808", "val_256"),
        in_place=True,
    ),
    "dtd": _files(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/",
        ("dtd/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd/dtd"),
    ),
    "tinyimagenet": _files(
        "http://cs231n.stanford.edu/",
        ("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"),
        in_place=True,
    ),
    "imagenet": _files(
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
        ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e", "train"),
        ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622", "val"),
        ("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf", "ILSVRC2012_devkit_t12"),
        in_place=True,
    ),
    "celeba": _files(
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        ("celeba/img_align_celeba.zip", "00d2c5bc6d35e252742224ab0c1e8fcb", "celeba/img_align_celeba"),
        ("celeba/list_attr_celeba.txt", "75e246fa4810816ffd6ee81facbd244c", ""),
        ("celeba/list_eval_partition.txt", "d32c9cbf5e040fd4025c592c306e6668", ""),
        in_place=True,
    ),
}


Reader = Literal[
    "digits", "torchvision", "medmnist", "dtd", "places365", "tinyimagenet", "imagenet", "celeba", "folder"
]


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


def held_out_or_none(splits: Iterable[str]) -> str | None:
    """The split on which trainings are judged: `val`, else `test`, else None."""
    return next((name for name in ("val", "test") if name in splits), None)


def held_out_split(splits: Iterable[str], source: str) -> str:
    """The split on which trainings are judged: `val`, else `test`. Raises InputError if there is neither."""
    found = held_out_or_none(splits)
    if found is not None:
        return found
    raise InputError(f"{source} has no held-out split (val or test)", "use a dataset, or a cache of one, that has it")


def nearest_stored_size(size: int) -> int:
    """The resolution of MedMNIST, in pixels, to take for images of `size`; the larger one of two that are as near."""
    return min(MEDMNIST_SIZES, key=lambda stored: (abs(stored - size), -stored))
