"""`make all` runs the pipeline by `vqgpt run`, and what pipelines made is deleted only after a yes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VQGPT = """#!/bin/sh
echo "$*" >> calls
exit $(cat code)
"""
MADE = ("runs/digits/gpt.pt", "cache/digits.zarr/zarr.json")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the Makefile, an environment that is ready, a vqgpt that notes its calls, and finished results."""
    monkeypatch.chdir(tmp_path)
    for name in ("Makefile", "pipelines/digits.toml", "cache/FORMAT.md", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, name)
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/.ready").touch()
    Path(".venv/bin/vqgpt").write_text(VQGPT)
    Path(".venv/bin/vqgpt").chmod(0o755)
    Path("code").write_text("0")
    for name in MADE:
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("took long")
    return tmp_path


def make(*arguments: str, code: int = 0, answer: str = "") -> tuple[list[str], str]:
    """The calls of vqgpt that make ran, and all that it said."""
    Path("calls").write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ended = subprocess.run(
        ["make", *arguments],
        input=answer,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == code, ended.stdout
    return Path("calls").read_text().splitlines(), ended.stdout


def test_all_runs_the_pipeline_of_a_recipe(project):
    assert make("all")[0] == ["run --recipe digits"]
    assert make("all", "DATASET=mnist", "OVERWRITE=1")[0] == ["run --recipe mnist --overwrite"]
    assert "vqgpt run --recipe digits" in make("-n", "all")[1]
    Path("code").write_text("3")
    make("all", code=2)


def test_clean_leaves_what_pipelines_made(project):
    make("clean")
    assert not Path(".venv").exists()
    assert all(Path(name).read_text() == "took long" for name in MADE)


@pytest.mark.parametrize("answer", ["", "\n", "no\n", "y\n"])
def test_runs_and_caches_are_not_deleted_without_a_yes(project, answer):
    said = make("clean-runs", answer=answer)[1]
    assert "runs/digits" in said
    assert "cache/digits.zarr" in said
    assert "nothing is deleted" in said
    make("clean-runs", "CONFIRM=no", answer="yes\n")
    assert all(Path(name).read_text() == "took long" for name in MADE)


@pytest.mark.parametrize(("arguments", "answer"), [([], "yes\n"), (["CONFIRM=yes"], "")])
def test_runs_and_caches_are_deleted_after_a_yes(project, arguments, answer):
    make("clean-runs", *arguments, answer=answer)
    assert [str(path) for path in sorted(Path.cwd().glob("[cr][au]*/*"))] == [str(project / "cache/FORMAT.md")]
    shutil.rmtree("runs")
    assert "no runs and no caches" in make("clean-runs", answer="yes\n")[1]
    Path("cache/left.zarr").mkdir()
    make("clean-runs", "CONFIRM=yes")
    shutil.rmtree("cache")
    make("clean-runs", "CONFIRM=yes")
    assert Path("Makefile").exists()
    assert Path("pipelines/digits.toml").exists()
