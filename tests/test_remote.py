"""Token caches on an object store, as users meet them: the commands, the bytes of a local cache, addresses, errors."""

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import ObjectStore as ZarrStore

from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from tests.forked import run_ranks
from vqgpt.errors import InputError, UsageError
from vqgpt.options.paths import parse_cache_path
from vqgpt.tokens import TokenCache, lease, lock_of, object_store
from vqgpt.tokens.lease import Lease

pytest_plugins = ["tests.remote_fixtures"]

TOKENIZE = ["tokenize", "--dataset", "digits"]
FEW = [*TOKENIZE, "--limit", "40"]


def test_the_whole_pipeline_works_on_addresses_with_the_bytes_of_folders(pipeline, url, objects, is_free):
    samples = url.with_name("samples.zarr")
    assert run_here(*TOKENIZE, "--cache", url).code == 0
    assert files_of(objects) == files_of(Path("cache/digits.zarr"))
    assert is_free()
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


def test_a_second_run_stops_once_the_first_shows_life_and_says_who_that_is(
    pipeline, url, objects, is_free, monkeypatch
):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)  # which is as long as that takes
    with lock_of(url) as lock:
        lock.take()
        lock.check()
        held = f"process {os.getpid()} on "
        outcome = run_here(*FEW, "--cache", url)
        assert_refused(outcome, 3, f"{url} is being written by {held}", "its lease ends in 60 s")
        assert f"{held}{socket.gethostname()} has the lease of {url}" in outcome.err
        assert not objects.exists()
        other = Lease(url)
        with pytest.raises(InputError, match="is being written"), other:
            other.take()
        lock.check()
    assert is_free()
    assert run_here(*FEW, "--cache", url).code == 0


def test_two_processes_of_one_run_share_the_lease(pipeline, url, objects, is_free):
    program = str(Path(__file__).with_name("small_shards.py"))
    tokenize = [program, *TOKENIZE, "--limit", "38", "--cache"]
    assert run_ranks(1, *tokenize, "local.zarr").returncode == 0
    result = run_ranks(2, *tokenize, url)
    assert result.returncode == 0, result.stderr
    assert files_of(objects) == files_of(Path("local.zarr"))
    assert is_free()


def test_no_bucket_and_no_server_are_errors_that_name_them(here, url, monkeypatch):
    assert_refused(run_here("cache", "info", "s3://nowhere/c.zarr"), 4, "there is no bucket nowhere")
    assert_refused(run_here("cache", "list", "--folder", "s3://nowhere"), 4, "there is no bucket nowhere")
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_refused(run_here("cache", "verify", url), 4, url, "AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    assert_refused(run_here("cache", "verify", url), 2, url, "AWS_ENDPOINT_URL")


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
