"""The lock beside a result: whoever comes and goes at whichever instant, one run holds it, and its file is removed."""

import fcntl
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.test_special_files import put_socket
from vqgpt.errors import InputError
from vqgpt.storage.write_lock import WriteLock


@pytest.fixture
def before_the_lock(monkeypatch):
    """What is put into this list is done once, between a lock's open and its `flock`."""
    flock, things = fcntl.flock, []

    def after_them(descriptor, kind):
        if things:
            things.pop()()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", after_them)
    return things


def test_a_file_that_is_removed_between_open_and_lock_is_made_anew(tmp_path, before_the_lock):
    first, second = WriteLock(tmp_path / "c"), WriteLock(tmp_path / "c")
    first.take()
    before_the_lock.append(first.release)
    second.take()
    assert list(tmp_path.iterdir()) == [second.file]
    with pytest.raises(InputError, match="is being written by"):
        first.take()
    second.release()
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_made_anew_between_open_and_lock_is_not_ours(tmp_path, before_the_lock):
    first, second, third = (WriteLock(tmp_path / "c") for _ in range(3))
    first.take()
    before_the_lock.append(lambda: (first.release(), third.take()))
    with pytest.raises(InputError, match="is being written by"):
        second.take()
    third.release()
    assert not list(tmp_path.iterdir())


IN_ITS_PLACE = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a file": lambda path: path.symlink_to("c"),
    "a socket": put_socket,
}


@pytest.mark.parametrize("put", IN_ITS_PLACE.values(), ids=IN_ITS_PLACE)
def test_what_is_no_file_in_place_of_the_lock_is_named(tmp_path, put):
    (tmp_path / "c").write_text("kept")
    put(tmp_path / ".c.lock")
    lock = WriteLock(tmp_path / "c", work="ours")
    assert not lock.makes_what_is_there()
    for act in (lock.take, lock.wait):
        with pytest.raises(InputError, match=r"\.c\.lock, where the lock of .* is not a plain file") as error:
            act()
        assert error.value.hint == "remove it"
    assert (tmp_path / "c").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"c", ".c.lock"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_process_of_a_run_removes_the_file_whichever_that_is(tmp_path, order):
    run = [WriteLock(tmp_path / "c", "ours") for _ in range(3)]
    run[0].take()
    run[0].share()
    for helper in run[1:]:
        helper.join()
    for leaves in order:
        with pytest.raises(InputError, match="is being written by"):
            WriteLock(tmp_path / "c").take()
        assert run[0].file.exists()
        run[leaves].release()
    assert not list(tmp_path.iterdir())


def test_many_come_and_go_and_one_is_in(tmp_path):
    def come_and_go(_):
        inside = 0
        for _ in range(100):
            lock = WriteLock(tmp_path / "c")
            try:
                lock.take()
            except InputError:
                continue
            os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
            (tmp_path / "alone").unlink()
            lock.release()
            inside += 1
        return inside

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(come_and_go, range(4))) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("stays", "words"), [(True, "is being written by"), (False, "removed the lock of this one")])
def test_a_lock_that_is_lost_while_it_is_shared_is_told(tmp_path, before_the_lock, stays, words):
    """As where a file system drops the one lock before it sets the other."""
    first, second = WriteLock(tmp_path / "c"), WriteLock(tmp_path / "c")
    first.take()
    descriptor = first.descriptor

    def get_in():
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        second.take()
        if not stays:
            second.release()

    before_the_lock.append(get_in)
    with pytest.raises(InputError, match=words):
        first.share()
    second.release()
    assert not list(tmp_path.iterdir())


def test_all_names_of_a_folder_have_one_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("disk/c.zarr").mkdir(parents=True)
    Path("link.zarr").symlink_to("disk/c.zarr")
    Path("chain.zarr").symlink_to("link.zarr")
    Path("folder").symlink_to("disk")
    Path("inner").symlink_to("disk/c.zarr/.")
    names = ["disk/c.zarr", "link.zarr", "chain.zarr", "folder/c.zarr", "folder/../disk/c.zarr", "inner", "inner/."]
    names += ["disk/c.zarr/../c.zarr", "link.zarr/../c.zarr", "disk//./c.zarr/", str(tmp_path / "disk/c.zarr")]
    for first, second in itertools.product(names, repeat=2):
        with WriteLock(Path(first)) as lock:
            lock.take()
            assert Path("disk/.c.zarr.lock").exists()
            with pytest.raises(InputError, match="is being written by"):
                WriteLock(Path(second)).take()
    monkeypatch.chdir("disk/c.zarr")
    with WriteLock(Path()) as lock, WriteLock(Path("../c.zarr")) as other:
        lock.take()
        with pytest.raises(InputError, match="is being written by"):
            other.take()
