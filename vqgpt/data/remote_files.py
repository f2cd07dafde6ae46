"""Where the files of the datasets come from, and their digests. Must not import torch."""

from dataclasses import dataclass


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


def _idx_files(folder: str, url: str, *md5: str) -> tuple[RemoteFile, ...]:
    names = [
        f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    ]
    return tuple(
        RemoteFile(path=f"{folder}/raw/{name}.gz", url=f"{url}{name}.gz", md5=digest, content=f"{folder}/raw/{name}")
        for name, digest in zip(names, md5, strict=True)
    )


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
    "cifar10": (
        RemoteFile(
            path="cifar-10-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            content="cifar-10-batches-py",
        ),
    ),
    "cifar100": (
        RemoteFile(
            path="cifar-100-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            content="cifar-100-python",
        ),
    ),
    "svhn": (
        RemoteFile(
            path="train_32x32.mat",
            url="http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            md5="e26dedcc434d2e4c54c9b2d4a06d8373",
        ),
        RemoteFile(
            path="test_32x32.mat",
            url="http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            md5="eb5a983be6a315427106f1b164d9cef3",
        ),
    ),
    "places365": (
        RemoteFile(
            path="filelist_places365-standard.tar",
            url="http://data.csail.mit.edu/places/places365/filelist_places365-standard.tar",
            md5="35a0585fee1fa656440f3ab298f8479c",
            content="places365_train_standard.txt",
            in_place=True,
        ),
        RemoteFile(
            path="train_256_places365standard.tar",
            url="http://data.csail.mit.edu/places/places365/train_256_places365standard.tar",
            md5="53ca1c756c3d1e7809517cc47c5561c5",
            content="data_256_standard",
            in_place=True,
        ),
        RemoteFile(
            path="val_256.tar",
            url="http://data.csail.mit.edu/places/places365/val_256.tar",
            md5="e27b17d8d44f4af9a78502beb927f808",
            content="val_256",
            in_place=True,
        ),
    ),
    "dtd": (
        RemoteFile(
            path="dtd/dtd-r1.0.1.tar.gz",
            url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            md5="fff73e5086ae6bdbea199a49dfb8a4c1",
            content="dtd/dtd",
        ),
    ),
    "tinyimagenet": (
        RemoteFile(
            path="tiny-imagenet-200.zip",
            url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            md5="90528d7ca1a48142e341f4ef8d21d0de",
            content="tiny-imagenet-200",
            in_place=True,
        ),
    ),
    "imagenet": (
        RemoteFile(
            path="ILSVRC2012_img_train.tar",
            url="https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
            md5="1d675b47d978889d74fa0da5fadfb00e",
            content="train",
            in_place=True,
        ),
        RemoteFile(
            path="ILSVRC2012_img_val.tar",
            url="https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
            md5="29b22e2961454d5413ddabcf34fc5622",
            content="val",
            in_place=True,
        ),
        RemoteFile(
            path="ILSVRC2012_devkit_t12.tar.gz",
            url="https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
            md5="fa75699e90414af021442c21a62c3abf",
            content="ILSVRC2012_devkit_t12",
            in_place=True,
        ),
    ),
    "celeba": (
        RemoteFile(
            path="celeba/img_align_celeba.zip",
            url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            md5="00d2c5bc6d35e252742224ab0c1e8fcb",
            content="celeba/img_align_celeba",
            in_place=True,
        ),
        RemoteFile(
            path="celeba/list_attr_celeba.txt",
            url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            md5="75e246fa4810816ffd6ee81facbd244c",
        ),
        RemoteFile(
            path="celeba/list_eval_partition.txt",
            url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            md5="d32c9cbf5e040fd4025c592c306e6668",
        ),
    ),
}
