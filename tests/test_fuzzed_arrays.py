"""Changed .npy and .npz files, and lines of codes, that others wrote: each is read, or refused with a line.

FUZZ_SECONDS=600 pytest tests/test_fuzzed_arrays.py changes each kind of file for ten minutes.
"""

import io
import json
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.fuzzing import ODD_NUMBERS, REFUSED, SECONDS, changed_bytes, changed_directory, changed_values, fuzz
from vqgpt.commands import cache_import
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.options.definition import Flags, OutputFlags, resolve
from vqgpt.progress import silent
from vqgpt.vqgan.checkpoint import read_remap

CODES = np.arange(32).reshape(1, 2, 16)
LABELS = np.array([3])
ODD_TYPES = ["'<i8'", "'>u2'", "'|b1'", "'|O'", "','", "''", "()", "[]", "[('', ('<i8',))]", "'V0'", "'<U9'"]
ODD_TEXTS = ["(", "'''", "#", "\\", "\n ", "{", "}", "[]", "4L", "-", "True", "\0", "\xff", "(" * 999, "9" * 5_000]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def changed_npy(data: bytes, chance: random.Random) -> bytes:
    """An .npy file with another header, whose length holds."""
    length = int.from_bytes(data[8:10], "little")
    text, content = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    for _ in range(chance.choice([1, 1, 2, 4])):
        act = chance.random()
        if act < 0.3:
            text = re.sub("'descr': [^,]*", lambda _: f"'descr': {chance.choice(ODD_TYPES)}", text)
        elif act < 0.6:
            sides = [chance.choice([*ODD_NUMBERS, 1, 2, 16, 32, True]) for _ in range(chance.randrange(4))]
            text = re.sub(r"\([^)]*\)", lambda _, sides=sides: repr(tuple(sides)), text)
        else:
            place = chance.randrange(len(text) + 1)
            text = text[:place] + chance.choice(ODD_TEXTS) + text[place + chance.choice([0, 1, 5, 20]) :]
    header = text.encode("latin-1")
    version = chance.choice([b"\1\0", b"\1\0", b"\2\0", b"\3\0", chance.randbytes(2)])
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + content


def changed_npz(data: bytes, chance: random.Random) -> bytes:
    """An archive with checksums that hold, and another array in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    number = chance.randrange(len(members))
    name, content = members[number]
    members[number] = (name, chance.choice([changed_npy, changed_bytes])(content, chance))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def changed_lines(data: bytes, chance: random.Random) -> bytes:
    """Lines of JSON of which one holds other values."""
    lines = data.splitlines()
    number = chance.randrange(len(lines))
    text = json.dumps(changed_values(json.loads(lines[number]), chance))
    lines[number] = text.encode(chance.choice(["utf-8", "utf-8", "utf-16"]))
    return b"\n".join(lines)


def plan_of(source: Path) -> None:
    cache_import.run(
        resolve(cache_import.CacheImportConfig, {"source": source}), Flags(dry_run=True, output=OutputFlags()), silent
    )


def read_npz(file: Path) -> None:
    options = resolve(ImageOptions, {"data_root": file.parent, "workers": 1})
    read_dataset(find_dataset("pneumoniamnist"), options, 28, silent)


@pytest.fixture
def kinds(tmp_path):
    """By name: the file to change, what reads it, changes of it, and what its errors name."""
    folders = [tmp_path / "x256_codes", tmp_path / "x256_labels"]
    for folder, array in zip(folders, (CODES, LABELS), strict=True):
        folder.mkdir()
        for row in range(3):
            (folder / f"{row}.npy").write_bytes(npy(array))
    line = json.dumps({"class_id": 3, "tokens": CODES[0, 0].tolist()}) + "\n"
    (tmp_path / "x.jsonl").write_text(line * 4)
    (tmp_path / "used.npy").write_bytes(npy(np.arange(8)))
    sets = {f"{split}_images": np.zeros((3, 28, 28), np.uint8) for split in ("train", "val", "test")}
    sets |= {f"{split}_labels": np.array([[0], [1], [0]], np.uint8) for split in ("train", "val", "test")}
    (tmp_path / "medmnist").mkdir()
    np.savez_compressed(tmp_path / "medmnist/pneumoniamnist.npz", **sets)
    of_arrays = [changed_bytes, changed_npy, changed_npy]
    return {
        "first codes": (folders[0] / "0.npy", lambda _: plan_of(folders[0]), of_arrays, folders[0]),
        "codes": (folders[0] / "1.npy", lambda _: plan_of(folders[0]), of_arrays, None),
        "labels": (folders[1] / "1.npy", lambda _: plan_of(folders[0]), of_arrays, None),
        "lines": (tmp_path / "x.jsonl", plan_of, [changed_bytes, changed_lines], None),
        "remap": (tmp_path / "used.npy", lambda path: read_remap(path, 16), of_arrays, None),
        "npz": (
            tmp_path / "medmnist/pneumoniamnist.npz",
            read_npz,
            [changed_bytes, changed_directory, changed_npz],
            tmp_path / "medmnist",
        ),
    }


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("name", ["first codes", "codes", "labels", "lines", "remap", "npz"])
def test_a_changed_file_of_arrays_is_read_or_refused(kinds, name):
    bad, read, changes, named = kinds[name]
    read(bad)

    def outcome(_):
        read(bad)
        return "read"

    assert fuzz(name, bad, bad.read_bytes(), changes, outcome, named=named)[REFUSED] > 0
