"""Changed checkpoints of both networks, of every layout: read as what they were, or refused with a line.

FUZZ_SECONDS=600 pytest tests/test_fuzzed_checkpoints.py changes each kind of file for ten minutes.
"""

import io
import itertools
import json
import pickle
import pickletools
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.fuzzing import ODD_NUMBERS, REFUSED, SECONDS, changed_bytes, changed_directory, changed_values, fuzz
from tests.peer_checkpoints import taming_state
from tests.test_export_model import save_gpt
from vqgpt.gpt.checkpoint import load_gpt
from vqgpt.options.codec import to_json
from vqgpt.storage.checkpoint import METADATA, save_checkpoint
from vqgpt.storage.stored_tensor import read_safetensors
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import KIND, load_vqgan
from vqgpt.vqgan.model import VQGAN

CPU = torch.device("cpu")
PROTECTED = ("gpt.pt", "gpt.safetensors", "vqgan.pt", "vqgan.safetensors", "taming.ckpt")
HEAD = ("format", "version", "kind")


def small_vqgan() -> dict:
    """What a file of a small VQ-GAN of ours holds."""
    sizes = {"image_channels": 1, "channels": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_levels": (1,)}
    codes = {"z_channels": 4, "double_z": False, "n_embed": 8, "embed_dim": 4, "size": 16}
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig(**sizes, **codes))
    about = {"dataset": "digits", "configuration": {"seed": 0}, "figures": {"loss": 1.0}}
    return {"architecture": to_json(model.config), "model": model.state_dict(), **about}


def small_gpt(folder: Path) -> dict:
    save_gpt(folder / "g.pt", condition="class")
    content = torch.load(folder / "g.pt", weights_only=True)
    return {name: value for name, value in content.items() if name not in HEAD}


def read_gpt(path: Path):
    gpt = load_gpt(path, CPU)
    return gpt.model.state_dict(), gpt.description, gpt.labels_seen


def read_vqgan(path: Path):
    model = load_vqgan(path, "x", CPU)
    return model.state_dict(), model.config


def equal(one, other) -> bool:
    same = one[0].keys() == other[0].keys() and all(torch.equal(value, other[0][key]) for key, value in one[0].items())
    return same and one[1:] == other[1:]


def changed_pickle(pickled: bytes, chance: random.Random) -> bytes:
    """Instructions left out, repeated, put elsewhere, or with other arguments."""
    ends = [position for _, _, position in pickletools.genops(pickled)] + [len(pickled)]
    parts = [pickled[first:last] for first, last in itertools.pairwise(ends)]
    odd = [
        pickle.dumps(chance.choice(ODD_NUMBERS), 2)[2:-1],
        b"N",
        b"(",
        b")",
        b"}",
        b"]",
        b"R",
        b"\x81",
        b"Q",
        b"u",
        b"0",
        b"2",
    ]
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(len(parts))
        other = chance.choice(
            [[], [chance.choice(parts)], [parts[place]] * chance.choice([2, 1_000]), [chance.choice(odd)]]
        )
        parts[place : place + chance.choice([0, 1, 1])] = other
    return b"".join(parts)


def changed_archive(data: bytes, chance: random.Random) -> bytes:
    """An archive with checksums that hold, and another pickle or other storages in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    changed = chance.choice([0, 0, chance.randrange(len(members))])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, (name, content) in enumerate(members):
            if index == changed:
                content = (changed_pickle if name.endswith("data.pkl") else changed_bytes)(content, chance)
            archive.writestr(name, content)
    return buffer.getvalue()


def changed_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header, whose length holds."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if chance.random() < 0.5 and "vqgpt" in header.get("__metadata__", {}):
        about = json.loads(header["__metadata__"]["vqgpt"])
        header["__metadata__"]["vqgpt"] = json.dumps(changed_values(about, chance))
    else:
        header = changed_values(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def signed(kind: str, content: dict, path: Path):
    """What makes files of ours that hold other values, with digests and checksums that hold. It writes to `path`."""

    def change(_: bytes, chance: random.Random) -> bytes:
        values = changed_values(content, chance)
        for name in ("architecture", "cache_description", "configuration"):
            if name in values and isinstance(values[name], dict) and chance.random() < 0.5:
                values[name] = changed_values(values[name], chance)
        model = values.get("model")
        if isinstance(model, dict) and chance.random() < 0.3 and model:
            name = chance.choice(list(model))
            odd = [torch.zeros(3), torch.zeros(1).expand(10**5, 10**5), torch.arange(9), "x", torch.full((), torch.nan)]
            values["model"] = {**model, name: chance.choice(odd if path.suffix == ".pt" else odd[:1])}
        try:
            save_checkpoint(path, kind, values)
        except Exception:  # what cannot be written needs no reader
            return b""
        return path.read_bytes()

    return change


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By name: a file, what reads it, whether what it holds is protected by a checksum or digest, and changes of it."""
    folder = tmp_path_factory.mktemp("seeds")
    gpt, vqgan = small_gpt(folder), small_vqgan()
    state = taming_state(codes=8, ch_mult=(1, 1))
    for suffix in (".pt", ".safetensors"):
        save_checkpoint(folder / f"gpt{suffix}", "gpt", gpt)
        save_checkpoint(folder / f"vqgan{suffix}", KIND, vqgan)
    torch.save({"state_dict": state, "epoch": 3}, folder / "taming.ckpt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "taming.safetensors")
    contents = {"gpt": gpt, "vqgan": vqgan}
    found = {}
    for path in sorted(folder.glob("*.*")):
        if path.name == "g.pt":
            continue
        changes = [changed_bytes]
        changes += [changed_directory, changed_archive, changed_archive] if zipfile.is_zipfile(path) else []
        changes += [changed_header] * 2 if path.suffix == ".safetensors" else []
        if path.stem in contents:
            changes += [signed(path.stem, contents[path.stem], folder / f"signed{path.suffix}")] * 2
        found[path.name] = (path, read_gpt if path.stem == "gpt" else read_vqgan, path.name in PROTECTED, changes)
    return found


def says_it_is_ours(path: Path) -> bool:
    """False for a safetensors file whose header lost the mark of ours: it is then somebody's, who has no digest."""
    return path.suffix != ".safetensors" or METADATA in read_safetensors(path)[0]


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize(
    "name",
    ["gpt.pt", "gpt.safetensors", "vqgan.pt", "vqgan.safetensors", "taming.ckpt", "old.ckpt", "taming.safetensors"],
)
def test_a_changed_file_is_read_as_it_was_or_refused(files, name, tmp_path):
    path, read, is_protected, changes = files[name]
    expected, bad = read(path), tmp_path / f"bad{path.suffix}"

    def outcome(change):
        if equal(read(bad), expected):
            return "same"
        by_chance = change in (changed_bytes, changed_directory)
        assert not (by_chance and is_protected and says_it_is_ours(bad))
        return "other"

    outcomes = fuzz(name, bad, path.read_bytes(), changes, outcome)
    assert outcomes[REFUSED] > 0
