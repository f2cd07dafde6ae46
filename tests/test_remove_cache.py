"""`vqgpt cache rm` deletes token caches, when told to, and nothing else."""

from pathlib import Path

import pytest

from tests.conftest import assert_refused, description, files_of, run_here, write_cache
from vqgpt.storage.write_lock import WriteLock
from vqgpt.tokens import Split

CACHE = Path("a.zarr")


@pytest.fixture
def cache(here):
    Path("other.txt").write_text("mine")
    return write_cache(CACHE, description(splits=(Split(name="odd_name", rows=40),)))


def damage_root():
    (CACHE / "zarr.json").write_bytes((CACHE / "zarr.json").read_bytes().replace(b'"fp32"', b'"bf16"'))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: None,
        lambda: (CACHE / "odd_name/codes/c/0/0/0/0").unlink(),
        lambda: (CACHE / "odd_name/codes/c/0/0/0/.0.partial").write_bytes(b"x"),
        lambda: (CACHE.with_name(".a.zarr.lock")).write_text("left by a killed run"),
    ],
)
def test_a_cache_is_deleted_and_its_neighbours_stay(cache, spoil):
    spoil()
    count = len(files_of(cache))
    outcome = run_here("cache", "rm", str(cache), "--yes", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["deleted"] == str(cache)
    assert outcome.json["files"] == count
    assert [path.name for path in cache.parent.iterdir()] == ["other.txt"]


def test_unfinished_and_damaged_caches_of_ours_are_deleted_too(here):
    write_cache(CACHE, description(), only_first=1)
    assert run_here("cache", "rm", str(CACHE), "--yes").code == 0
    write_cache(CACHE, description())
    damage_root()
    assert_refused(run_here("cache", "info", str(CACHE)), 3, "damaged")
    assert run_here("cache", "rm", str(CACHE), "--yes").code == 0
    assert not CACHE.exists()


def test_without_yes_nothing_is_deleted(cache):
    before = files_of(Path())
    outcome = run_here("cache", "rm", str(cache))
    assert_refused(outcome, 2, f"{len(files_of(cache))} files", "--yes")
    assert files_of(Path()) == before


@pytest.mark.parametrize("name", ["notes.txt", "odd_name/codes/extra.npy", "odd_name/codes/c/x", "odd_name/link"])
def test_a_cache_that_holds_other_files_is_refused(cache, name):
    if name.endswith("link"):
        (cache / name).symlink_to(Path("other.txt").absolute())
    else:
        (cache / name).write_text("mine")
    before = files_of(Path())
    assert_refused(run_here("cache", "rm", str(cache), "--yes"), 3, name, "does not belong")
    assert files_of(Path()) == before


def test_what_is_no_cache_is_refused(here):
    Path("folder").mkdir()
    Path("folder/photo.png").write_bytes(b"x")
    Path("file.zarr").write_text("{}")
    Path("group.zarr").mkdir()
    Path("group.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = files_of(here)
    assert_refused(run_here("cache", "rm", "nothing.zarr", "--yes"), 4, "nothing.zarr")
    for name in ("folder", "file.zarr", "group.zarr", "."):
        assert_refused(run_here("cache", "rm", name, "--yes"), 3, f"{name} is not a token cache")
    assert files_of(here) == before


def test_a_link_is_refused_and_what_it_leads_to_stays(cache):
    Path("link.zarr").symlink_to(cache)
    before = files_of(cache)
    assert_refused(run_here("cache", "rm", "link.zarr", "--yes"), 3, "link.zarr is a link")
    assert files_of(cache) == before
    assert Path("link.zarr").is_symlink()


def test_a_cache_that_is_being_written_is_refused(cache):
    before = files_of(cache)
    with WriteLock(cache) as lock:
        lock.take()
        assert_refused(run_here("cache", "rm", str(cache), "--yes"), 3, "being written by process")
    assert files_of(cache) == before
    assert run_here("cache", "rm", str(cache), "--yes").code == 0
