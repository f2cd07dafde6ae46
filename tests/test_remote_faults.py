"""Token caches on an object store whatever fails on the way and whoever is killed."""

import json
import os
import signal
import threading

import numpy as np
import pytest

from tests import remote_child
from tests.conftest import assert_refused, files_of, run_here
from tests.s3_server import Fault
from vqgpt.tokens import TokenCache, object_store

pytest_plugins = ["tests.remote_fixtures"]


@pytest.mark.parametrize("first", range(4))
def test_a_killed_process_loses_nothing_and_the_next_one_ends_in_the_same_bytes(
    start, server, url, objects, whole, is_free, first
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
    assert is_free()


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
    server.faults.append(fault)
    bucket = url.rpartition("/")[0]  # of the cache, and of its lock
    with monkeypatch.context() as impatient:
        impatient.setattr(object_store, "RETRY_SECONDS", 0.3)
        impatient.setattr(object_store, "IMPATIENT_RETRY_SECONDS", 0.3)
        impatient.setattr("vqgpt.api.tokenize.run", lambda *_: remote_child.fill(url))
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
