"""Where the files of the datasets come from, and their digests. Must not import torch."""

from dataclasses import dataclass
from pathlib import PurePosixPath


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
