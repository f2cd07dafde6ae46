"""Reading checkpoints that nobody vouches for: no code in them runs, and what is damaged is refused."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_refused, run_here
from tests.peer_checkpoints import taming_state
from vqgpt.errors import InputError
from vqgpt.storage.checkpoint import read_checkpoint_file, read_tensors
from vqgpt.storage.stored_tensor import StoredTensor
from vqgpt.storage.torch_files import read_torch_file


class RunsOnLoading:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


HOSTILE = {
    "system": lambda: RunsOnLoading(os.system, "touch owned"),
    "touch": lambda: RunsOnLoading(Path.touch, Path("owned")),
    "eval": lambda: RunsOnLoading(eval, "open('owned', 'w')"),
    "exec": lambda: RunsOnLoading(exec, "open('owned', 'w')"),
    "open": lambda: RunsOnLoading(open, "owned", "w"),
    "nested": lambda: RunsOnLoading(map, RunsOnLoading(os.system, "touch owned"), [1]),
}


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("new_layout", [True, False])
def test_code_in_a_checkpoint_does_not_run_and_the_weights_load(here, attack, new_layout):
    content = {"callbacks": {"x": HOSTILE[attack]()}, "state_dict": taming_state()}
    torch.save(content, "model.ckpt", _use_new_zipfile_serialization=new_layout)
    outcome = run_here("vqgan", "import", "model.ckpt", "--out", "ours.pt")
    assert outcome.code == 0, outcome.err
    assert not Path("owned").exists()


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_bare_pickle_is_refused_and_does_not_run(here, attack):
    Path("bad.pt").write_bytes(pickle.dumps(HOSTILE[attack]()))
    assert_refused(run_here("vqgan", "info", "bad.pt"), 3, "bad.pt")
    assert not Path("owned").exists()


def test_a_class_in_place_of_the_weights_is_no_vqgan(here):
    torch.save({"state_dict": HOSTILE["system"](), "model": torch.nn.Linear(2, 2)}, "bad.pt")
    assert_refused(run_here("vqgan", "info", "bad.pt"), 3, "no VQ-GAN")
    assert not Path("owned").exists()


@pytest.mark.parametrize("new_layout", [True, False])
def test_tensors_are_what_was_saved(here, new_layout):
    shared = torch.randn(6, 5)
    tensors = {
        "shared": shared,
        "view": shared[1:4, ::2],
        "transposed": shared.T,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(4).half(),
        "bfloat16": torch.randn(4).bfloat16(),
        "long": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    torch.save(tensors, "t.pt", _use_new_zipfile_serialization=new_layout)
    found = read_torch_file(Path("t.pt"))
    for name, tensor in tensors.items():
        stored = found[name]
        assert isinstance(stored, StoredTensor)
        assert stored.shape == tensor.shape
        assert stored.dtype == tensor.dtype
        assert torch.equal(stored.read(), tensor.detach()), name


@pytest.mark.parametrize("layout", ["zip", "before torch 1.6", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(here, layout, kept):
    import safetensors.torch

    name = "model.safetensors" if layout == "safetensors" else "model.ckpt"
    if layout == "safetensors":
        safetensors.torch.save_file(taming_state(), name)
    else:
        torch.save(taming_state(), name, _use_new_zipfile_serialization=layout == "zip")
    data = Path(name).read_bytes()
    Path(name).write_bytes(data[: int(len(data) * kept)])
    assert_refused(run_here("vqgan", "import", name), 3, name)


@pytest.mark.parametrize("state", [{}, taming_state()])
@pytest.mark.parametrize("more", [b"\0", b"more"])
def test_bytes_after_the_last_tensor_of_an_old_file_are_refused(here, state, more):
    torch.save(state, "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_torch_file(Path("old.ckpt")).keys() == state.keys()
    with open("old.ckpt", "ab") as file:
        file.write(more)
    assert_refused(run_here("vqgan", "info", "old.ckpt"), 3, f"old.ckpt has {len(more)} bytes after its last tensor")


CLAIMS_A_PETABYTE = b"\x80\x04\x8e" + (2**50).to_bytes(8, "little") + b"x"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<html>not found</html>", b"\x80\x02N.", b"PK\x03\x04", CLAIMS_A_PETABYTE]
)
def test_a_file_of_something_else_is_refused(here, content):
    Path("bad.ckpt").write_bytes(content)
    assert_refused(run_here("vqgan", "info", "bad.ckpt"), 3, "bad.ckpt")


def test_other_archives_are_refused(here):
    with zipfile.ZipFile("texts.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    torch.save(taming_state(), "model.ckpt")
    with zipfile.ZipFile("model.ckpt") as source, zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    for name in ("texts.zip", "bomb.ckpt"):
        assert_refused(run_here("vqgan", "info", name), 3, name)
    Path("folder.ckpt").mkdir()
    assert_refused(run_here("vqgan", "info", "folder.ckpt"), 3, "folder.ckpt is a folder")


def test_a_tensor_that_claims_more_than_it_stores_is_refused_before_it_is_made(here):
    torch.save({"x": torch.zeros(1).expand(10**7, 10**7)}, "x.pt")
    stored = read_torch_file(Path("x.pt"))["x"]
    with pytest.raises(InputError, match="claims"):
        stored.read()


def zip_with_pickle(path: str, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)


NESTED_KEY = b"\x80\x02}" + b"".join([b")", b"\x85" * 10**6]) + b"K\x01s."
DOUBLED_KEY = b"\x80\x02}K\x01\x85" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
FAR_MEMO = b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b"."
MANY_BYTES = b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"."
MANY_ZEROS = b"\x80\x05\x96" + (2**42).to_bytes(8, "little") + b"."
WHOLE_SET = b"\x80\x04\x8f(K\x01\x85" + b"\x94h\x00\x86" * 3 + b"\x90."


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pickled", [NESTED_KEY, DOUBLED_KEY, FAR_MEMO, MANY_BYTES, MANY_ZEROS, WHOLE_SET])
def test_a_pickle_that_would_exhaust_the_machine_is_refused(here, pickled):
    zip_with_pickle("bad.ckpt", pickled)
    assert_refused(run_here("vqgan", "info", "bad.ckpt"), 3, "bad.ckpt")


@pytest.mark.timeout(60)
def test_dicts_that_are_met_in_many_places_count_in_each(here):
    inner = {f"k{index}": torch.zeros(1) for index in range(300)}
    for _ in range(3):
        inner = dict.fromkeys((f"k{index}" for index in range(300)), inner)
    torch.save(inner, "bad.ckpt")
    assert_refused(run_here("vqgan", "info", "bad.ckpt"), 3, "no VQ-GAN")


def test_tensors_whose_places_read_alike_count_each(here):
    shared = torch.zeros(10_000)
    torch.save({"a.b.c": shared, "a.b": {"c": shared}, "a": {"b.c": shared, "b": {"c": shared}}}, "bad.ckpt")
    with pytest.raises(InputError, match="claim to be larger"):
        read_tensors(read_checkpoint_file(Path("bad.ckpt")), Path("bad.ckpt"))


@pytest.mark.timeout(60)
def test_weights_that_claim_to_be_huge_are_refused_before_anything_is_made(here):
    state = taming_state(ch=32, ch_mult=(1, 1), attn=())
    wide = {
        name: torch.zeros(1).expand(*(8192 if size == 32 else size for size in tensor.shape))
        for name, tensor in state.items()
    }
    torch.save(wide, "wide.pt")
    assert_refused(run_here("vqgan", "import", "wide.pt"), 3, "wide.pt", "claims")
    levels = {f"encoder.down.{level}.block.0.conv1.weight": torch.zeros(1) for level in range(1500)}
    blocks = {f"encoder.down.0.block.{block}.conv1.weight": torch.zeros(1) for block in range(1500)}
    torch.save({**state, **levels, **blocks}, "deep.pt")
    assert_refused(run_here("vqgan", "info", "deep.pt"), 3, "deep.pt")


@pytest.mark.parametrize("change", [{"model": 3}, {"architecture": {}}, {"figures": None}, {"dataset": 7}])
def test_a_checkpoint_of_ours_that_lacks_parts_is_refused(pipeline, change):
    content = torch.load("runs/digits/vqgan.pt", weights_only=True)
    torch.save({**content, **change}, "bad.pt")
    assert_refused(run_here("vqgan", "info", "bad.pt"), 3, "bad.pt")


@pytest.mark.parametrize("field", ["channels", "ch_mult", "z_channels", "num_res_blocks"])
def test_a_checkpoint_of_ours_whose_weights_are_of_another_architecture_is_refused(pipeline, field):
    content = torch.load("runs/digits/vqgan.pt", weights_only=True)
    values = {"channels": 32_000, "ch_mult": [], "z_channels": -3, "num_res_blocks": 5}
    content["architecture"][field] = values[field]
    torch.save(content, "bad.pt")
    for command in (["vqgan", "info", "bad.pt"], ["tokenize", "--dataset", "digits", "--checkpoint-vae", "bad.pt"]):
        assert_refused(run_here(*command), 3, "bad.pt")
