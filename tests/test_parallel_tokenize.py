"""Several processes fill one cache, and two runs do not."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import assert_refused, files_of, run_here
from tests.forked import run_ranks, start_ranks
from vqgpt.errors import InputError
from vqgpt.storage.write_lock import WriteLock
from vqgpt.tokens import TokenCache, read_manifest

PROGRAM = str(Path(__file__).with_name("small_shards.py"))
TOKENIZE = ["tokenize", "--dataset", "digits", "--limit", "75", "--cache"]


def tokenize_on(processes: int, cache: str, **environment: str) -> subprocess.CompletedProcess:
    return run_ranks(processes, PROGRAM, *TOKENIZE, cache, **environment)


def test_any_number_of_processes_makes_the_same_bytes_and_completes_what_a_dead_one_left(pipeline):
    result = tokenize_on(1, "one.zarr")
    assert result.returncode == 0, result.stderr
    whole = files_of(Path("one.zarr"))
    assert sum(map(len, read_manifest(Path("one.zarr")).shards.values())) == 10

    result = tokenize_on(2, "dead.zarr", DIE_AT="1:3")
    assert result.returncode != 0
    committed = read_manifest(Path("dead.zarr"))
    assert set(committed.shards["train"]) == {0, 1, 2, 3}  # two rounds of two ranks
    assert not committed.complete
    shutil.copytree("dead.zarr", "again.zarr")

    before = files_of(Path("dead.zarr"))
    with WriteLock(Path("dead.zarr"), "another run") as lock:
        lock.take()
        lock.share()  # with its own processes, not with these
        main, helper = start_ranks(2, PROGRAM, *TOKENIZE, "dead.zarr")
        assert f"is being written by process {os.getpid()} on " in main.communicate(timeout=60)[1]
        assert "the main process of this run has ended" in helper.communicate(timeout=60)[1]
        assert files_of(Path("dead.zarr")) == before

    assert tokenize_on(3, "again.zarr").returncode == 0
    assert tokenize_on(2, "dead.zarr").returncode == 0
    for cache in ("again.zarr", "dead.zarr"):
        assert files_of(Path(cache)) == whole
        assert TokenCache(Path(cache)).read_split("train").codes.shape == (75, 1, 8, 8)
    assert not list(Path().glob(".*.lock"))


def test_a_second_run_stops_at_once_and_says_who_holds_the_cache(pipeline):
    before = files_of(pipeline)
    for command, cache in ((["tokenize", "--dataset", "digits"], "cache/digits"), (["sample"], "runs/digits/samples")):
        lock = Path(cache).with_name(f".{Path(cache).name}.zarr.lock")
        with open(lock, "w") as held:  # a lock belongs to the open file: this one is another run's
            held.write("process 123 on elsewhere")
            held.flush()
            fcntl.flock(held, fcntl.LOCK_EX)
            arguments = [*command, "--tokens-only"] if command == ["sample"] else command
            outcome = run_here(*arguments, "--num-samples", "20") if command == ["sample"] else run_here(*arguments)
            assert_refused(outcome, 3, f"{cache}.zarr is being written by process 123 on elsewhere", "wait")
        assert lock.exists()  # as a killed run leaves it, which is no obstacle:
    assert run_here("tokenize", "--dataset", "digits").code == 0
    assert run_here("sample", "--tokens-only", "--num-samples", "20").code == 0
    assert files_of(pipeline) == before


def test_the_processes_of_one_run_share_the_lock_and_nobody_else_gets_it(tmp_path):
    path = tmp_path / "new" / "c.zarr"
    main, helper, other = WriteLock(path, "ours"), WriteLock(path, "ours"), WriteLock(path, "theirs")
    with pytest.raises(InputError, match="has ended"):
        helper.join()
    main.take()
    with pytest.raises(InputError, match=f"process {os.getpid()} on "):
        helper.join()
    main.share()
    with pytest.raises(InputError, match="has ended"):
        other.join()
    helper.join()
    with pytest.raises(InputError, match="is being written by"):
        other.take()
    main.release()
    with pytest.raises(InputError, match="is being written by"):
        other.take()  # the helper still writes
    helper.release()
    assert not list(path.parent.iterdir())
    other.take()
    assert list(path.parent.iterdir()) == [other.file]
    other.release()
    assert not list(path.parent.iterdir())


def test_a_lock_dies_with_its_holder(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from vqgpt.storage.write_lock import WriteLock\n"
        "WriteLock(Path(sys.argv[1])).take(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.zarr")], check=False)
    assert (tmp_path / ".c.zarr.lock").exists()
    with WriteLock(tmp_path / "c.zarr") as lock:
        lock.take()
    assert not (tmp_path / ".c.zarr.lock").exists()


def test_a_file_system_without_locks_is_an_error_that_says_so(tmp_path, monkeypatch):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"c\.zarr has no locks \(No locks available\)") as refused:
        WriteLock(tmp_path / "c.zarr", elsewhere="give another --out").take()
    assert refused.value.hint == "write it on a local disk: give another --out"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / ".c.zarr.lock").symlink_to("thesis.tex")
    with pytest.raises(InputError, match="c.zarr.lock"):
        WriteLock(tmp_path / "c.zarr").take()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
