"""Small pickles that would fill memory or never end: each is refused, or read, in memory that its size bounds."""

import contextlib
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from vqgpt.errors import InputError
from vqgpt.storage.checkpoint import load_checkpoint, read_checkpoint_file
from vqgpt.storage.torch_files import read_torch_file

FLOATS = b"ctorch\nFloatStorage\n"
TENSOR = b"torch._utils\n_rebuild_tensor_v2"
TYPED = b"torch._tensor\n_rebuild_from_type_v2"
NOTHINGS = b"(" + b"N" * 20_000 + b"t"
LARGE_SIZES = b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"2" * 100_000 + b"t"


def text(words: str) -> bytes:
    return b"X" + len(words).to_bytes(4, "little") + words.encode()


def storage(key: bytes) -> bytes:
    """A storage of no numbers, of which `key` makes the key."""
    return b"(" + text("storage") + FLOATS + key + text("cpu") + b"K\x00tQ"


def calls(function: bytes, argument: bytes, call: bytes, times: int) -> bytes:
    """A pickle of a list: a function (memo 1) and an argument (memo 2) are made once, and called `times` times."""
    return b"\x80\x02c" + function + b"\nq\x01" + argument + b"q\x0200](" + call * times + b"e."


def tensor(sizes: bytes, times: int = 1) -> bytes:
    """A pickle of tensors with these sizes, which are the strides too."""
    return calls(TENSOR, sizes, b"h\x01(" + storage(text("0")) + b"K\x00h\x02h\x02tR", times)


def pairs(count: int) -> bytes:
    return b"](" + b"".join(b"](" + text(f"{number}") + b"Ne" for number in range(count)) + b"e"


def doubled(times: int) -> bytes:
    """A tuple of a tuple twice, of a tuple twice, and so on."""
    return b")" + b"q\x05h\x05\x86" * times


COPY = b"h\x01h\x02\x85R"
NESTED_CALLS = b")" + b"".join(b"q\x05(h\x01Nh\x05Ntq\x05" for _ in range(400))
BOMBS = {
    "copies by torch.Size": calls(b"torch\nSize", NOTHINGS, COPY, 20_000),
    "copies by OrderedDict": calls(b"collections\nOrderedDict", pairs(5_000), COPY, 20_000),
    "copies of arguments": calls(b"os\nsystem", NOTHINGS, b"h\x01h\x02R", 10_000),
    "copies of arguments of new objects": calls(b"os\nsystem", NOTHINGS, b"h\x01h\x02\x81", 10_000),
    "copies of arguments of tensors": calls(TYPED, NOTHINGS, b"h\x01(h\x01Nh\x02NtR", 10_000),
    "calls that call": calls(TYPED, NESTED_CALLS, b"h\x01h\x05R", 10_000),
    "copies of sizes": tensor(NOTHINGS, 5_000),
    "the product of large sizes": tensor(LARGE_SIZES),
    "a size beyond 63 bits": tensor(b"\x8a\x09" + b"\x00" * 7 + b"\x80\x00\x85"),
    "a key of tuples": b"\x80\x02" + storage(doubled(60)) + b".",
    "tuples of tuples": b"\x80\x02" + doubled(60) + b".",
    "lists in lists": b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dict in itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "numbers that hash alike": b"\x80\x02}("
    + b"".join(b"\x8a\x09%bK\x01" % (n << 61).to_bytes(9, "little") for n in range(500))
    + b"u.",
    "a number of a million bits": b"\x80\x02\x8b" + (125_000).to_bytes(4, "little") + b"\x7f" * 125_000 + b".",
    "references to one thing": b"\x80\x04N" + b"\x94" * 100_000 + b".",
    "a frame of a petabyte": b"\x80\x04\x95" + (2**50).to_bytes(8, "little") + b"N.",
    "text of a petabyte": b"\x80\x04\x8d" + (2**50).to_bytes(8, "little") + b"a.",
}


def write_archive(path: Path, pickled: bytes, **storages: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"x/data/{key.removeprefix('of_')}", data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_pickle_makes_is_bounded_by_its_size(tmp_path, bomb):
    path = tmp_path / "bad.ckpt"
    write_archive(path, BOMBS[bomb], of_0=b"")
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            read_checkpoint_file(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bomb", ["tuples of tuples", "lists in lists", "a list in itself", "a dict in itself"])
def test_containers_that_would_be_huge_if_they_were_written_are_refused(tmp_path, bomb):
    write_archive(tmp_path / "bad.ckpt", BOMBS[bomb])
    with pytest.raises(InputError, match="bad.ckpt"):
        read_checkpoint_file(tmp_path / "bad.ckpt")


def test_the_limits_leave_room_for_what_checkpoints_hold(tmp_path):
    content = {
        "figures": [float(number) for number in range(50_000)],
        "names": [f"class {number}" for number in range(10_000)],
        "optimizer": {number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)} for number in range(200)},
        "sizes": torch.zeros(3, 4).size(),
        "ordered": torch.nn.Linear(2, 2).state_dict(),
    }
    torch.save(content, tmp_path / "good.pt")
    found = read_checkpoint_file(tmp_path / "good.pt")
    assert found["figures"] == content["figures"]
    assert found["names"] == content["names"]
    assert found["optimizer"].keys() == content["optimizer"].keys()
    assert found["sizes"] == (3, 4)
    assert torch.equal(found["ordered"]["weight"].read(), content["ordered"]["weight"])


@pytest.mark.parametrize(("zipped", "change"), [(True, 1), (True, -1), (True, 4), (True, -4), (False, -1), (False, -4)])
def test_a_storage_of_another_length_than_is_told_is_refused(tmp_path, zipped, change):
    path = tmp_path / "x.pt"
    torch.save({"x": torch.arange(8.0)}, path, _use_new_zipfile_serialization=zipped)
    numbers = torch.arange(8.0).numpy().tobytes()
    altered = numbers + b"\0" * change if change > 0 else numbers[:change]
    if zipped:
        with zipfile.ZipFile(path) as archive:
            pickled = archive.read("x/data.pkl")
        write_archive(path, pickled, of_0=altered)
    else:
        path.write_bytes(path.read_bytes().replace(numbers, altered))
    with pytest.raises(InputError, match="x.pt"):
        read_torch_file(path)["x"].read()


def test_a_storage_that_many_tensors_share_is_no_larger_for_it(tmp_path):
    shared = torch.zeros(2**18)
    progress = {"step": 1, "ended": False, "losses": [], "best": 0.0, "worse": 0}
    training = {f"{index}": shared for index in range(200)}
    state = {"identity": {}, "state": {**progress, "training": training}}
    torch.save({"format": "vqgpt checkpoint", "version": 1, "kind": "gpt training", **state}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="larger than the file"):
        load_checkpoint(tmp_path / "x.pt", "gpt training", "")
