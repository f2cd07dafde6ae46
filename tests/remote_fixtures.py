"""What the tests of object stores share: a server, an empty bucket for each test, processes that fill a small cache."""

import itertools
import json
import os

import pytest

from tests import remote_child
from tests.conftest import files_of
from tests.forked import CONTEXT
from tests.s3_server import serve
from vqgpt.options.paths import CacheURL

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


@pytest.fixture
def is_free(objects):
    """Tells whether all that lies beside the cache is one object that says that its lease is free."""

    def holds():
        folder = objects.parent / ".c.zarr.lock"
        beside = [path for path in objects.parent.rglob("*") if path.is_file() and objects not in path.parents]
        return [path.parent for path in beside] == [folder] and json.loads(beside[0].read_bytes())["holder"] == ""

    return holds


@pytest.fixture(scope="module")
def start():
    """Starts a process that fills a small cache; it is forked from one that has imported everything."""
    begun = []

    def start_filling(url, server, seconds_to_leave=4.0, err=os.devnull):
        arguments = (str(url), server.environment, seconds_to_leave, str(err))
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
