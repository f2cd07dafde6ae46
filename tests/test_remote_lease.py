"""The lease on a real server: frozen holders, dead ones, odd clocks, odd leases, stores with fewer means."""

import json
import os
import signal
import threading
import uuid

import pytest

from tests import remote_child
from tests.conftest import files_of
from tests.s3_server import Fault, wait_until
from vqgpt.errors import InputError
from vqgpt.tokens import lease, object_store, remove_cache
from vqgpt.tokens.lease import Claim, Lease, local_file

pytest_plugins = ["tests.remote_fixtures"]


@pytest.fixture
def short(monkeypatch):
    """Leases of other runs end soon; our own, whose constants other processes do not see, are renewed as ever."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)


@pytest.fixture
def locks(objects):
    """The folder of the lease's objects."""
    return objects.parent / ".c.zarr.lock"


def newest(locks):
    return max(locks.iterdir())


def claim_in(file) -> Claim:
    return Claim(**json.loads(file.read_bytes()))


def test_it_is_renewed_and_its_objects_do_not_pile_up(url, locks, is_free, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with Lease(url) as held:
        held.take()
        wait_until(lambda: int(newest(locks).name) > 3)
        held.check()
        assert len(list(locks.iterdir())) <= 2
        number = int(newest(locks).name)
    assert is_free()
    with Lease(url) as held:
        held.take()
        assert int(newest(locks).name) > number + 1  # numbers go on


MOMENTS = {
    "putting a shard": (Fault("", "PUT", "train/labels/c/1", times=1), True),
    "putting a manifest": (Fault("", "PUT", "c.zarr/zarr.json", times=1, after=2), True),
    "putting the first manifest": (Fault("", "PUT", "c.zarr/zarr.json", times=1), True),
    "renewing, or giving back": (Fault("", "PUT", "lock", times=1, after=2), True),
    **{
        f"after look {look}": (Fault("", "GET", "lock/0", times=1, after=look), False)  # the answer has been sent
        for look in range(1, 7)
    },
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_frozen_holder_wakes_and_changes_nothing(
    start, server, url, objects, whole, is_free, short, tmp_path, moment
):
    asleep, goes_on = threading.Event(), threading.Event()
    fault, waits = MOMENTS[moment]

    def freeze():
        os.kill(process.pid, signal.SIGSTOP)
        asleep.set()
        return goes_on.wait() and None if waits else None

    process = None
    server.faults.append(Fault(freeze, fault.method, fault.path, times=1, after=fault.after))
    process = start(url, server, err=tmp_path / "err")
    asleep.wait()
    remote_child.fill(url)
    assert files_of(objects) == whole
    times = {key: (objects / key).stat().st_mtime_ns for key in whole}
    assert is_free()
    with Lease(url) as third:  # whose lease the first is not to delete
        third.take()
        os.kill(process.pid, signal.SIGCONT)
        goes_on.set()
        process.join()
        third.check()
        if moment != "renewing, or giving back":  # by then all is written
            assert process.exitcode == 3
            assert f"this run did not renew its lease on {url} in time" in (tmp_path / "err").read_text()
    assert {key: (objects / key).stat().st_mtime_ns for key in whole} == times
    assert is_free()


def test_who_was_overtaken_deletes_nothing_and_puts_nothing(url, objects, short):
    with Lease(url) as first, Lease(url) as second:
        first.take()
        remote_child.fill(url.with_name("d.zarr"))
        second.take()
        before = files_of(objects.parent)
        for _ in range(2):
            with pytest.raises(InputError, match="did not renew its lease"):
                first.check()
            first.release()
            second.check()
        with pytest.raises(InputError, match="did not renew its lease"):
            remove_cache(url.with_name("d.zarr"), first.check)
        assert files_of(objects.parent) == before


def test_a_manifest_that_is_on_its_way_replaces_no_newer_one(url, objects, short):
    """Two holders, each of which believes in itself: the store decides."""
    first = object_store.ObjectStore(url)
    first.write("zarr.json", b"1")
    second = object_store.ObjectStore(url)
    second.write("zarr.json", b"2")
    with Lease(url) as lock:
        first.check_may_write = lock.check
        with pytest.raises(InputError, match="did not renew its lease"):
            first.write("zarr.json", b"11")
    assert (objects / "zarr.json").read_bytes() == b"2"
    second.write("zarr.json", b"22")


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_dead_lease_ends_whatever_the_clock_of_the_store_says(
    start, server, url, objects, locks, whole, monkeypatch, hours
):
    process = None
    server.faults.append(Fault(lambda: process.kill(), "PUT", "train/codes/c/1", times=1))
    process = start(url, server)
    process.join()
    (file,) = locks.iterdir()
    os.utime(file, (0, file.stat().st_mtime + hours * 3600))
    claim = claim_in(file)
    local_file(claim).unlink()  # it ran elsewhere
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    told = []
    with Lease(url, report=told.append) as lock:
        lock.take()
    assert [event.text for event in told] == [
        f"{claim.holder} has the lease of {url}; if it has died, its lease ends in 0 s: waiting"
    ]
    remote_child.fill(url)
    assert files_of(objects) == whole


def test_what_died_on_this_machine_is_overtaken_at_once(start, server, url, objects, whole):
    process = None
    server.faults.append(Fault(lambda: process.kill(), "PUT", "train/codes/c/1", times=1))
    process = start(url, server)
    process.join()
    told = []
    with Lease(url, report=told.append) as lock:
        lock.take()
    assert not told
    remote_child.fill(url)
    assert files_of(objects) == whole


def test_the_lease_of_an_older_version_is_understood(server, url, locks, monkeypatch):
    """It wrote the same claims, and deleted the last one."""
    locks.mkdir(parents=True)
    words = {"holder": "process 7 on an old machine", "run": "", "nonce": uuid.uuid4().hex}
    (locks / "000000000041").write_text(json.dumps(words))
    looks = Fault(lambda: newest(locks).rename(locks / "000000000042") and None, "GET", "list-type", times=1, after=3)
    server.faults.append(looks)  # it lives
    with Lease(url) as lock, pytest.raises(InputError, match="is being written by process 7 on an old machine"):
        lock.take()
    assert [file.name for file in locks.iterdir()] == ["000000000042"]
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.1)
    with Lease(url) as lock:
        lock.take()
        assert newest(locks).name == "000000000043"


HOSTILE = {"holder": "me", "run": "", "nonce": "../../thesis"}


@pytest.mark.parametrize("content", ["", "[]", "[" * 4_000, '{"holder": 1}', json.dumps(HOSTILE), "x" * 5_000])
def test_a_lease_that_cannot_be_read_ends_as_any_other(url, locks, short, content):
    locks.mkdir(parents=True)
    for name in ("000000000009", "12", "٠٠٠٠٠٠٠٠٠٠٩٩", "000000000010.bak", "0" * 40):
        (locks / name).write_text(content)
    told = []
    with Lease(url, report=told.append) as lock:
        lock.take()
        assert (locks / "000000000010").exists()
    assert "another process has the lease" in told[0].text


def test_a_store_that_ignores_conditions_is_refused(server, url):
    server.faults.append(Fault("deaf", "PUT"))
    with Lease(url) as lock, pytest.raises(InputError, match="ignores If-None-Match"):
        lock.take()


def test_a_store_without_if_match_is_written_without(server, url, objects, whole, monkeypatch):
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.3)
    server.faults.append(Fault("deaf", "PUT", "c.zarr/zarr.json"))
    remote_child.fill(url)
    assert files_of(objects) == whole
    monkeypatch.setattr(server, "has_if_match", False)  # it says so
    server.faults.clear()
    remote_child.fill(url.with_name("d.zarr"))
    assert files_of(objects.with_name("d.zarr")) == whole


def test_a_machine_without_temporary_files_takes_leases(url, monkeypatch, is_free):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with Lease(url) as lock:
        lock.take()
        lock.check()
    assert is_free()
