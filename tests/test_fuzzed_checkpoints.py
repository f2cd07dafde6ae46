"""Changed checkpoints of both networks, of every layout: read as what they were, or refused with a line.

FUZZ_SECONDS=600 pytest tests/test_fuzzed_checkpoints.py changes each kind of file for ten minutes; FUZZ_SEED names what
it begins with. The path of a file that fails is told.
"""

import io
import itertools
import json
import os
import pickle
import pickletools
import random
import resource
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.peer_checkpoints import taming_state
from tests.test_export_model import save_gpt
from vqgpt.checkpoint import METADATA, save_checkpoint
from vqgpt.config.options import to_json
from vqgpt.config.vqgan import VQGANConfig
from vqgpt.errors import InputError, MissingDataError
from vqgpt.safetensors_files import read_safetensors
from vqgpt.stages.trained_gpt import load_gpt
from vqgpt.vqgan.checkpoint import KIND, load_vqgan
from vqgpt.vqgan.model import VQGAN

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.4"))  # for each kind of file
SEED = int(os.environ.get("FUZZ_SEED", "0"))
FEWEST = 20  # files of each kind
SLOWEST = 20  # seconds for a file, on a busy machine
MOST_MEMORY = 2**29  # bytes beyond what was in use
CPU = torch.device("cpu")
PROTECTED = ("gpt.pt", "gpt.safetensors", "vqgan.pt", "vqgan.safetensors", "taming.ckpt")
HEAD = ("format", "version", "kind")
ODD_NUMBERS = [-1, 0, 1, 2**16, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 0.5, float("nan"), 1e308]
ODD_VALUES = [
    *ODD_NUMBERS,
    None,
    True,
    "",
    "..",
    "../../x",
    "/tmp/x",
    "\ud800",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": {}},
    "x" * 9_999,
]


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
    gpt, told = load_gpt(path, CPU)
    return gpt.model.state_dict(), told, gpt.labels_seen


def read_vqgan(path: Path):
    model = load_vqgan(path, "x", CPU)
    return model.state_dict(), model.config


def equal(one, other) -> bool:
    same = one[0].keys() == other[0].keys() and all(torch.equal(value, other[0][key]) for key, value in one[0].items())
    return same and one[1:] == other[1:]


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, cut out, put in or repeated, often near either end, where the tables are."""
    for _ in range(chance.choice([1, 1, 2, 8])):
        reach = chance.choice([len(data), min(len(data), 2_000), min(len(data), 200)])
        start = chance.randrange(reach + 1)
        start = chance.choice([start, len(data) - start])
        length = chance.choice([0, 1, 1, 4, 8, 100])
        piece = chance.choice(
            [chance.randbytes(length), b"\xff" * length, bytes(length), data[start : start + length] * 2, b""]
        )
        kept = chance.choice([len(piece), length])
        data = data[:start] + piece + data[start + kept :]
    return data


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


def changed_values(content, chance: random.Random):
    """The same nested dicts and lists, but for one value, which is another, gone, or there twice."""
    content = json.loads(json.dumps(content)) if not has_tensors(content) else dict(content)
    place, node = content, content
    while isinstance(node, dict | list) and node and chance.random() < 0.9:
        place, key = node, chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
        if isinstance(node, dict):
            node = place[key] = dict(node)
    if place is not content or content:
        key = chance.choice(list(place) if isinstance(place, dict) else [*range(len(place))])
        if chance.random() < 0.1:
            del place[key]
        else:
            place[key] = chance.choice(ODD_VALUES)
    return content


def has_tensors(content) -> bool:
    return isinstance(content, dict) and any(
        isinstance(value, torch.Tensor) or has_tensors(value) for value in content.values()
    )


def signed(kind: str, content: dict, suffix: str):
    """What makes files of ours that hold other values, with digests and checksums that hold."""

    def change(_: bytes, chance: random.Random, path: Path) -> bytes:
        values = changed_values(content, chance)
        for name in ("architecture", "cache_description", "configuration"):
            if name in values and isinstance(values[name], dict) and chance.random() < 0.5:
                values[name] = changed_values(values[name], chance)
        model = values.get("model")
        if isinstance(model, dict) and chance.random() < 0.3 and model:
            name = chance.choice(list(model))
            odd = [torch.zeros(3), torch.zeros(1).expand(10**5, 10**5), torch.arange(9), "x", torch.full((), torch.nan)]
            values["model"] = {**model, name: chance.choice(odd if suffix == ".pt" else odd[:1])}
        try:
            save_checkpoint(path, kind, values)
        except Exception:  # what cannot be written needs no reader
            return b""
        return path.read_bytes()

    return change


def without_path(change):
    return lambda data, chance, path: change(data, chance)


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
        changes = [without_path(changed_bytes)]
        changes += [without_path(changed_archive)] * 2 if zipfile.is_zipfile(path) else []
        changes += [without_path(changed_header)] * 2 if path.suffix == ".safetensors" else []
        if path.stem in contents:
            changes += [signed(path.stem, contents[path.stem], path.suffix)] * 2
        found[path.name] = (path, read_gpt if path.stem == "gpt" else read_vqgan, path.name in PROTECTED, changes)
    return found


def says_it_is_ours(path: Path) -> bool:
    """False for a safetensors file whose header lost the mark of ours: it is then somebody's, who has no digest."""
    return path.suffix != ".safetensors" or METADATA in read_safetensors(path)[0]


class TooSlow(BaseException):
    """A file took too long: no reader takes this for a fault of the file."""


def too_slow(*_):
    raise TooSlow(SLOWEST)


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize(
    "name",
    ["gpt.pt", "gpt.safetensors", "vqgan.pt", "vqgan.safetensors", "taming.ckpt", "old.ckpt", "taming.safetensors"],
)
def test_a_changed_file_is_read_as_it_was_or_refused(files, name, tmp_path):
    path, read, is_protected, changes = files[name]
    data, expected = path.read_bytes(), read(path)
    chance = random.Random(f"{SEED} {name}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    usual = signal.signal(signal.SIGALRM, too_slow)
    outcomes = {"same": 0, "other": 0, "refused": 0}
    bad = tmp_path / f"bad{path.suffix}"
    end = time.monotonic() + SECONDS
    try:
        while sum(outcomes.values()) < FEWEST or time.monotonic() < end:
            change = chance.choice(changes)
            altered = change(data, chance, bad)
            bad.write_bytes(altered)
            signal.alarm(SLOWEST)
            try:
                found = read(bad)
                outcome = "same" if equal(found, expected) else "other"
            except (InputError, MissingDataError) as error:
                outcome, said = "refused", error.message
            finally:
                signal.alarm(0)
            outcomes[outcome] += 1
            assert outcome != "refused" or str(bad) in said, said
            by_chance = change is changes[0]
            assert outcome != "other" or not (by_chance and is_protected and says_it_is_ours(bad)), bad
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert used * (1024 if sys.platform == "linux" else 1) < MOST_MEMORY, (bad, used)
    except BaseException:
        print(f"the file is {bad}, of FUZZ_SEED={SEED}")
        raise
    finally:
        signal.signal(signal.SIGALRM, usual)
    print(outcomes)
    assert outcomes["refused"] > 0, outcomes
