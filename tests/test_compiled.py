"""C code is compiled once for a machine and kept; what is kept and cannot be used is made anew, or done without."""

import shutil
from pathlib import Path

import pytest

from vqgpt.compiled import call, compiled_library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C file of one function, compiled by a compiler that counts how often it made a library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "cc"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = -march=native ] || echo >> {tmp_path}/count\nexec {shutil.which("cc")} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    write(tmp_path / "sum.c", "a + b")
    return tmp_path / "sum.c"


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


@pytest.mark.parametrize("damage", [b"", b"\x7fELF"])
def test_a_damaged_library_is_made_anew(source, damage):
    assert combined(source) == 42
    (library,) = kept(source)
    library.unlink()
    library.write_bytes(damage)
    assert [combined(source), combined(source), times_compiled(source)] == [42, 42, 2]


def test_where_nothing_can_be_kept_each_process_compiles(source):
    (source.parent / "cache").write_text("no folder")
    assert [combined(source), combined(source), times_compiled(source)] == [42, 42, 2]


def test_code_that_cannot_be_compiled_is_done_without(source):
    write(source, "}")
    assert combined(source) is None
    assert not (source.parent / "cache").exists()
