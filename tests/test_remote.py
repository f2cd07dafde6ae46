"""Token caches on an object store: the bytes of a local one, whatever fails on the way and whoever is killed."""

import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import ObjectStore as ZarrStore

from tests import remote_child
from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from tests.forked import CONTEXT, run_ranks
from tests.s3_server import Fault, serve, wait_until
from vqgpt.config.cache_path import CacheURL, parse_cache_path
from vqgpt.errors import InputError, UsageError
from vqgpt.tokens import TokenCache, lease, lock_of, object_store
from vqgpt.tokens.lease import Lease

TOKENIZE = ["tokenize", "--dataset", "digits"]
FEW = [*TOKENIZE, "--limit", "40"]
BUCKETS = (f"bucket-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("buckets")) as running:
        yield running


@pytest.fixture
def url(server, monkeypatch):
    """The address of a cache in an empty bucket, of which the environment knows how to reach it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = next(BUCKETS)
    (server.folder / bucket).mkdir()
    yield CacheURL(f"s3://{bucket}/a/c.zarr")
    server.faults.clear()


@pytest.fixture
def objects(server, url):
    """The folder in which the server keeps the cache."""
    return server.folder / url.removeprefix("s3://")


@pytest.fixture(scope="module")
def start():
    """Starts a process that fills a small cache; it is forked from one that has imported everything."""
    begun = []

    def start_filling(url, server, seconds_to_leave=4.0):
        arguments = (str(url), server.environment, seconds_to_leave)
        process = CONTEXT.Process(target=remote_child.fill_and_leave, args=arguments)
        process.start()
        begun.append(process)
        return process

    yield start_filling
    for process in begun:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the small cache, as a local one has them."""
    path = tmp_path_factory.mktemp("whole") / "c.zarr"
    remote_child.fill(str(path))
    return files_of(path)


def test_the_whole_pipeline_works_on_addresses_with_the_bytes_of_folders(pipeline, url, objects):
    samples = url.with_name("samples.zarr")
    assert run_here(*TOKENIZE, "--cache", url).code == 0
    assert files_of(objects) == files_of(Path("cache/digits.zarr"))
    assert files_of(objects.parent) == {f"c.zarr/{key}": data for key, data in files_of(objects).items()}
    again = run_here(*TOKENIZE, "--cache", url)
    assert "complete and intact; nothing to do" in again.err

    info = run_here("cache", "info", url, "--json").json
    assert info == {**run_here("cache", "info", "cache/digits.zarr", "--json").json, "cache": url}
    assert run_here("cache", "verify", url).code == 0
    assert list(run_here("cache", "list", "--folder", url.rpartition("/")[0], "--json").json) == ["c.zarr"]
    for command in (["preview"], ["export", "--format", "npz"]):
        assert run_here("cache", *command, url).code == 0
    assert run_here("render", url).code == 0
    assert {path.name for path in Path().glob("c*")} >= {"c-preview.png", "c.npz", "c.png"}

    results = {}
    for name, arguments in {"local": [], "remote": [url], "stream": [url, "--stream"]}.items():
        cache = ["--cache", *arguments] if arguments else []
        outcome = run_here("train", *TINY_GPT, *cache, "--out", f"{name}.pt", "--json")
        assert outcome.code == 0, outcome.err
        results[name] = torch.load(f"{name}.pt", weights_only=True)
    assert results["remote"]["configuration"]["cache"] == url
    for name, tensor in results["local"]["model"].items():
        assert torch.equal(tensor, results["remote"]["model"][name])
        assert torch.equal(tensor, results["stream"]["model"][name])

    assert run_here("sample", "--num-samples", "20", "--out", samples).code == 0
    assert Path("samples.png").exists()
    assert files_of(objects.parent / "samples.zarr") == files_of(Path("runs/digits/samples.zarr"))

    outcome = run_here("cache", "rm", url)
    assert_refused(outcome, 2, url, "--yes")
    assert run_here("cache", "rm", url, "--yes", "--json").json["deleted"] == url
    assert not objects.exists()
    assert_refused(run_here("cache", "info", url), 4, f"there is no token cache {url}")


def test_damage_is_named_and_repaired(pipeline, url, objects):
    assert run_here(*FEW, "--cache", url).code == 0
    before = files_of(objects)
    (objects / "train/codes/c/0/0/0/0").write_bytes(b"x")
    (objects / "test/labels/c/0").unlink()
    flipped = bytearray((objects / "test/codes/c/0/0/0/0").read_bytes())
    flipped[100] ^= 1
    (objects / "test/codes/c/0/0/0/0").write_bytes(flipped)
    assert_refused(run_here("train", "--cache", url, "--out", "x.pt"), 3, "train/codes/c/0/0/0/0", "has 1 bytes")
    faults = "test/codes/c/0/0/0/0 is not what was written", "test/labels/c/0 is missing", f"verify --repair {url}"
    assert_refused(run_here("cache", "verify", url), 3, *faults)
    assert run_here("cache", "verify", "--repair", url).code == 0
    assert files_of(objects) == before
    (objects / "notes.txt").write_text("mine")
    assert_refused(run_here("cache", "verify", url), 3, "notes.txt does not belong")
    assert_refused(run_here("cache", "rm", url, "--yes"), 3, "notes.txt, which does not belong")
    assert files_of(objects) == before | {"notes.txt": b"mine"}


def test_another_cache_is_refused_and_replaced_only_if_asked_for(pipeline, url, objects):
    write_cache(url, description())
    before = files_of(objects)
    assert_refused(run_here(*FEW, "--cache", url), 3, f"{url} holds other tokens", "--overwrite")
    assert files_of(objects) == before
    assert run_here(*FEW, "--cache", url, "--overwrite").code == 0
    assert run_here(*FEW, "--cache", "local.zarr").code == 0
    assert files_of(objects) == files_of(Path("local.zarr"))


def test_codes_of_others_are_imported(here, url, objects):
    Path("codes.jsonl").write_text("".join(f'{{"class_id": {n}, "tokens": [1, 2, 3, {n}]}}\n' for n in range(10)))
    command = ["cache", "import", "codes.jsonl", "--codebook-size", "16", "--cache"]
    assert run_here(*command, "local.zarr").code == 0
    assert run_here(*command, url).code == 0
    assert files_of(objects) == files_of(Path("local.zarr"))


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


def test_a_second_run_stops_at_once_and_says_who_holds_the_cache(pipeline, url, objects):
    with lock_of(url) as lock:
        lock.take()
        lock.check()
        held = f"{url} is being written by process {os.getpid()} on "
        assert_refused(run_here(*FEW, "--cache", url), 3, held, "its lease ends in")
        assert not objects.exists()
        other = Lease(url)
        with pytest.raises(InputError, match="is being written"), other:
            other.take()
        lock.check()
    assert files_of(objects.parent) == {}
    assert run_here(*FEW, "--cache", url).code == 0


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


def test_two_processes_of_one_run_share_the_lease(pipeline, url, objects):
    program = str(Path(__file__).with_name("small_shards.py"))
    tokenize = [program, *TOKENIZE, "--limit", "38", "--cache"]
    assert run_ranks(1, *tokenize, "local.zarr").returncode == 0
    result = run_ranks(2, *tokenize, url)
    assert result.returncode == 0, result.stderr
    assert files_of(objects) == files_of(Path("local.zarr"))
    assert not (objects.parent / ".c.zarr.lock").exists()


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
    assert_refused(run_here(*TOKENIZE, "--cache", url), code, bucket, *words)
    if (objects / "zarr.json").exists():
        assert len(json.loads((objects / "zarr.json").read_text())["attributes"]["vqgpt"]["shards"]["train"]) == 1
    server.faults.clear()
    remote_child.fill(url)
    assert files_of(objects) == whole


def test_no_bucket_and_no_server_are_errors_that_name_them(here, url, monkeypatch):
    assert_refused(run_here("cache", "info", "s3://nowhere/c.zarr"), 4, "there is no bucket nowhere")
    assert_refused(run_here("cache", "list", "--folder", "s3://nowhere"), 4, "there is no bucket nowhere")
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_refused(run_here("cache", "verify", url), 4, url, "AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    assert_refused(run_here("cache", "verify", url), 2, url, "AWS_ENDPOINT_URL")


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


def test_zarr_itself_reads_it(url):
    import obstore

    what = description()
    write_cache(url, what)
    store = ZarrStore(
        obstore.store.from_url(url, client_options={"allow_http": True}),
        read_only=True,
    )
    for split in ("train", "test"):
        codes = zarr.open_array(store, path=f"{split}/codes", mode="r")[:]
        np.testing.assert_array_equal(codes, TokenCache(url).read_split(split).codes)


def test_without_the_extra_addresses_are_refused_and_folders_work(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert_refused(run_here("cache", "info", "s3://b/c.zarr"), 4, "obstore", "pip install 'vqgpt[remote]'")
    write_cache(Path("c.zarr"), description())
    assert run_here("cache", "verify", "c.zarr").code == 0


@pytest.mark.parametrize(
    "address", ["ftp://b/c.zarr", "s3://", "s3://b//c.zarr", "s3://b/../c.zarr", "s3://b/c.zarr?x"]
)
def test_addresses_that_cannot_be_are_refused(here, address):
    with pytest.raises(UsageError):
        parse_cache_path(address)
    assert_refused(run_here("cache", "info", address), 2, address)


def test_addresses_and_folders_are_told_apart(here, url):
    assert parse_cache_path("S3://b/a/c.zarr/") == "s3://b/a/c.zarr"
    assert parse_cache_path("gs://b/c.zarr").stem == parse_cache_path("az://b/c.zarr").stem == "c"
    for folder in ("c.zarr", "/s3/c.zarr", "s3:/b/c.zarr", "a b://c"):
        assert parse_cache_path(folder) == Path(folder)
    assert_refused(run_here(*TOKENIZE, "--cache", "s3://b/c"), 2, "s3://b/c", ".zarr")
    assert_refused(run_here(*TOKENIZE, "--cache", "s3://b.zarr"), 2, "s3://b.zarr", "bucket")
