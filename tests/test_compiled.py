"""C code is compiled once for a machine and kept; what is kept and cannot be used is made anew, or done without."""

import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import OTHER_VQGAN, run_here
from vqgpt.kernels import build as compiled
from vqgpt.kernels.build import call, compiled_library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
OF_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away, and mount")
NOBODY = 12345
OUT = 'for word; do [ "$last" = -o ] && out=$word; last=$word; done; '  # where a compiler is to write


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C file of one function, compiled by a compiler that counts how often it made a library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    count = f'[ "$1" = -march=native ] || echo >> {tmp_path}/count\n'
    write_compiler(tmp_path / "bin", f'#!/bin/sh\n{count}exec {shutil.which("cc")} "$@"\n')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    write(tmp_path / "sum.c", "a + b")
    return tmp_path / "sum.c"


def write_compiler(folder: Path, script: str) -> None:
    (folder / "cc").write_text(script)
    (folder / "cc").chmod(0o755)


def write(source: Path, expression: str) -> None:
    source.write_text(f"long combine(long a, long b) {{ return {expression}; }}\n")


def combined(source: Path) -> int | None:
    """What the function makes of 40 and 2, as a new process would."""
    library = compiled_library.__wrapped__(source)
    return None if library is None else call(library, "combine", 40, 2)


def times_compiled(source: Path) -> int:
    return len((source.parent / "count").read_text().splitlines())


def kept(source: Path) -> list[Path]:
    return list((source.parent / "cache/vqgpt/compiled").iterdir())


def test_a_library_is_kept_until_its_code_changes(source):
    assert [combined(source), combined(source), times_compiled(source)] == [42, 42, 1]
    write(source, "a - b")
    assert [combined(source), combined(source), times_compiled(source)] == [38, 38, 2]
    assert len(kept(source)) == 2


@pytest.mark.parametrize("damage", ["empty", "head", "half", "a bit", "longer", "a folder", "a link"])
def test_a_damaged_library_is_made_anew(source, damage):
    assert combined(source) == 42
    (library,) = kept(source)
    whole = library.read_bytes()
    library.unlink()
    if damage == "a folder":
        library.mkdir()
    elif damage == "a link":
        (source.parent / "elsewhere.so").write_bytes(whole)
        library.symlink_to(source.parent / "elsewhere.so")
    else:
        half = len(whole) // 2
        changed = {"empty": b"", "head": whole[:4], "half": whole[:half], "longer": whole + b"x"}
        changed["a bit"] = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
        library.write_bytes(changed[damage])
    assert [combined(source), combined(source)] == [42, 42]
    assert times_compiled(source) == (3 if damage == "a folder" else 2)
    assert damage == "a folder" or [path.read_bytes() for path in kept(source)] == [whole]


@pytest.mark.parametrize("where", ["file", "folder", "cache"])
@pytest.mark.parametrize("right", ["owner", 0o002, 0o020])
def test_what_others_could_have_written_is_not_loaded(source, where, right):
    """A library that is another one's would run as this user. Only the cache folder itself may be a group's."""
    if right == "owner" and os.geteuid():
        pytest.skip("only root may give files away")
    assert combined(source) == 42
    (library,) = kept(source)
    place = {"file": library, "folder": library.parent, "cache": library.parent.parent}[where]
    if right == "owner":
        os.chown(place, NOBODY, NOBODY)
    else:
        place.chmod(place.stat().st_mode | right)
    before = place.stat().st_mode
    assert combined(source) == 42
    if (where, right) == ("cache", 0o020):
        assert times_compiled(source) == 1
        return
    assert times_compiled(source) == 2
    assert where == "file" or place.stat().st_mode == before
    assert where != "file" or kept(source)[0].stat().st_uid == os.geteuid()


def test_a_library_is_kept_whatever_the_umask(source):
    before = os.umask(0o002)
    try:
        assert [combined(source), combined(source), times_compiled(source)] == [42, 42, 1]
    finally:
        os.umask(before)


def test_where_nothing_can_be_kept_each_process_compiles(source):
    (source.parent / "cache").write_text("no folder")
    assert [combined(source), combined(source), times_compiled(source)] == [42, 42, 2]


@OF_ROOT
@pytest.mark.parametrize("where", ["temporary", "cache", "both"])
def test_a_folder_where_nothing_may_be_run(source, monkeypatch, where):
    folder = source.parent / "noexec"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", folder], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        if where != "cache":
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
        if where != "temporary":
            monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert combined(source) == (None if where == "both" else 42)
        assert where != "temporary" or len(kept(source)) == 1
        assert not list(folder.rglob("*.so"))
    finally:
        subprocess.run(["umount", folder], check=True)


@OF_ROOT
def test_a_full_temporary_folder_is_named(source, monkeypatch):
    folder = source.parent / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", folder], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (folder / "file").write_bytes(bytes(4096))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert combined(source) is None
        assert f"as {folder} is full" in run_here("doctor", "--json").json["c_compiler"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_code_that_cannot_be_compiled_is_done_without(source):
    write(source, "}")
    assert combined(source) is None
    assert not (source.parent / "cache").exists()


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("#!/bin/sh\nexit 1\n", "cc failed"),
        ("#!/bin/sh\nexit 0\n", "cc made nothing"),
        (f'#!/bin/sh\n{OUT}\necho rubbish > "$out"\n', "failed"),
        (f'#!/bin/sh\n{OUT}\nREAL "$@" && [ "$1" = -march=native ] || truncate -s 3000 "$out"\n', "failed"),
        (f'#!/bin/sh\n{OUT}\nREAL "$@" && [ "$1" = -march=native ] || rm "$out"\n', "cc made nothing"),
        ('#!/bin/sh\nREAL "$@"\nkill -9 $$\n', "cc failed"),
        ("#!/bin/sh\nsleep 100 &\nsleep 100\n", "did not end"),
        ("#!/bin/sh\nwhile :; do echo much; echo much >&2; done\n", "did not end"),
        ("#!/bin/sh\ncat\n", "cc made nothing"),
        ("no program", "Exec format"),
        ("#!/no/such/interpreter\n", "No such file"),
    ],
)
def test_a_compiler_that_is_of_no_use_is_done_without(source, monkeypatch, compiler, reason):
    write_compiler(source.parent / "bin", compiler.replace("REAL", shutil.which("cc", path=os.defpath)))
    if reason == "did not end":
        monkeypatch.setattr(compiled, "LONGEST_RUN", 0.3)
    assert combined(source) is None
    assert not list(source.parent.glob("cache/**/*.so"))
    outcome = run_here("doctor", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["c_compiler"].startswith(f"{source.parent}/bin/cc, which is of no use (")
    assert reason in outcome.json["c_compiler"]


@pytest.mark.parametrize("much", ["", "yes nothing | head -c 5000000 >&2"])
def test_doctor_shows_the_last_lines_that_a_compiler_which_failed_said(source, much):
    lines = [f"attention.c:{number}: error: \x1b[31mnumber {number}" for number in range(12)]
    said = "\n".join(f"echo '{line}' >&2" for line in lines)
    write_compiler(source.parent / "bin", f"#!/bin/sh\n{much}\n{said}\nsleep 3 &\nexit 1\n")
    assert run_here("doctor", "--json").json["c_compiler_said"].splitlines() == [
        line.replace("\x1b", "\\x1b") for line in lines[-compiled.LINES_KEPT :]
    ]
    assert "number 11" in run_here("doctor").out


def test_doctor_tries_all_our_c_code(source):
    """A compiler may fail at one file alone."""
    real = shutil.which("cc", path=os.defpath)
    script = f'#!/bin/sh\ncase "$*" in *winograd.c*) echo no winograd >&2; exit 1;; esac\nexec {real} -O0 "$@"\n'
    write_compiler(source.parent / "bin", script)
    facts = run_here("doctor", "--json").json
    assert "(winograd.c: " in facts["c_compiler"]
    assert facts["c_compiler_said"] == "no winograd"


def test_a_compiler_that_hangs_is_tried_once(source, monkeypatch):
    write_compiler(source.parent / "bin", f"#!/bin/sh\necho >> {source.parent}/tried\nsleep 100\n")
    monkeypatch.setattr(compiled, "LONGEST_RUN", 0.5)
    other = source.with_name("other.c")
    write(other, "a")
    assert [combined(source), combined(other), combined(source)] == [None] * 3
    assert len((source.parent / "tried").read_text().splitlines()) == 1
    assert "did not end" in run_here("doctor", "--json").json["c_compiler"]


def test_a_library_without_our_functions_is_done_without(source):
    """As a compiler makes that hides what it was not told to show."""
    real = shutil.which("cc", path=os.defpath)
    write_compiler(source.parent / "bin", f'#!/bin/sh\nexec {real} -fvisibility=hidden "$@"\n')
    assert combined(source) is None
    assert not list(source.parent.glob("cache/**/*.so"))
    assert "what it makes lacks our functions" in run_here("doctor", "--json").json["c_compiler"]


@pytest.mark.parametrize(("compiler", "times"), [("#!/bin/sh\nexit 1\n", 1), (None, 0)])
def test_a_command_tells_once_that_the_compiler_is_of_no_use(source, here, begin_anew, compiler, times):
    folder = source.parent / "only"
    folder.mkdir()
    if compiler:
        write_compiler(folder, compiler)
    for quiet in ([], ["--quiet"]):
        begin_anew(folder)
        outcome = run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--out", f"{len(quiet)}.pt", *quiet)
        assert outcome.code == 0, outcome.err
        assert outcome.err.count("torch computes") == (0 if quiet else times), outcome.err


def test_a_compiler_that_says_much_is_used(source):
    much = "yes | head -c 5000000"
    real = shutil.which("cc", path=os.defpath)
    write_compiler(source.parent / "bin", f'#!/bin/sh\n{much}\n{much} >&2\nexec {real} "$@"\n')
    assert combined(source) == 42
    assert run_here("doctor", "--json").json["c_compiler"] == f"{source.parent}/bin/cc"


def test_threads_compile_once_and_wait_for_each_other(source):
    together = threading.Barrier(8)

    def ask(_: int) -> object:
        together.wait()
        return compiled_library(source)

    with ThreadPoolExecutor(8) as threads:
        libraries = list(threads.map(ask, range(8)))
    assert libraries == libraries[:1] * 8
    assert call(libraries[0], "combine", 40, 2) == 42
    assert times_compiled(source) == 1


def test_processes_that_compile_at_the_same_time_keep_one(source):
    together = threading.Barrier(4)

    def as_a_process(_: int) -> int | None:
        together.wait()
        return combined(source)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(as_a_process, range(4))) == [42] * 4
    assert len(kept(source)) == 1
    made = times_compiled(source)
    assert [combined(source), times_compiled(source)] == [42, made]
