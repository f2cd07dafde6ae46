"""Sets of images in .npz files: arrays of several layouts, and what is hostile, damaged or changed."""

import io
import zipfile

import numpy as np
import pytest

from tests.dataset_files import pixels
from tests.fuzzing import REFUSED, changed_bytes, changed_directory, fuzz
from tests.test_fuzzed_arrays import changed_npz, npy
from tests.test_hostile_arrays import FILES as HOSTILE
from tests.test_image_sets import everything, find, repeated
from vqgpt.data.image_sets import npz_images
from vqgpt.errors import InputError
from vqgpt.progress import silent


def write_npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_files(tmp_path, compressed):
    colors = pixels(23, 6, 3)[:, :, :4]
    labels = np.arange(23, dtype=np.uint8) % 3
    path = write_npz(tmp_path / "x.npz", compressed, arr_0=colors, arr_1=labels)
    images = find(path)
    assert images.shape == (3, 6, 4)
    assert np.array_equal(everything(images), colors.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == labels.tolist()
    assert images.class_names == ("0", "1", "2")
    assert images.features_stem == tmp_path / "x"
    some = images.drawn(7)
    assert np.array_equal(everything(some, 3), colors.transpose(0, 3, 1, 2)[some.rows])
    assert np.array_equal(
        np.concatenate(list(images.batches(4, 1, 2))),
        np.concatenate(list(images.batches(4)))[[row for row in range(23) if row // 4 % 2]],
    )


@pytest.mark.parametrize("layout", ["repeated", "one channel", "none"])
def test_grey_npz_files_and_their_identity(tmp_path, layout):
    grey = pixels(5, 6, 1)
    array = {"repeated": repeated(grey), "one channel": grey[..., None], "none": grey}[layout]
    images = find(write_npz(tmp_path / "a.npz", arr_0=array))
    assert images.shape == (1, 6, 6)
    assert np.array_equal(everything(images), grey[:, None])
    assert images.labels.tolist() == [-1] * 5
    assert images.class_names == ()
    assert find(write_npz(tmp_path / "b.npz", compressed=True, arr_0=array)).sha256 == images.sha256
    with_labels = find(write_npz(tmp_path / "c.npz", arr_0=array, arr_1=np.zeros(5, np.int32)))
    array[2, 3, 1] += 1
    changed = find(write_npz(tmp_path / "d.npz", arr_0=array))
    assert len({images.sha256, with_labels.sha256, changed.sha256}) == 3


def test_npz_files_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("vqgpt.data.npz_images.BLOCK", 300)
    colors = pixels(40, 7, 3)
    events = []
    images = find(write_npz(tmp_path / "x.npz", compressed=True, arr_0=colors), report=events.append)
    assert [event.done for event in events] == [2, 4, *range(6, 41, 2)]
    assert np.array_equal(everything(images.subset([0, 1, 17, 39])), colors.transpose(0, 3, 1, 2)[[0, 1, 17, 39]])


UNSUITABLE = {
    "type <f4": {"arr_0": np.zeros((4, 8, 8, 3), np.float32)},
    "type int64": {"arr_0": np.zeros((4, 8, 8, 3), np.int64)},
    r"shape \(4, 3, 8, 8\)": {"arr_0": np.zeros((4, 3, 8, 8), np.uint8)},
    r"shape \(4, 0, 8, 3\)": {"arr_0": np.zeros((4, 0, 8, 3), np.uint8)},
    r"shape \(8, 8\)": {"arr_0": np.zeros((8, 8), np.uint8)},
    r"shape \(\)": {"arr_0": np.uint8(3)},
    "Fortran order": {"arr_0": np.asfortranarray(pixels(4, 8, 3))},
    r"type \|O": {"arr_0": np.array([None, {}], dtype=object)},
    "not an array of whole numbers": {"arr_0": np.zeros(3, [("a", "u1")])},
    "no array arr_0; it holds: images": {"images": pixels(4, 8, 3)},
    "holds features, not images": {"features": np.zeros((4, 8), np.float32)},
    "1 image; a distribution": {"arr_0": pixels(1, 8, 3)},
    "no images; a distribution": {"arr_0": pixels(0, 8, 3)},
    r"arr_1 has shape \(3,\), and there are 4": {"arr_0": pixels(4, 8, 3), "arr_1": np.zeros(3, np.int64)},
    r"arr_1 has shape \(4, 2\)": {"arr_0": pixels(4, 8, 3), "arr_1": np.zeros((4, 2), np.int64)},
    "arr_1 has type <f8": {"arr_0": pixels(4, 8, 3), "arr_1": np.full(4, np.nan)},
    "labels -2 to 0": {"arr_0": pixels(4, 8, 3), "arr_1": np.array([0, -2, 0, 0])},
    "labels 0 to 18446744073709551615": {"arr_0": pixels(4, 8, 3), "arr_1": np.array([0, 2**64 - 1, 0, 0], np.uint64)},
}


@pytest.mark.parametrize("words", UNSUITABLE)
def test_npz_files_of_anything_else_are_refused(tmp_path, words):
    path = write_npz(tmp_path / "x.npz", **UNSUITABLE[words])
    with pytest.raises(InputError, match=rf"x\.npz.*{words}"):
        find(path)


def member_of(content: bytes, name: str = "arr_0.npy", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays_in_npz_files(tmp_path, name):
    (tmp_path / "x.npz").write_bytes(member_of(HOSTILE[name]))
    with pytest.raises(InputError, match=r"x\.npz"):
        find(tmp_path / "x.npz")


def test_damaged_and_lying_npz_files(tmp_path):
    path, whole = tmp_path / "x.npz", npy(pixels(4, 8, 3))
    header = whole[: whole.index(b"\n") + 1]
    encrypted = bytearray(member_of(whole))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    flipped = bytearray(member_of(whole))
    flipped[300] ^= 1
    packed = member_of(whole, method=zipfile.ZIP_DEFLATED)
    torn = bytearray(packed)
    torn[100:140] = bytes(40)
    many = header.replace(b"(4, 8, 8, 3)", b"(10000000000000, 1, 1, 1)")
    cases = {
        "damaged": packed[:-30],
        "is damaged, or not an .npz file": whole,
        "encrypted": bytes(encrypted),
        "CRC": bytes(flipped),
        "damaged, or": bytes(torn),
        "not compressed by deflate": member_of(whole, method=zipfile.ZIP_LZMA),
        "bytes, not those of an array": member_of(whole[:-1]),
        "not those of an array of": member_of(whole + b"\0"),
        "shape": member_of(many),
        "no array arr_0; it holds: arr_00": member_of(whole, "arr_00.npy"),
        "it holds: nothing": b"PK\5\6" + bytes(18),
    }
    for words, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"x\.npz.*{words}"):
            find(path)


def test_an_npz_file_that_changes_is_noticed(tmp_path):
    images = find(write_npz(tmp_path / "x.npz", arr_0=pixels(4, 8, 3)))
    write_npz(tmp_path / "x.npz", arr_0=pixels(4, 9, 3))
    with pytest.raises(InputError, match="has changed"):
        everything(images)
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(InputError, match="is damaged"):
        everything(images)


def test_changed_npz_files_are_read_or_refused(tmp_path):
    def read(_):
        everything(npz_images(tmp_path / "x.npz", silent))
        return "read"

    labelled = io.BytesIO()
    np.savez(labelled, arr_0=pixels(3, 4, 3), arr_1=np.arange(3))
    changes = [changed_npz, changed_bytes, changed_directory]
    outcomes = fuzz("images", tmp_path / "x.npz", labelled.getvalue(), changes, read)
    assert outcomes[REFUSED]
