"""Datasets: the real readers on small files in the genuine formats, resizing, and the table."""

import pickle
import struct

import numpy as np
import pytest
import torch

from vqgpt.config.datasets import DATASETS, find_dataset, held_out_split
from vqgpt.data import readers
from vqgpt.data.images import load_images, resize
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.pixels import to_uint8, to_unit_range
from vqgpt.progress import silent
from vqgpt.torchvision_import import import_torchvision


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root, name="MNIST", train=30, test=10):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    written = {}
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28))
        labels = np.arange(count) % 10
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        written[prefix] = (images, labels)
    return written


def test_digits_has_a_fixed_balanced_split():
    first = load_images(find_dataset("digits"), None, 16, silent)
    again = load_images(find_dataset("digits"), None, 16, silent)
    assert first.sha256 == again.sha256
    train, test = first.splits["train"], first.splits["test"]
    assert len(train.images) + len(test.images) == 1797
    assert sorted([*train.source_index, *test.source_index]) == list(range(1797))
    assert np.bincount(test.labels).min() >= 35
    assert test.images.shape[1:] == (1, 16, 16)
    assert test.images.dtype == torch.uint8
    assert test.images.max() == 255


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_idx_files_are_read_in_order(tmp_path, dataset, folder):
    written = write_mnist(tmp_path, folder)
    raw = readers.read_dataset(find_dataset(dataset), tmp_path, silent)
    np.testing.assert_array_equal(raw.splits["train"].images[:, 0], written["train"][0])
    np.testing.assert_array_equal(raw.splits["test"].labels, written["t10k"][1])
    assert len(raw.class_names) == 10


def test_cifar10_batches_are_read_in_order(tmp_path, monkeypatch):
    cifar = import_torchvision("datasets").CIFAR10
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows, labels = [], []
    for name, _ in (*cifar.train_list, *cifar.test_list):
        data = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        rows.append(data)
        labels.append([1, 2, 3, 4])
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels[-1]}))
    (folder / cifar.meta["filename"]).write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(cifar, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    raw = readers.read_dataset(find_dataset("cifar10"), tmp_path, silent)
    np.testing.assert_array_equal(raw.splits["train"].images, np.concatenate(rows[:5]).reshape(-1, 3, 32, 32))
    assert raw.splits["test"].labels.tolist() == [1, 2, 3, 4]
    assert raw.class_names[3] == "class 3"


def test_svhn_files_are_read_and_ten_means_zero(tmp_path, monkeypatch):
    from scipy.io import savemat

    svhn = import_torchvision("datasets").SVHN
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / svhn.split_list[split][1], {"X": images, "y": np.array([[10], [1], [2], [3], [10]])})
    monkeypatch.setattr(svhn, "_check_integrity", lambda self: True)
    raw = readers.read_dataset(find_dataset("svhn"), tmp_path, silent)
    np.testing.assert_array_equal(raw.splits["train"].images, images.transpose(3, 2, 0, 1))
    assert raw.splits["test"].labels.tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(("dataset", "bits"), [("pneumoniamnist", 0), ("bloodmnist", 0), ("chestmnist", 14)])
def test_medmnist_archives_keep_their_splits_and_bits(tmp_path, dataset, bits):
    row = find_dataset(dataset)
    arrays = {}
    for index, split in enumerate(row.splits):
        shape = (6 + index, 28, 28) + ((3,) if row.channels == 3 else ())
        arrays[f"{split}_images"] = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = np.random.default_rng(index).integers(0, 2, (6 + index, bits or 1))
    np.savez(tmp_path / f"{dataset}.npz", **arrays)
    raw = readers.read_dataset(row, tmp_path, silent)
    assert [len(split.images) for split in raw.splits.values()] == [6, 7, 8]
    val = raw.splits["val"]
    expected = arrays["val_images"].transpose(0, 3, 1, 2) if row.channels == 3 else arrays["val_images"][:, None]
    np.testing.assert_array_equal(val.images, expected)
    np.testing.assert_array_equal(val.labels, arrays["val_labels"] if bits else arrays["val_labels"][:, 0])
    assert held_out_split(load_images(row, tmp_path, 32, silent).splits, dataset) == "val"


def test_a_truncated_file_is_named_as_damaged(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises((InputError, MissingDataError), match="mnist"):
        readers.read_dataset(find_dataset("mnist"), tmp_path, silent)
    (tmp_path / "retinamnist.npz").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(InputError, match="retinamnist"):
        readers.read_dataset(find_dataset("retinamnist"), tmp_path, silent)


@pytest.mark.parametrize("dataset", ["svhn", "mnist", "bloodmnist"])
def test_without_a_network_the_error_says_where_to_put_the_files(tmp_path, monkeypatch, dataset):
    def no_network(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(MissingDataError) as caught:
        readers.read_dataset(find_dataset(dataset), tmp_path / "data", silent)
    assert dataset in caught.value.message
    assert str(tmp_path / "data") in caught.value.hint


def test_resizing_takes_the_shorter_side_and_the_centre():
    wide = np.zeros((1, 1, 8, 20), np.uint8)
    wide[:, :, :, 6:14] = 200
    assert resize(wide, 8).tolist() == np.full((1, 1, 8, 8), 200).tolist()
    assert resize(wide, 16).shape == (1, 1, 16, 16)
    assert resize(np.full((2, 3, 28, 28), 77, np.uint8), 32).unique().tolist() == [77]


def test_unit_range_and_uint8_are_inverses():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(levels)), levels)
    assert to_unit_range(levels)[[0, 255]].tolist() == [-1.0, 1.0]


def test_the_table_is_sound():
    for name, row in DATASETS.items():
        assert row.name == name
        assert row.channels in (1, 3)
        assert row.splits[0] == "train"
    with pytest.raises(UsageError, match="minst") as caught:
        find_dataset("minst")
    assert "mnist" in caught.value.hint
