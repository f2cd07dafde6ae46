"""A token cache survives: kills at every disk operation and at random instants, full disks, signals, power cuts.

KILLS=200 runs so many random kills instead of 10, and kills before each disk operation instead of every seventh.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import description, files_of, write_cache
from tests.disk_operations import before_each_operation, named
from vqgpt.tokens import Split, find_faults, read_manifest
from vqgpt.tokens.reader import UNFINISHED
from vqgpt.tokens.store import all_files, from_document

KILLS = int(os.environ.get("KILLS", "10"))
ROOT = Path(__file__).parent.parent
NEVER = -1
EVERY = 1 if KILLS >= 200 else 7  # 7 meets every kind of operation: there are 6 to a file
TOKENIZE = ["tokenize", "--dataset", "digits", "--limit", "62", "--batch-size", "8", "--cache"]


@dataclass(frozen=True)
class Undisturbed:
    """What the command makes that nothing disturbs: its files, how many shards, and how long it takes."""

    files: dict[str, bytes]
    shards: int
    seconds: float


@pytest.fixture(scope="module")
def whole(finished_pipeline, commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    checkpoint = finished_pipeline / "runs/digits/vqgan.pt"
    arguments = [*TOKENIZE, "whole.zarr", "--checkpoint-vae", str(checkpoint)]
    answer = commands.run(folder=str(folder), arguments=arguments)
    assert answer["code"] == 0, answer["err"]
    shards = (folder / "calls.log").stat().st_size
    return Undisturbed(files_of(folder / "whole.zarr"), shards, answer["seconds"])


def assert_committed_is_whole(path: Path) -> int:
    """Everything that the manifest names is on disk as it was written; returns the number of shards."""
    if not (path / "zarr.json").exists():
        return 0
    faults = [fault for fault in find_faults(path) if "does not belong" not in fault and fault != UNFINISHED]
    assert faults == []
    return sum(map(len, read_manifest(path).shards.values()))


def test_a_kill_before_any_disk_operation_loses_at_most_the_shard_in_hand(here, commands):
    undisturbed = commands.run(kill_before=NEVER, cache="whole.zarr")
    assert undisturbed["code"] == 0
    whole, shards, operations = files_of(Path("whole.zarr")), commands.shards_begun(), undisturbed["operations"]
    assert {operation.split()[0] for operation in operations} == {
        "mkdir",
        "open",
        "write",
        "fsync",
        "replace",
        "unlink",
    }
    for point in ("write train/codes/c/1/0/0/.0.partial", "fsync .zarr.json.partial", "replace .zarr.json.partial"):
        assert point.replace(" ", " whole.zarr/") in operations
    for place in range(0, len(operations), EVERY):
        answer = commands.run(kill_before=place, cache="killed.zarr")
        operation = answer["operations"][-1]
        assert answer["code"] == -signal.SIGKILL
        assert_committed_is_whole(Path("killed.zarr"))
        assert commands.run(kill_before=NEVER, cache="killed.zarr")["code"] == 0, operation
        assert files_of(Path("killed.zarr")) == whole, operation
        assert commands.shards_begun() <= shards + 1, operation
        shutil.rmtree("killed.zarr")
    assert not list(Path().glob(".*.lock"))


def test_random_kills_of_the_command_end_in_the_same_bytes(pipeline, commands, whole):
    assert whole.shards == 16
    generator = np.random.default_rng(5)
    path, kills, committed, finished = Path("killed.zarr"), 0, 0, 0
    for _ in range(KILLS):
        after = float(generator.uniform(0, whole.seconds))
        answer = commands.run(arguments=[*TOKENIZE, str(path)], signal=signal.SIGKILL, after=after)
        assert answer["code"] in (0, -signal.SIGKILL), answer["err"]
        kills += 1
        now_committed = assert_committed_is_whole(path)
        assert now_committed >= committed
        committed = now_committed
        if answer["code"] == 0:  # it was done before its kill: once more from the start
            assert files_of(path) == whole.files
            assert commands.shards_begun() <= whole.shards + kills
            shutil.rmtree(path)
            committed, kills, finished = 0, 0, finished + 1
    assert commands.run(arguments=[*TOKENIZE, str(path)])["code"] == 0
    assert files_of(path) == whole.files
    assert commands.shards_begun() <= whole.shards + kills


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drops_the_shard_in_hand_and_the_command_continues(pipeline, commands, whole, number, code):
    for part in (0.6, 0.9):
        after = part * whole.seconds
        answer = commands.run(arguments=[*TOKENIZE, "s.zarr"], signal=number, after=after)
        assert answer["code"] in (code, -number, 0), answer["err"]  # -number: before it began to write
        if answer["code"] == code and "interrupted" in answer["err"]:
            assert "run the same command again" in answer["err"]
        assert not list(Path("s.zarr").rglob("*.partial"))
        assert_committed_is_whole(Path("s.zarr"))
    assert commands.run(arguments=[*TOKENIZE, "s.zarr"])["code"] == 0
    assert files_of(Path("s.zarr")) == whole.files


def test_work_that_does_not_look_up_is_cut_short():
    code = (
        "import time\nfrom vqgpt.runtime.process import stop_on_signals\n"
        "with stop_on_signals(0.1, 'all is saved'):\n    print('ready', flush=True)\n    while True: time.sleep(0.01)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "InterruptedRun: interrupted by SIGTERM; all is saved" in err


def test_a_full_disk_at_any_operation_leaves_what_was_committed_and_can_be_continued(tmp_path):
    what = description(splits=(Split(name="train", rows=40),))
    whole = files_of(write_cache(tmp_path / "whole.zarr", what))
    path, fail_at, failed = tmp_path / "c.zarr", 0, True
    while failed:
        count = 0

        def act(operation):
            nonlocal count
            if operation[0] in ("mkdir", "open", "write", "fsync", "replace"):
                count += 1
                if count == fail_at + 1:  # noqa: B023
                    raise OSError(errno.ENOSPC, "No space left on device", named(operation, path))

        failed = False
        try:
            with before_each_operation(act):
                write_cache(path, what)
        except OSError:
            failed = True
        assert not list(path.rglob("*.partial"))
        assert_committed_is_whole(path)
        write_cache(path, what)
        assert files_of(path) == whole, fail_at
        shutil.rmtree(path)
        fail_at += EVERY
    assert fail_at > 100


@pytest.mark.parametrize(("outgrows", "committed"), [("zarr.json", range(4, 16)), ("train/codes/c/0/0/0/0", [0])])
def test_a_limit_on_file_sizes_is_exit_code_5_and_keeps_what_was_committed(
    pipeline, commands, whole, outgrows, committed
):
    """It stands for a full disk. The manifest outgrows half of its size half-way, and a shard at once."""
    limit = len(whole.files[outgrows]) // 2
    answer = commands.run(arguments=[*TOKENIZE, "x.zarr"], file_limit=limit)
    assert answer["code"] == 5, answer["err"]
    assert "no space left to write x.zarr/" in answer["err"]
    assert "Traceback" not in answer["err"]
    assert assert_committed_is_whole(Path("x.zarr")) in committed
    assert not list(Path("x.zarr").rglob("*.partial"))
    assert commands.run(arguments=[*TOKENIZE, "x.zarr"])["code"] == 0
    assert files_of(Path("x.zarr")) == whole.files


class DiskModel:
    """What would be left after a power cut: only what was flushed, in an order that we do not choose."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flushed_data: set[Path] = set()
        self.flushed_names: set[Path] = set()
        self.names_in_memory: set[Path] = set()
        self.manifests = 0
        self.root_is_flushed = False
        for path in folder.parent.rglob("*"):  # a process that was killed may have left names that nobody flushed
            self.names_in_memory.add(path)
            self.flushed_data |= {path} if path.is_file() else set()

    def happens(self, operation) -> None:
        what, path, target = operation
        if what in ("mkdir", "open"):
            self.names_in_memory.add(path)
        elif what == "write":
            self.flushed_data.discard(path)
        elif what == "fsync":
            self.flushed_data.add(path)
            self.flushed_names |= {name for name in self.names_in_memory if name.parent == path}
            self.root_is_flushed |= path == self.folder
        elif what == "replace":
            if target == self.folder / "zarr.json":
                self.check_commit(path)
            self.names_in_memory.add(target)
            self.flushed_names.discard(target)
            self.flushed_data = (
                self.flushed_data | {target} if path in self.flushed_data else self.flushed_data - {target}
            )

    def check_commit(self, document: Path) -> None:
        assert document in self.flushed_data
        self.manifests += 1
        self.root_is_flushed = False
        for key in all_files(from_document(document.read_bytes(), "trace")):
            file = self.folder / key
            assert file in self.flushed_data, f"{key} is named and its bytes may be lost"
            for name in (file, *file.parents):
                if name == self.folder.parent:
                    break
                assert name in self.flushed_names, f"{key} is named and the name {name} may be lost"


@pytest.mark.parametrize("done_before", [0, 2])
def test_the_manifest_names_only_what_a_power_cut_would_leave(tmp_path, done_before):
    what, path = description(), tmp_path / "new" / "c.zarr"
    if done_before:
        write_cache(path, what, only_first=done_before)
    disk = DiskModel(path)
    with before_each_operation(disk.happens):
        write_cache(path, what)
    assert disk.manifests == (5 - done_before if done_before else 1 + 5)
    assert disk.root_is_flushed


def test_the_model_of_a_power_cut_notices_a_missing_fsync(tmp_path):
    disk = DiskModel(tmp_path / "c.zarr")
    forgetful = before_each_operation(lambda operation: operation[0] == "fsync" or disk.happens(operation))
    with forgetful, pytest.raises(AssertionError):
        write_cache(tmp_path / "c.zarr", description())
