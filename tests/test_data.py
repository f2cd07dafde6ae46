"""Datasets: the real readers on small files in the genuine formats, and on real ones where they are at hand."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.dataset_files import (
    celeba_files,
    cifar_files,
    dtd_files,
    idx_bytes,
    image_bytes,
    imagenet_archives,
    md5,
    pixels,
    places365_files,
    tar_bytes,
    tinyimagenet_files,
    write_mnist,
    write_tree,
    zip_bytes,
)
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import FILES, find_dataset, held_out_split, nearest_stored_size
from vqgpt.errors import InputError, MissingDataError, MissingFilesError
from vqgpt.options.definition import resolve
from vqgpt.progress import Notice, silent
from vqgpt.runtime.process import import_torchvision

SHARED = Path(__file__).parents[2] / "shared" / "data"


def read(name, root=None, size=32, report=silent, **options):
    return read_dataset(find_dataset(name), resolve(ImageOptions, {"data_root": root, **options}), size, report)


def colors(split):
    """The middle pixel of each image of a split."""
    images = [split.image(row) for row in range(len(split))]
    return [image.getpixel((image.width // 2, image.height // 2)) for image in images]


def accept(monkeypatch, name, contents):
    """Give the table the digests of small archives: {path: bytes}."""
    files = tuple(replace(file, md5=md5(contents[file.path])) for file in FILES[name])
    monkeypatch.setitem(FILES, name, files)


def test_single_files_may_have_been_packed_again(tmp_path):
    write_mnist(tmp_path, packed=True)
    events = []
    assert len(read("mnist", tmp_path, report=events.append).splits["train"]) == 30
    assert any(FILES["mnist"][0].md5 in event.text for event in events)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_idx_files_are_read_in_order(tmp_path, monkeypatch, dataset, folder, packed):
    written = write_mnist(tmp_path, folder, packed=packed)
    if packed:
        accept(monkeypatch, dataset, {file.path: (tmp_path / file.path).read_bytes() for file in FILES[dataset]})
    found = read(dataset, tmp_path)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = written[prefix]
        for row in range(len(images)):
            np.testing.assert_array_equal(np.asarray(found.splits[split].image(row)), images[row])
        assert found.splits[split].labels.tolist() == labels.tolist()
        assert found.splits[split].source_index.tolist() == list(range(len(images)))
    assert len(found.class_names) == 10
    assert held_out_split(found.splits, dataset) == "test"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_archives_are_unpacked_and_read_in_order(tmp_path, monkeypatch, dataset):
    files, written = cifar_files(dataset)
    archive = tar_bytes(files, "w:gz")
    (tmp_path / FILES[dataset][0].path).write_bytes(archive)
    accept(monkeypatch, dataset, {FILES[dataset][0].path: archive})
    cifar = getattr(import_torchvision("datasets"), find_dataset(dataset).reader_class)
    digests = {name.split("/")[1]: md5(data) for name, data in files.items()}
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, name, [[file, digests[file]] for file, _ in getattr(cifar, name)])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": digests[cifar.meta["filename"]]})
    found = read(dataset, tmp_path)
    for split, (images, labels) in written.items():
        stored = [np.asarray(found.splits[split].image(row)).transpose(2, 0, 1) for row in range(len(images))]
        np.testing.assert_array_equal(stored, images)
        assert found.splits[split].labels.tolist() == labels
    assert found.class_names[3] == "class 3"


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path):
    files, _ = cifar_files("cifar10")
    write_tree(tmp_path, files)
    with pytest.raises(InputError, match="cifar10"):
        read("cifar10", tmp_path)


def test_svhn_files_are_read_and_ten_means_zero(tmp_path, monkeypatch):
    from scipy.io import savemat

    svhn = import_torchvision("datasets").SVHN
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    lists = dict(svhn.split_list)
    for split in ("train", "test"):
        url, name, _ = lists[split]
        savemat(tmp_path / name, {"X": images, "y": np.array([[10], [1], [2], [3], [10]])})
        lists[split] = [url, name, md5((tmp_path / name).read_bytes())]
    monkeypatch.setattr(svhn, "split_list", lists)
    found = read("svhn", tmp_path)
    stored = [np.asarray(found.splits["train"].image(row)) for row in range(5)]
    np.testing.assert_array_equal(stored, images.transpose(3, 0, 1, 2))
    assert found.splits["test"].labels.tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize(("dataset", "bits"), [("pneumoniamnist", 0), ("bloodmnist", 0), ("chestmnist", 14)])
def test_medmnist_archives_keep_their_splits_and_bits(tmp_path, dataset, bits, size):
    row = find_dataset(dataset)
    stored = nearest_stored_size(size)
    arrays = {}
    for index, split in enumerate(row.rows):
        arrays[f"{split}_images"] = pixels(6 + index, stored, row.channels, index)
        arrays[f"{split}_labels"] = np.random.default_rng(index).integers(0, 2, (6 + index, bits or 1))
    np.savez(tmp_path / (f"{dataset}.npz" if stored == 28 else f"{dataset}_{stored}.npz"), **arrays)
    found = read(dataset, tmp_path, size)
    assert [len(split) for split in found.splits.values()] == [6, 7, 8]
    val = found.splits["val"]
    np.testing.assert_array_equal([np.asarray(val.image(row)) for row in range(7)], arrays["val_images"])
    np.testing.assert_array_equal(val.labels, arrays["val_labels"] if bits else arrays["val_labels"][:, 0])
    assert held_out_split(found.splits, dataset) == "val"


@pytest.mark.parametrize("place", ["", "dtd", "dtd/dtd"])
def test_dtd_is_read_by_its_lists(tmp_path, place):
    write_tree(tmp_path / place, dtd_files())
    found = read("dtd", tmp_path)
    assert found.class_names == ("banded", "dotted", "woven")
    assert list(found.splits) == ["train", "val", "test"]
    assert all(split.labels.tolist() == [0, 0, 1, 1, 2, 2] for split in found.splits.values())
    assert found.splits["val"].image(2).size == (20, 14)
    np.testing.assert_allclose(colors(found.splits["val"])[2], (40, 20, 99), atol=3)


def test_an_archive_is_unpacked_once_and_a_half_unpacked_folder_is_recognised(tmp_path, monkeypatch):
    archive = tar_bytes({f"dtd/{name}": data for name, data in dtd_files().items()}, "w:gz")
    write_tree(tmp_path, {"dtd/dtd-r1.0.1.tar.gz": archive})
    accept(monkeypatch, "dtd", {"dtd/dtd-r1.0.1.tar.gz": archive})
    assert len(read("dtd", tmp_path).splits["train"]) == 6
    (tmp_path / "dtd/dtd/images/woven/woven_0003.jpg").unlink()
    with pytest.raises(MissingDataError, match="1 of 6 images are missing .*woven_0003"):
        read("dtd", tmp_path)


@pytest.mark.parametrize("unpacked", ["", "data_256_standard", "data_256"])
def test_places365_is_read_from_its_archives_or_folders(tmp_path, unpacked):
    lists, train, val = places365_files()
    if unpacked:
        write_tree(
            tmp_path, lists | val | {name.replace("data_256", unpacked, 1): data for name, data in train.items()}
        )
    else:
        for name, files in (
            ("filelist_places365-standard", lists),
            ("train_256_places365standard", train),
            ("val_256", val),
        ):
            (tmp_path / f"{name}.tar").write_bytes(tar_bytes(files))
    found = read("places365", tmp_path)
    assert found.class_names == ("airfield", "apartment_building/outdoor")
    assert found.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert found.splits["val"].labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose([color[0] for color in colors(found.splits["train"])], [0, 60, 120, 180], atol=3)
    np.testing.assert_allclose([color[1] for color in colors(found.splits["val"])], [0, 60, 120], atol=3)


@pytest.mark.parametrize("layout", ["zip", "folder", "inside"])
def test_tinyimagenet_is_read_in_its_genuine_layout(tmp_path, layout):
    files = tinyimagenet_files()
    if layout == "zip":
        packed = zip_bytes({f"tiny-imagenet-200/{name}": data for name, data in files.items()})
        (tmp_path / "tiny-imagenet-200.zip").write_bytes(packed)
    else:
        write_tree(tmp_path / ("tiny-imagenet-200" if layout == "folder" else ""), files)
    found = read("tinyimagenet", tmp_path)
    assert found.class_names == ("pizza", "goldfish, Carassius auratus")
    assert found.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.splits["val"].labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(colors(found.splits["train"])[-1], (100, 60, 0), atol=3)
    np.testing.assert_allclose(colors(found.splits["val"]), [0, 50, 100, 150], atol=3)


def test_tinyimagenet_half_unpacked_is_recognised(tmp_path):
    write_tree(tmp_path, tinyimagenet_files())
    (tmp_path / "words.txt").unlink()
    assert read("tinyimagenet", tmp_path).class_names == ("n02", "n01")
    for lost in ("train/n01/images/n01_1.JPEG", "train/n01/images", "val/images/val_0.JPEG"):
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
        path = tmp_path / "copy" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(MissingDataError, match="only partly unpacked"):
            read("tinyimagenet", tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("layout", ["archives", "flat val", "class folders", "imagenet/"])
def test_imagenet_is_read_from_archives_and_from_class_folders(tmp_path, layout):
    archives = imagenet_archives()
    if layout == "archives":
        write_tree(tmp_path, archives)
    else:
        root = tmp_path / ("imagenet" if layout == "imagenet/" else "")
        write_tree(tmp_path, {"devkit.tar.gz": archives["ILSVRC2012_devkit_t12.tar.gz"]})
        for label, wnid in enumerate(("n01440764", "n02102040")):
            for number in (10, 7):
                color = (99 * label, 9 * number, 0)
                write_tree(root, {f"train/{wnid}/{wnid}_{number}.JPEG": image_bytes(color, "JPEG", (30, 20))})
        val = {1: "n02102040", 2: "n01440764", 3: "n02102040"}
        flat = layout == "flat val"
        for number, wnid in val.items():
            name = f"val/{'' if flat else wnid + '/'}ILSVRC2012_val_{number:08d}.JPEG"
            write_tree(root, {name: image_bytes((0, 0, 50 * number), "JPEG", (20, 30))})
        if flat:
            shutil.unpack_archive(tmp_path / "devkit.tar.gz", root, filter="data")
    found = read("imagenet", tmp_path)
    assert found.class_names == ("n01440764", "n02102040")
    train, val = found.splits["train"], found.splits["val"]
    assert train.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose([color[1] for color in colors(train)], [90, 63, 90, 63], atol=3)
    in_order_of = [2, 1, 3] if layout in ("class folders", "imagenet/") else [1, 2, 3]
    assert val.labels.tolist() == [{1: 1, 2: 0, 3: 1}[number] for number in in_order_of]
    np.testing.assert_allclose([color[2] for color in colors(val)], [50 * number for number in in_order_of], atol=3)


def test_flat_validation_images_need_the_devkit(tmp_path):
    archives = imagenet_archives()
    del archives["ILSVRC2012_devkit_t12.tar.gz"]
    with pytest.raises(MissingFilesError) as caught:
        read("imagenet", write_tree(tmp_path, archives))
    assert "ILSVRC2012_devkit_t12.tar.gz" in caught.value.hint


@pytest.mark.parametrize("suffix", ["txt", "csv"])
@pytest.mark.parametrize("layout", ["zip", "folder", "celeba/", "nested"])
def test_celeba_keeps_its_forty_bits(tmp_path, layout, suffix):
    files, bits = celeba_files(suffix)
    if layout == "zip":
        images = {name: data for name, data in files.items() if name.startswith("img")}
        files = {name: data for name, data in files.items() if name not in images}
        files["img_align_celeba.zip"] = zip_bytes(images)
    elif layout == "nested":
        files = {name.replace("celeba/", "celeba/img_align_celeba/"): data for name, data in files.items()}
    found = read("celeba", write_tree(tmp_path / ("celeba" if layout == "celeba/" else ""), files) and tmp_path)
    assert found.class_names == tuple(f"Attribute_{number}" for number in range(40))
    np.testing.assert_array_equal(found.splits["train"].labels, bits[[0, 1, 4]])
    np.testing.assert_array_equal(found.splits["val"].labels, bits[[2]])
    np.testing.assert_array_equal(found.splits["test"].labels, bits[[3]])
    np.testing.assert_allclose([color[0] for color in colors(found.splits["train"])], [0, 50, 200], atol=3)
    assert found.splits["train"].image(0).size == (178, 218)


def test_damaged_files_are_named(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:2000])
    (tmp_path / "retinamnist.npz").write_bytes(b"<html>quota exceeded</html>")
    np.savez(tmp_path / "bloodmnist.npz", train_images=np.array([{}], dtype=object))
    for name in ("mnist", "retinamnist", "bloodmnist"):
        with pytest.raises(InputError, match=name) as caught:
            read(name, tmp_path)
        files = [tmp_path / file.path.removesuffix(".gz") for file in FILES.get(name, ())] or [tmp_path / f"{name}.npz"]
        assert all(str(file) in caught.value.hint for file in files)


@pytest.mark.parametrize(
    "arrays",
    [
        {"val_labels": np.zeros((5, 1), np.uint8)},
        {"val_labels": np.full((6, 1), 8, np.uint8)},
        {"val_labels": np.full((6, 1), 0.5)},
        {"val_labels": np.full((6, 1), -1)},
        {"val_images": np.zeros((6, 28, 28, 2), np.uint8)},
        {"val_images": np.zeros((6, 0, 28, 3), np.uint8)},
        {"val_images": np.zeros((0, 28, 28, 3), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)},
    ],
)
def test_impossible_labels_and_images_are_refused(tmp_path, arrays):
    sound = {f"{split}_images": pixels(6, 28, 3) for split in ("train", "val", "test")}
    sound |= {f"{split}_labels": np.zeros((6, 1), np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "bloodmnist.npz", **{**sound, **arrays})
    with pytest.raises(InputError, match="bloodmnist"):
        read("bloodmnist", tmp_path)
    np.savez(tmp_path / "bloodmnist.npz", **sound)
    assert len(read("bloodmnist", tmp_path).splits) == 3


def test_a_damaged_devkit_and_damaged_lists_are_named(tmp_path):
    archives = imagenet_archives()
    archives["ILSVRC2012_devkit_t12.tar.gz"] = tar_bytes({"ILSVRC2012_devkit_t12/data/meta.mat": b"junk"}, "w:gz")
    with pytest.raises(InputError, match="imagenet"):
        read("imagenet", write_tree(tmp_path / "a", archives))
    files, _ = celeba_files()
    with pytest.raises(InputError, match="celeba"):
        read("celeba", write_tree(tmp_path / "b", files | {"list_eval_partition.txt": b"<html>"}))
    lists, train, _ = places365_files()
    places = {"filelist_places365-standard.tar": tar_bytes(lists), "val_256.tar": b"<html>" * 200}
    write_tree(tmp_path / "c", places | {"train_256_places365standard.tar": tar_bytes(train)})
    with pytest.raises(InputError, match=r"val_256.tar.*neither") as caught:
        read("places365", tmp_path / "c")
    assert FILES["places365"][2].url in caught.value.hint


def test_what_is_only_a_part_is_told(tmp_path):
    write_mnist(tmp_path)
    events = []
    read("mnist", tmp_path, report=events.append)
    assert Notice(text="mnist train has 30 images here, 60,000 as published") in events


def test_licences_that_forbid_commercial_use_are_shown(tmp_path):
    write_tree(tmp_path, dtd_files())
    events = []
    read("dtd", tmp_path, report=events.append)
    assert Notice(text="licence of dtd: research only") in events


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not at hand")
def test_real_images(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for file in (SHARED / "mnist/MNIST/raw").glob("*.gz"):
        (tmp_path / "MNIST/raw" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    shutil.copy(SHARED / "pneumoniamnist_balanced_subset.npz", tmp_path / "pneumoniamnist.npz")
    shutil.copy(SHARED / "tiny-imagenet-200-subset.zip", tmp_path / "tiny-imagenet-200.zip")
    mnist = read("mnist", tmp_path)
    assert mnist.splits["train"].labels[:5].tolist() == [5, 0, 4, 1, 9]
    raw = (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    assert idx_bytes(np.stack([np.asarray(mnist.splits["test"].image(row)) for row in range(10000)])) == raw
    pneumonia = read("pneumoniamnist", tmp_path)
    assert [len(split) for split in pneumonia.splits.values()] == [2428, 270, 468]
    tiny = read("tinyimagenet", tmp_path)
    assert [len(split) for split in tiny.splits.values()] == [1200, 400]
    assert len(tiny.class_names) == 200
    assert np.unique(np.bincount(tiny.splits["train"].labels)).tolist() == [0, 60]
    assert tiny.splits["val"].image(0).size == (64, 64)
