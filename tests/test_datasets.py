"""What is known of datasets before and after they are read: the table, what is held out, the list, what is missing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import assert_refused, run_here
from tests.dataset_files import write_mnist
from vqgpt.data.images import ArrayImages, ImageSplit, hold_out
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import medmnist_facts, read_dataset
from vqgpt.data.table import DATASETS, FILES, find_dataset, held_out_split, nearest_stored_size
from vqgpt.errors import UsageError
from vqgpt.options.definition import resolve
from vqgpt.progress import silent


def read(name, root, **options):
    return read_dataset(find_dataset(name), resolve(ImageOptions, {"data_root": root, **options}), 32, silent)


@given(
    labels=st.lists(st.integers(-1, 5), min_size=2, max_size=200),
    share=st.floats(0.01, 0.9),
)
def test_holding_out_divides_every_class(labels, share):
    split = ImageSplit.whole(ArrayImages(np.zeros((len(labels), 1, 1), np.uint8)), np.array(labels))
    train, held_out = hold_out(split, share)
    assert sorted([*train.source_index, *held_out.source_index]) == list(range(len(labels)))
    assert len(train)
    assert len(held_out)
    for label in set(labels):
        expected = share * labels.count(label)
        assert abs((held_out.labels == label).sum() - expected) <= 1
    assert (split.labels[held_out.source_index] == held_out.labels).all()


def test_val_split_takes_from_train_and_is_refused_where_there_is_a_val(tmp_path):
    write_mnist(tmp_path)
    found = read("mnist", tmp_path, val_split=0.2)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 24, "val": 6, "test": 10}
    assert held_out_split(found.splits, "mnist") == "val"
    assert found.splits["val"].labels.tolist() == [found.splits["val"].source_index[n] % 10 for n in range(6)]
    for name in ("dtd", "places365"):  # before anything is fetched
        with pytest.raises(UsageError, match="split val of its own"):
            read(name, tmp_path, val_split=0.2)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        read("mnist", tmp_path / "file")


def test_the_table_is_sound():
    assert set(FILES) <= set(DATASETS)
    for name, row in DATASETS.items():
        assert row.name == name
        assert row.channels in (1, 3)
        assert row.source == "yours" or next(iter(row.rows)) == "train"
        assert not row.class_names or len(row.class_names) == row.num_classes
        assert (name in FILES) == (row.source in ("download", "by hand") and row.reader != "medmnist")
    digits = ("digits", "mnist", "svhn", "chestmnist", "pneumoniamnist", "octmnist", "retinamnist")
    assert all(find_dataset(name).default_views == ("identity",) for name in digits)
    with pytest.raises(UsageError, match="minst") as caught:
        find_dataset("minst")
    assert "mnist" in caught.value.hint


def test_datasets_are_listed_with_their_licence_and_presence(tmp_path):
    write_mnist(tmp_path)
    outcome = run_here("datasets", "--data-root", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == set(DATASETS)
    assert outcome.json["mnist"]["here"] == "yes"
    assert outcome.json["svhn"]["here"] == "no"
    assert outcome.json["celeba"]["here"] == "by hand"
    assert outcome.json["dermamnist"]["licence"] == "CC BY-NC 4.0"
    assert outcome.json["cifar10"]["views"] == "identity, hflip"
    table = run_here("datasets", "--data-root", tmp_path).out.splitlines()
    assert len(table) == 1 + len(DATASETS)


@pytest.mark.parametrize("dataset", ["celeba", "imagenet"])
def test_sets_that_are_to_be_had_by_hand_say_where(here, dataset):
    outcome = run_here("vqgan", "train", "--dataset", dataset, "--data-root", "data", "--perceptual-weight", "0")
    file = FILES[dataset][0]
    assert_refused(outcome, 4, file.url, file.md5, f"data/{file.path}", f"vqgpt vqgan train --dataset {dataset}")


def test_medmnist_takes_the_nearest_stored_resolution():
    assert [nearest_stored_size(size) for size in (16, 32, 46, 64, 96, 200, 512)] == [28, 28, 64, 64, 128, 224, 224]


def test_medmnist_facts_agree_with_the_table():
    for row in DATASETS.values():
        if row.reader == "medmnist":
            facts = medmnist_facts(row.name)
            assert facts["n_samples"] == dict(row.rows)
            assert (facts["n_channels"], len(facts["label"])) == (row.channels, row.num_classes)
            assert facts["license"] == row.licence
