"""A training that is killed at any disk operation, or meets a full disk: the same command ends in the same files.

KILLS=200 tries every operation of each training, instead of every 23rd.
"""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, description, write_cache
from tests.test_crashes import KILLS
from tests.test_interruption import lines_of, without_rates
from tests.test_vqgan_runs import SMALL

EVERY = 1 if KILLS >= 200 else 23
OFTEN = ["--n-epochs", "2", "--sample-and-save-freq", "1", "--out", "s/x.pt"]
TRAININGS = {
    "gpt": ["train", "--cache", "../a.zarr", *TINY_GPT, *OFTEN],
    "vqgan": ["vqgan", "train", "--dataset", "digits", *SMALL, *OFTEN],
    "streamed": ["vqgan", "train", "--dataset", "digits", *SMALL, *OFTEN, "--stream", "--augment", "crop"],
}


def result_of(folder: Path) -> dict[str, object]:
    """What a training left: weights and figures of its checkpoints, metrics without rates, and other files as bytes."""
    left = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".pt":
            content = torch.load(path, weights_only=True)
            left[path.name] = (content["figures"], {name: value.tolist() for name, value in content["model"].items()})
        else:
            records = lines_of(path) if path.suffix == ".jsonl" else path.read_bytes()
            left[path.name] = without_rates(records) if path.suffix == ".jsonl" else records
    return left


@pytest.fixture(params=TRAININGS)
def training(request, here):
    """A command whose training is over in the folder `whole`, to be disturbed in the folder `cut`."""
    write_cache(Path("a.zarr"), description())
    for folder in ("whole", "cut"):
        Path(folder).mkdir()
    return TRAININGS[request.param]


@pytest.mark.parametrize(("cut_off", "code"), [("kill_before", -signal.SIGKILL), ("full_before", 5)])
def test_being_cut_off_at_any_disk_operation_costs_nothing(commands, training, here, cut_off, code):
    whole, cut = here / "whole", here / "cut"
    answer = commands.run(folder=str(whole), arguments=training)
    assert answer["code"] == 0, answer["err"]
    expected = result_of(whole / "s")
    operations, place = [], 0
    while (answer := commands.run(folder=str(cut), arguments=training, **{cut_off: place}))["code"]:
        operations.append(answer["operations"][-1])
        assert answer["code"] == code, (operations[-1], answer["err"])
        answer = commands.run(folder=str(cut), arguments=training)
        assert answer["code"] == 0, (operations[-1], answer["err"])
        assert result_of(cut / "s") == expected, operations[-1]
        shutil.rmtree(cut / "s")
        place += EVERY
    assert len(operations) * EVERY > 50
