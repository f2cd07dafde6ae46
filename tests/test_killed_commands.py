"""A kill or a full disk at any disk operation of a command: the same command ends in the same bytes, and alone.

KILLS=50 tries so many places of each command instead of a few. `test_crashes` does the same to `tokenize`.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.peer_checkpoints import taming_state

KILLS = int(os.environ.get("KILLS", "10"))
PLACES = KILLS if KILLS >= 50 else 2
NEVER = -1
pytestmark = pytest.mark.timeout(max(300, 60 * PLACES))

WITH_VQGAN = ["--checkpoint-vae", "{home}/runs/digits/vqgan.pt"]
WITH_GPT = ["--checkpoint-gpt", "{home}/runs/digits/gpt.pt"]
SAMPLES = "{home}/runs/digits/samples.zarr"
RENDER = ["render", SAMPLES, *WITH_VQGAN, "--out"]
EXPORT = ["cache", "export", SAMPLES, "--out"]
COMMANDS = {
    "sample": ["sample", *WITH_GPT, *WITH_VQGAN, "--num-samples", "20", "--out", "s.zarr"],
    "render a sheet": [*RENDER, "x.png"],
    "render an npz": [*RENDER, "x.npz"],
    "render a folder": [*RENDER, "x"],
    "render a tree": [*RENDER, "x", "--format", "tree"],
    "export to transformers": ["export", *WITH_GPT, "x"],
    "export a GPT": ["export", *WITH_GPT, "x.safetensors", "--to", "safetensors"],
    "export a VQ-GAN": ["export", *WITH_VQGAN, "x.safetensors", "--to", "safetensors"],
    "cache export to npy": [*EXPORT, "x"],
    "cache export to npz": [*EXPORT, "x.npz", "--format", "npz"],
    "cache export to bin": [*EXPORT, "x", "--format", "bin"],
    "cache export to webdataset": [*EXPORT, "x", "--format", "webdataset"],
    "cache import": ["cache", "import", "{inputs}/rar.jsonl", "--cache", "x.zarr"],
    "cache preview": ["cache", "preview", "{home}/cache/digits.zarr", *WITH_VQGAN, "--out", "x.png"],
    "cache verify --repair": ["cache", "verify", "x.zarr", "--repair", *WITH_VQGAN],
    "score": ["score", SAMPLES, *WITH_GPT, "--out", "x.csv"],
    "vqgan import": ["vqgan", "import", "{inputs}/taming.pt", "--out", "x.pt"],
    "vqgan reconstruct": ["vqgan", "reconstruct", "--dataset", "digits", *WITH_VQGAN, "--out", "x.png"],
}
REPLACING = ["render a tree", "export to transformers", "cache import", "score"]


@pytest.fixture(scope="module")
def inputs(finished_pipeline, commands, tmp_path_factory):
    """A folder with what the commands read that the pipeline does not make: look, do not touch."""
    folder = tmp_path_factory.mktemp("inputs")
    codes = np.random.default_rng(0).integers(0, 1024, (40, 16)).tolist()
    lines = [json.dumps({"class_id": row % 10, "tokens": tokens}) + "\n" for row, tokens in enumerate(codes)]
    (folder / "rar.jsonl").write_text("".join(lines))
    torch.save(taming_state(), folder / "taming.pt")
    tokenize = ["tokenize", "--dataset", "digits", "--limit", "40", "--cache", str(folder / "x.zarr")]
    vqgan = str(finished_pipeline / "runs/digits/vqgan.pt")
    assert commands.run(folder=str(folder), arguments=[*tokenize, "--checkpoint-vae", vqgan])["code"] == 0
    for file in ("train/codes/c/1/0/0/0", "test/labels/c/0"):
        (folder / "x.zarr" / file).write_bytes(b"damaged")
    return folder


@pytest.fixture
def words(finished_pipeline, inputs):
    """The words of one of COMMANDS."""

    def of(name):
        return [word.format(home=finished_pipeline, inputs=inputs) for word in COMMANDS[name]]

    return of


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the content of files, None for folders."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items() if name != "calls.log"}


def new_folder(before: Path) -> Path:
    """A folder of its own for one try, the current one from now on."""
    folder = before.with_name("try")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)
    os.chdir(folder)
    return folder


def some(count, places):
    """So many numbers below `count`, evenly spaced, the last among them."""
    return np.unique(np.linspace(0, count - 1, places + 1)[1:].round().astype(int)).tolist()


def disturb(commands, arguments, before):
    """Disturb the command at places from its first disk operation to its last, each time in a copy of `before`."""
    folder = new_folder(before)
    undisturbed = commands.run(arguments=arguments, kill_before=NEVER)
    assert undisturbed["code"] == 0, undisturbed["err"]
    whole, operations = tree(folder), undisturbed["operations"]
    assert not [name for name in whole if ".partial" in name or name.endswith((".lock", ".old"))]
    kills = [("kill_before", place) for place in some(len(operations), PLACES)]
    full = [("full_before", place) for place in some(len(operations) - 1, PLACES if PLACES > 2 else 1)]
    for disturbance, place in [*kills, *full]:
        folder = new_folder(before)
        answer = commands.run(arguments=arguments, **{disturbance: place})
        where = f"{disturbance} {place} of {len(operations)}, {answer['operations'][place]}: {answer['err']}"
        if disturbance == "kill_before":
            assert answer["code"] == -signal.SIGKILL, where
        else:
            assert answer["code"] in (0, 5), where
            assert "Traceback" not in answer["err"]
            assert not list(folder.rglob("*.partial")), where
        if answer["code"]:  # else nothing took space from there on
            again = commands.run(arguments=arguments)
            assert again["code"] == 0, f"{where}; then {again['err']}"
        assert tree(folder) == whole, where
    print(f"killed at {len(kills)}, full at {len(full)} of {len(operations)} places: {' '.join(arguments)}")


@pytest.fixture
def before(inputs, here):
    """The folder in which a command begins: one with a damaged cache."""
    folder = here / "before"
    shutil.copytree(inputs / "x.zarr", folder / "x.zarr")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_what_disturbs_a_command_is_made_up_for_by_the_same_command(commands, words, before, name):
    if name == "cache import":
        shutil.rmtree(before / "x.zarr")
    disturb(commands, words(name), before)


@pytest.mark.parametrize("name", REPLACING)
def test_and_so_it_is_where_a_result_is_replaced(commands, words, before, name):
    if name != "cache import":
        os.chdir(before)
        other = ["--rows", "3:9"] if name.startswith("render") else []
        assert commands.run(arguments=[*words(name), *other])["code"] == 0
    disturb(commands, [*words(name), "--overwrite"], before)


def test_what_a_killed_run_has_made_is_replaced_by_the_same_command_alone(commands, words, before):
    os.chdir(before)
    score = words("score")
    last = len(commands.run(arguments=score, kill_before=NEVER)["operations"]) - 1
    whole = Path("x.csv").read_bytes()
    Path("x.csv").unlink()
    assert commands.run(arguments=score, kill_before=last)["code"] == -signal.SIGKILL
    assert Path("x.csv").read_bytes() == whole
    other = commands.run(arguments=[*score, "--split", "samples"])
    assert other["code"] == 2, other["err"]
    assert "x.csv exists" in other["err"]
    assert commands.run(arguments=score)["code"] == 0
    assert not Path(".x.csv.lock").exists()
    assert commands.run(arguments=score)["code"] == 2
