"""Token caches on an object store whatever fails on the way and whoever is killed, and the lease of who writes one."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from tests import remote_child
from tests.conftest import assert_refused, files_of, run_here
from tests.s3_server import Fault, wait_until
from vqgpt.errors import InputError
from vqgpt.tokens import TokenCache, lease, object_store
from vqgpt.tokens.lease import Lease

pytest_plugins = ["tests.remote_fixtures"]


@pytest.mark.parametrize("first", range(4))
def test_a_killed_process_loses_nothing_and_the_next_one_ends_in_the_same_bytes(
    start, server, url, objects, whole, first
):
    """Each process gets four changes further than the one before; the four starts meet every change there is."""
    runs = []

    def kill():
        runs[-1].kill()
        return "drop" if len(runs) % 2 else None  # the change is lost, or only its answer

    while not runs or runs[-1].exitcode:
        server.faults[:] = [Fault(kill, "PUT|DELETE", after=first + 4 * len(runs), times=1)]
        runs.append(start(url, server))
        runs[-1].join()
        assert runs[-1].exitcode in (0, -signal.SIGKILL)
        if (objects / "zarr.json").exists():
            manifest = json.loads((objects / "zarr.json").read_text())["attributes"]["vqgpt"]
            for number, shard in manifest["shards"]["train"].items():
                for name, rest in {"codes": "/0/0/0", "labels": "", "source_index": ""}.items():
                    size = (objects / f"train/{name}/c/{number}{rest}").stat().st_size
                    assert size == shard[name]["bytes"]
    assert len(runs) > 3
    assert files_of(objects) == whole
    assert files_of(objects.parent) == {f"c.zarr/{key}": data for key, data in whole.items()}


def test_a_lease_is_renewed_and_its_objects_do_not_pile_up(url, objects, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with Lease(url) as held:
        held.take()
        wait_until(lambda: held.number > 3)
        held.check()
        assert len(files_of(objects.parent)) <= 2
    assert files_of(objects.parent) == {}


def end_its_lease(objects: Path) -> None:
    """As if its holder had been on another machine, and silent for an hour."""
    for file in (objects.parent / ".c.zarr.lock").iterdir():
        claim = lease.Claim(**json.loads(file.read_bytes()))
        claim.local_file.unlink()
        os.utime(file, (0, file.stat().st_mtime - 3600))


def test_a_run_that_died_elsewhere_blocks_until_its_lease_has_ended(start, server, url, objects, whole, monkeypatch):
    process = None
    server.faults.append(Fault(lambda: process.kill(), "PUT", "train/codes/c/1", times=1))
    process = start(url, server)
    process.join()
    (file,) = (objects.parent / ".c.zarr.lock").iterdir()
    lease.Claim(**json.loads(file.read_bytes())).local_file.rename(objects.parent / "elsewhere")
    with pytest.raises(InputError, match="is being written"):
        remote_child.fill(url)
    (objects.parent / "elsewhere").rename(lease.Claim(**json.loads(file.read_bytes())).local_file)
    end_its_lease(objects)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    remote_child.fill(url)
    assert files_of(objects) == whole


def test_a_run_that_slept_through_its_lease_commits_nothing_more(start, server, url, objects, whole, monkeypatch):
    asleep, goes_on = threading.Event(), threading.Event()

    def stop_it():
        os.kill(process.pid, signal.SIGSTOP)
        asleep.set()
        goes_on.wait()

    process = None
    server.faults.append(Fault(stop_it, "PUT", "train/labels/c/1", times=1))
    process = start(url, server)
    asleep.wait()
    end_its_lease(objects)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    remote_child.fill(url)
    assert files_of(objects) == whole
    times = {key: (objects / key).stat().st_mtime_ns for key in whole}
    os.kill(process.pid, signal.SIGCONT)
    goes_on.set()
    process.join()
    assert process.exitcode in (3, 4)  # the lease is another's, or the store gave the connection up meanwhile
    changed = {key for key, time in times.items() if (objects / key).stat().st_mtime_ns != time}
    assert changed <= {"train/labels/c/1", "train/source_index/c/1"}  # the shard in hand, and no manifest
    assert files_of(objects) == whole


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(503, times=3)],
        [Fault(500, "GET", "list-type", times=2), Fault(500, "PUT", "zarr.json", times=2)],
        [Fault("drop", times=3, after=4)],
        [Fault("drop", "PUT", "codes", times=2)],
        [Fault("lose", "PUT", "lock", times=1)],
        [Fault("lose", "PUT", "c.zarr/zarr.json", times=2)],
        [Fault("cut", "GET", "c.zarr/zarr.json", times=2), Fault("cut", "GET", "codes", times=2)],
        [Fault("lose", "DELETE", times=1)],
    ],
    ids=["503", "500", "drop", "drop-put", "lost-lock", "lost-manifest", "cut-get", "lost-delete"],
)
def test_what_fails_on_the_way_is_made_again(server, url, objects, whole, faults):
    server.faults.extend(faults)
    remote_child.fill(url)
    assert files_of(objects) == whole
    codes = TokenCache(url).read_split("train").codes
    server.faults[:] = [Fault("cut", "GET", "codes/c", times=2), Fault(503, "GET", "labels", times=2)]
    np.testing.assert_array_equal(TokenCache(url).read_split("train").codes, codes)
    assert all(fault.times == 0 for fault in server.faults + faults)


def test_a_server_that_falls_silent_is_asked_again(server, url, objects, whole, monkeypatch):
    monkeypatch.setattr(object_store, "SILENCE_SECONDS", 0.2)
    awake = threading.Event()
    server.faults.append(Fault(lambda: awake.wait() and None, "GET", "c.zarr/zarr.json", times=1))
    remote_child.fill(url)
    awake.set()
    assert files_of(objects) == whole


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault(503, "PUT", "train/codes/c/1"), 4, ["503", "SlowDown", "same command again"]),
        (Fault("drop", "PUT", "train/codes/c/1"), 4, ["same command again"]),
        (Fault(403, "PUT", "train/codes/c/1"), 4, ["refuses access", "AccessDenied", "AWS_ACCESS_KEY_ID"]),
        (Fault(507, "PUT", "train/codes/c/1"), 5, ["is full", "XMinioStorageFull", "make room"]),
        (Fault(403), 4, ["refuses access"]),
    ],
    ids=["503", "drop", "403", "507", "403-all"],
)
def test_what_fails_for_good_is_one_error_and_the_same_command_continues(
    server, url, objects, whole, monkeypatch, fault, code, words
):
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.3)
    monkeypatch.setattr(object_store, "IMPATIENT_RETRY_SECONDS", 0.3)
    monkeypatch.setattr("vqgpt.stages.tokenize.run", lambda *_: remote_child.fill(url))
    server.faults.append(fault)
    bucket = url.rpartition("/")[0]  # of the cache, and of its lock
    assert_refused(run_here("tokenize", "--dataset", "digits", "--cache", url), code, bucket, *words)
    if (objects / "zarr.json").exists():
        assert len(json.loads((objects / "zarr.json").read_text())["attributes"]["vqgpt"]["shards"]["train"]) == 1
    server.faults.clear()
    remote_child.fill(url)
    assert files_of(objects) == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_whose_server_is_silent(start, server, url, objects, whole, number, code):
    silent, awake = threading.Event(), threading.Event()

    def fall_silent():
        silent.set()
        awake.wait()

    server.faults.append(Fault(fall_silent, "PUT", "train/codes/c/1", times=1))
    process = start(url, server, seconds_to_leave=0.1)
    silent.wait()
    os.kill(process.pid, number)
    process.join()
    awake.set()
    assert process.exitcode == code
    server.faults.clear()
    remote_child.fill(url)
    assert files_of(objects) == whole


def test_a_store_that_ignores_conditions_is_refused(server, url):
    server.faults.append(Fault("deaf", "PUT"))
    with Lease(url) as lock, pytest.raises(InputError, match="does not heed If-None-Match"):
        lock.take()


def test_a_lease_that_is_no_claim_of_ours_is_left_alone(url, objects):
    folder = objects.parent / ".c.zarr.lock"
    folder.mkdir(parents=True)
    hostile = json.dumps({"holder": "me", "run": "", "nonce": "../../thesis"})
    for content in ("", "[]", hostile):
        (folder / "000000000001").write_text(content)
        with Lease(url) as lock, pytest.raises(InputError, match="written by another process"):
            lock.take()
