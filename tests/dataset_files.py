"""Small datasets in the genuine on-disk formats, written byte by byte: what the readers are tested on."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image


def pixels(count, size, channels, seed=0):
    """(count, size, size) or (count, size, size, 3) random uint8."""
    shape = (count, size, size) if channels == 1 else (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root, name="MNIST", train=30, test=10, packed=False):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    written = {}
    for seed, (prefix, count) in enumerate((("train", train), ("t10k", test))):
        images, labels = pixels(count, 28, 1, seed), np.arange(count) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            suffix = ".gz" if packed else ""
            (folder / f"{prefix}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(data) if packed else data)
        written[prefix] = (images, labels)
    return written


def md5(data):
    return hashlib.md5(data).hexdigest()


def tar_bytes(files, mode="w"):
    """A tar file of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files):
    """A zip file of {name: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write_tree(root, files):
    """Write {name: bytes} below a folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def image_bytes(level, kind="PNG", size=(12, 12), mode="RGB", **options):
    """An image file of one color: `level` is a number for grey, a tuple else."""
    buffer = io.BytesIO()
    Image.new(mode, size, level).save(buffer, kind, **options)
    return buffer.getvalue()


def cifar_files(name):
    """The files of a small CIFAR-10 or -100 by their path in its archive, and their images and labels by split."""
    hundred = name == "cifar100"
    folder = "cifar-100-python" if hundred else "cifar-10-batches-py"
    parts = (
        {"train": ["train"], "test": ["test"]}
        if hundred
        else {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    )
    key = "fine_labels" if hundred else "labels"
    files, written = {}, {}
    for split, names in parts.items():
        rows, labels = [], []
        for seed, part in enumerate(names):
            data = np.random.default_rng([len(split), seed]).integers(0, 256, (4, 3072), dtype=np.uint8)
            rows.append(data)
            labels += [1, 2, 3, seed]
            files[f"{folder}/{part}"] = pickle.dumps({"data": data, key: [1, 2, 3, seed]})
        written[split] = (np.concatenate(rows).reshape(-1, 3, 32, 32), labels)
    classes = [f"class {i}" for i in range(100 if hundred else 10)]
    meta = "meta" if hundred else "batches.meta"
    files[f"{folder}/{meta}"] = pickle.dumps({"fine_label_names" if hundred else "label_names": classes})
    return files, written


def dtd_files():
    """Three textures, two images each in every split."""
    files, lists = {}, {"train": [], "val": [], "test": []}
    for place, name in enumerate(("banded", "dotted", "woven")):
        for number in range(6):
            file = f"{name}/{name}_{number:04d}.jpg"
            files[f"images/{file}"] = image_bytes((40 * place, 20 * number, 99), "JPEG", (20, 14))
            lists[("train", "val", "test")[number % 3]].append(file)
    for split, lines in lists.items():
        files[f"labels/{split}1.txt"] = "".join(f"{line}\n" for line in lines).encode()
    return files


def places365_files():
    """The lists, the training images and the validation images of a small Places365, as their archives hold them."""
    names = ["/a/airfield", "/a/apartment_building/outdoor"]
    train = [(f"{name}/{number:08d}.jpg", label) for label, name in enumerate(names) for number in (1, 2)]
    val = [(f"Places365_val_{number:08d}.jpg", number % 2) for number in range(1, 4)]
    lists = {
        "categories_places365.txt": "".join(f"{name} {label}\n" for label, name in enumerate(names)),
        "places365_train_standard.txt": "".join(f"{name} {label}\n" for name, label in train),
        "places365_val.txt": "".join(f"{name} {label}\n" for name, label in val),
    }
    return (
        {name: text.encode() for name, text in lists.items()},
        {f"data_256{name}": image_bytes((60 * i, 0, 0), "JPEG", (16, 16)) for i, (name, _) in enumerate(train)},
        {f"val_256/{name}": image_bytes((0, 60 * i, 0), "JPEG", (16, 16)) for i, (name, _) in enumerate(val)},
    )


def tinyimagenet_files():
    """Two classes of three training and two validation images; wnids.txt in another order than the alphabet."""
    wnids = ["n02", "n01"]
    files = {"wnids.txt": b"n02\nn01\n", "words.txt": b"n01\tgoldfish, Carassius auratus\nn02\tpizza\nn03\tother\n"}
    annotations = []
    for label, wnid in enumerate(wnids):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x\n"
        for number in range(3):
            color = (100 * label, 30 * number, 0)
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = image_bytes(color, "JPEG", (64, 64))
    for number in range(4):
        files[f"val/images/val_{number}.JPEG"] = image_bytes(50 * number, "JPEG", (64, 64), "L")
        annotations.append(f"val_{number}.JPEG\t{wnids[number % 2]}\t0\t0\t9\t9\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    files["test/images/test_0.JPEG"] = image_bytes(0, "JPEG", (64, 64), "L")
    return files


def imagenet_archives():
    """The three archives of a small ILSVRC2012: training images, validation images, devkit."""
    from scipy.io import savemat

    wnids = ["n01440764", "n02102040"]
    train = {}
    for label, wnid in enumerate(wnids):
        files = {
            f"{wnid}_{number}.JPEG": image_bytes((99 * label, 9 * number, 0), "JPEG", (30, 20)) for number in (7, 10)
        }
        train[f"{wnid}.tar"] = tar_bytes(files)
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": image_bytes((0, 0, 50 * n), "JPEG", (20, 30)) for n in (3, 1, 2)}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array([(2, wnids[0], "tench", "a fish", 0), (1, wnids[1], "springer", "a dog", 0)], dtype=kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n1\n",
    }
    return {
        "ILSVRC2012_img_train.tar": tar_bytes(train),
        "ILSVRC2012_img_val.tar": tar_bytes(val),
        "ILSVRC2012_devkit_t12.tar.gz": tar_bytes(devkit, "w:gz"),
    }


def celeba_files(suffix="txt"):
    """Five faces: three to train on, one each to validate and to test."""
    attributes = [f"Attribute_{number}" for number in range(40)]
    bits = np.random.default_rng(0).integers(0, 2, (5, 40))
    names = [f"{number:06d}.jpg" for number in range(1, 6)]
    parts = [0, 0, 1, 2, 0]
    files = {f"img_align_celeba/{n}": image_bytes((50 * i, 0, 0), "JPEG", (178, 218)) for i, n in enumerate(names)}
    if suffix == "txt":
        rows = [
            f"{name} {' '.join('1' if bit else '-1' for bit in row)}" for name, row in zip(names, bits, strict=True)
        ]
        files["list_attr_celeba.txt"] = "\n".join(["5", " ".join(attributes) + " ", *rows, ""]).encode()
        lines = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
        files["list_eval_partition.txt"] = "\n".join([*lines, ""]).encode()
    else:
        rows = [",".join([name, *("1" if bit else "-1" for bit in row)]) for name, row in zip(names, bits, strict=True)]
        files["list_attr_celeba.csv"] = "\n".join([",".join(["image_id", *attributes]), *rows, ""]).encode()
        lines = [f"{name},{part}" for name, part in zip(names, parts, strict=True)]
        files["list_eval_partition.csv"] = "\n".join(["image_id,partition", *lines, ""]).encode()
    return files, bits
