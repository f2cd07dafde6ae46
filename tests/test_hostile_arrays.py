"""Files of arrays that are made to harm, or damaged: each is refused with a line that names it."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.test_fuzzed_arrays import npy, read_npz
from vqgpt.errors import InputError
from vqgpt.tokens.third_party import read_npy
from vqgpt.vqgan.checkpoint import read_remap

DICT = "{'descr': %s, 'fortran_order': %s, 'shape': %s, }"
MOST = 2**20


def with_header(text: str, content: bytes = bytes(32), version: bytes = b"\1\0") -> bytes:
    header = text.encode("latin-1")
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + header + content


HEADERS = {
    "an open bracket": "{'descr': '<i8', 'shape': (((",
    "an open quote": "'''",
    "indented": "  a\n b\n",
    "a zero byte": "\0",
    "deep": "(" * 9_000,
    "long": " " * 60_000 + DICT % ("'<i8'", False, "(4,)"),
    "a key of no hash": "{[]: 1}",
    "keys of two kinds": "{1: 1, 'a': 2, 'b': 3}",
    "a key twice": DICT % ("'<i8'", False, "(4,), 'shape': (4,)"),
    "more than a dict": DICT % ("'<i8'", False, "(4,)") + "+1",
    "no type": DICT % ("','", False, "(4,)"),
    "a type of nothing": DICT % ("()", False, "(4,)"),
    "a field without a size": DICT % ("[('', ('<i8',))]", False, "(4,)"),
    "objects": DICT % ("'|O'", False, "(4,)"),
    "fractions": DICT % ("'<f8'", False, "(4,)"),
    "sides of truth": DICT % ("'<i8'", False, "(True, 4)"),
    "a negative side": DICT % ("'<i8'", False, "(-4,)"),
    "sides beyond any": DICT % ("'<i8'", False, f"({10**38},)"),
    "digits": DICT % ("'<i8'", False, f"({'9' * 5_000},)"),
    "terabytes": DICT % ("'<i8'", False, "(1000000000000,)"),
    "many sides": DICT % ("'<i8'", False, f"(4, {'1, ' * 99})"),
    "columns first": DICT % ("'<i8'", True, "(2, 2)"),
}
FILES = {
    **{name: with_header(text) for name, text in HEADERS.items()},
    "empty with sides beyond any": with_header(DICT % ("'<i8'", False, f"(0, {10**17}, {10**17})"), b""),
    "a version to come": with_header(DICT % ("'<i8'", False, "(4,)"), version=b"\4\0"),
    "a header that ends beyond": b"\x93NUMPY\2\0\xff\xff\xff\xff{}",
    "the start of a zip": b"PK\3\4" + bytes(20),
    "an empty zip": b"PK\5\6" + bytes(18),
    "cut off": npy(np.arange(4))[:-1],
    "with more behind": npy(np.arange(4)) * 2,
    "nothing": b"",
}


@pytest.mark.parametrize("name", FILES)
def test_no_array_of_whole_numbers(tmp_path, name):
    path = tmp_path / "x.npy"
    path.write_bytes(FILES[name])
    with pytest.raises(InputError, match=r"x\.npy is not an \.npy file of whole numbers"):
        read_npy(path, MOST, "")
    with pytest.raises(InputError, match=r"x\.npy"):
        read_remap(path, 16)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=arrays_of.arrays(
        st.one_of(
            arrays_of.integer_dtypes(endianness="?"),
            arrays_of.unsigned_integer_dtypes(endianness="?"),
        ),
        arrays_of.array_shapes(min_dims=0, max_dims=4, max_side=4),
    ),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_what_numpy_writes_is_read(tmp_path, array, version):
    path = tmp_path / "x.npy"
    with warnings.catch_warnings(), open(path, "wb") as file:
        warnings.simplefilter("ignore", UserWarning)  # numpy tells that older versions cannot read the newer layouts
        np.lib.format.write_array(file, array, version)
    found = read_npy(path, MOST, "")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


def test_keys_in_another_order(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(with_header("{'shape':(4,),'fortran_order':True,'descr':'<i8'}"))
    assert read_npy(path, MOST, "").tolist() == [0, 0, 0, 0]


def test_a_directory_that_points_before_its_file(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    np.savez(path, train_images=np.zeros((3, 28, 28), np.uint8), train_labels=np.zeros((3, 1), np.uint8))
    data = bytearray(path.read_bytes())
    offset = data.rindex(b"PK\5\6") + 16
    data[offset : offset + 4] = (int.from_bytes(data[offset : offset + 4], "little") + 2**30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="pneumoniamnist in .* is damaged"):
        read_npz(path)


def test_impossible_labels_are_told_with_their_place(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([[0], [1], [10]], np.uint8)
    sets = {f"{split}_images": images for split in ("train", "val", "test")}
    np.savez(path, **sets, **{f"{split}_labels": labels for split in ("train", "val", "test")})
    with pytest.raises(InputError, match="has labels 0 to 10") as caught:
        read_npz(path)
    assert str(tmp_path) in caught.value.message
