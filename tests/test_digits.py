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


def test_without_scikit_learn_the_digits_are_missing(monkeypatch):
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="scikit-learn"):
        reading.read_digits()


@pytest.mark.parametrize("content", [None, b"", b"no gzip", gzip.compress(b"1,2\n3\n"), gzip.compress(b"a,b\n")])
def test_a_file_of_digits_that_is_damaged_or_gone_is_named(tmp_path, monkeypatch, content):
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: package)
    path = tmp_path / reading.DIGITS_FILE
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MissingDataError if content is None else InputError, match=r"digits\.csv\.gz"):
        reading.read_digits()
