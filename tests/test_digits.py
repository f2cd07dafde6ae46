"""The digits of scikit-learn, read from its file without importing the package."""

import gzip
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.test_data import read
from vqgpt.data import reading
from vqgpt.data.table import find_dataset
from vqgpt.errors import InputError, MissingDataError


def facts():
    return reading.medmnist_facts("bloodmnist")


def test_digits_has_a_fixed_balanced_split():
    first, again = read("digits"), read("digits")
    assert first.sha256 == again.sha256
    train, test = first.splits["train"], first.splits["test"]
    assert {"train": len(train), "test": len(test)} == dict(find_dataset("digits").rows)
    assert sorted([*train.source_index, *test.source_index]) == list(range(1797))
    assert np.bincount(test.labels).min() >= 35
    assert max(np.asarray(test.image(row)).max() for row in range(10)) == 255


def test_digits_are_those_of_scikit_learn():
    theirs, ours = load_digits(), reading.read_digits()
    for split in ours.values():
        levels = theirs.images[split.source_index]
        pixels = [np.asarray(split.image(row)) for row in range(len(split))]
        np.testing.assert_array_equal(pixels, np.rint(levels * 255 / 16))
        np.testing.assert_array_equal(split.labels, theirs.target[split.source_index])


def test_reading_digits_does_not_import_scikit_learn():
    code = "import sys; from vqgpt.data.reading import read_digits; read_digits(); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("read", "name"), [(reading.read_digits, "scikit-learn"), (facts, "medmnist")])
def test_without_its_package_a_dataset_is_missing(monkeypatch, read, name):
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=name):
        read()


WHOLE = load_digits()
ROWS = np.column_stack([WHOLE.data, WHOLE.target]).astype(int)


@pytest.mark.parametrize("content", [None, b"", b"no gzip", "1,2\n3\n", "a,b\n", ROWS[:-1], ROWS - 1, ROWS + 16])
def test_a_file_of_digits_that_is_damaged_or_gone_is_named(tmp_path, monkeypatch, content):
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: package)
    path = tmp_path / "datasets/data/digits.csv.gz"
    path.parent.mkdir(parents=True)
    if isinstance(content, np.ndarray):
        content = "\n".join(",".join(map(str, row)) for row in content)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else gzip.compress(content.encode()))
    with pytest.raises(MissingDataError if content is None else InputError, match=r"digits\.csv\.gz"):
        reading.read_digits()
