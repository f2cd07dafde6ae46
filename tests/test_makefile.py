"""`make all` runs what the recipe changed, and replaces or deletes nothing that took long without being asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIPELINE = ["vqgan train", "tokenize", "train", "sample", "render", "vqgan reconstruct"]
VQGPT = """#!/bin/sh
# Makes the files of vqgpt, unless they are there; `fail` names a command that is killed, which leaves a part.
echo "$*" >> calls
overwrite= out= last=
for word; do
  case $last in --out|--cache) out=$word;; esac
  case $word in --overwrite) overwrite=yes;; esac
  last=$word
done
case $1 in train) case "$*" in *--cache*) out=runs/digits/gpt.pt;; esac;; esac
case $out in *.zarr) complete=$out/zarr.json; mkdir -p "$out";; *) complete=$out; mkdir -p "$(dirname "$out")";; esac
if test -e "$complete" -a -z "$overwrite" && ! grep -q unfinished "$complete"; then
  case $out in *.zarr) test ! -e other || { echo "holds other tokens" >&2; exit 3; }; exit 0;; esac
  echo "$out exists" >&2; exit 2
fi
case "$*" in "$(cat fail)"*)
  case $out in *.zarr) echo unfinished > "$complete";; *) echo unfinished > "$out.unfinished";; esac
  exit 143;;
esac
rm -f "$out.unfinished"
echo '"status": "complete"' $$ > "$complete"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the Makefile and its recipe, an environment that is ready, and a vqgpt that only makes files."""
    monkeypatch.chdir(tmp_path)
    for name in ("Makefile", "pipelines/digits.toml", "cache/FORMAT.md", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, name)
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/.ready").touch()
    Path(".venv/bin/vqgpt").write_text(VQGPT)
    Path(".venv/bin/vqgpt").chmod(0o755)
    Path("fail").write_text("nothing")
    return tmp_path


def make(*arguments: str, code: int = 0) -> tuple[list[str], str]:
    """The commands that make ran, and all that it said."""
    Path("calls").write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ended = subprocess.run(
        ["make", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    assert ended.returncode == code, ended.stdout
    calls = Path("calls").read_text().splitlines()
    return calls, ended.stdout


def names(calls: list[str]) -> list[str]:
    return [next(name for name in PIPELINE if call.startswith(f"{name} ")) for call in calls]


def edit(old: str, new: str) -> None:
    recipe = Path("pipelines/digits.toml")
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))


def trained() -> dict[str, str]:
    return {name: Path(name).read_text() for name in ("runs/digits/vqgan.pt", "runs/digits/gpt.pt")}


def test_the_second_make_all_has_nothing_to_do(project):
    calls, _ = make("all")
    assert sorted(names(calls)) == sorted(PIPELINE)
    assert not any("--overwrite" in call for call in calls if names([call])[0] in ("vqgan train", "tokenize", "train"))
    for arguments in (["all"], ["-n", "all"]):
        calls, said = make(*arguments)
        assert calls == []
        assert "vqgpt" not in said
    assert "digits is up to date" in said


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("num_samples = 100", "num_samples = 50", ["sample", "render"]),
        ("temperature = 0.8", "temperature = 0.8\n\n[render]\nlimit = 9", ["render"]),
        ("[sample]", "[vqgan-reconstruct]\nnum_images = 3\n\n[ sample ]  # as before", ["vqgan reconstruct"]),
        ("[sample]", "[tokenize]\nbatch_size = 9\n[sample]", ["tokenize"]),  # vqgpt finds the cache complete
        ("lr = 4e-2", "lr = 4e-2  # a comment", []),
        ("# Two minutes", "# Three minutes", []),
        ("n_layer = 4\nn_head = 4", "\nn_head = 4\n  n_layer = 4", []),
    ],
)
def test_what_the_recipe_changed_is_made_anew_and_nothing_trained(project, old, new, stages):
    make("all")
    before = trained()
    edit(old, new)
    announced = [name for name in PIPELINE if f"vqgpt {name} " in make("-n", "all")[1]]
    assert announced == [name for name in PIPELINE if name in stages] or stages == ["tokenize"]
    calls, _ = make("all")
    assert sorted(names(calls)) == sorted(stages)
    assert trained() == before
    assert make("all")[0] == []


@pytest.mark.parametrize(
    ("old", "new", "result", "anew"),
    [
        ("lr = 2e-3", "lr = 1e-3", "runs/digits/vqgan.pt", PIPELINE),
        ("lr = 4e-2", "lr = 2e-2", "runs/digits/gpt.pt", ["train", "sample", "render"]),
        ('dataset = "digits"', 'dataset = "digits"\nseed = 3', "runs/digits/vqgan.pt", PIPELINE),
    ],
)
def test_a_training_is_repeated_only_when_asked(project, old, new, result, anew):
    make("all")
    before = trained()
    edit(old, new)
    for _ in range(2):
        calls, said = make("all", code=2)
        assert not {"vqgan train", "train"} & set(names(calls))
        assert f"{result} was trained with other settings than are in pipelines/digits.toml now" in said
        assert f"now: {new.splitlines()[-1]}" in said
        assert "OVERWRITE=1" in said
        assert trained() == before
    edit(new, old)
    assert not {"vqgan train", "train"} & set(names(make("all")[0]))  # as it was: no training is out of date
    edit(old, new)
    make("all", code=2)
    calls, _ = make("all", "OVERWRITE=1")
    assert sorted(names(calls)) == sorted(anew)
    assert make("all")[0] == []
    assert trained()[result] != before[result]


def test_values_of_several_lines_and_lines_of_windows_are_read(project):
    edit("ch_mult = [1, 2]", "ch_mult = [\n  1,\n  2,\n]")
    recipe = Path("pipelines/digits.toml")
    recipe.write_text(recipe.read_text(), newline="\r\n")
    make("all")
    before = trained()
    for old, new, result in [("  1,\n  2,", "  2,\n  1,", "vqgan.pt"), ("lr = 4e-2", "lr = 2e-2", "gpt.pt")]:
        for earlier, later in [(old, new), (new, old)]:
            recipe.write_text(recipe.read_text().replace(earlier, later), newline="\r\n")
            if later == new:
                assert f"{result} was trained with other settings" in make("all", code=2)[1]
        assert trained() == before
    edit("num_samples = 100", "num_samples = 50")
    assert names(make("all")[0]) == ["sample", "render"]


def test_keep_takes_what_is_there_as_up_to_date(project):
    make("all")
    before = trained()
    edit("lr = 2e-3", "lr = 1e-3")
    make("all", code=2)
    assert "kept: runs/digits/gpt.pt" in make("keep")[1]
    assert make("all")[0] == []
    assert trained() == before


def test_results_of_another_way_are_taken_as_they_are(project):
    """A VQ-GAN that was imported, or a pipeline of an earlier Makefile, is not trained anew."""
    Path("runs/digits").mkdir(parents=True)
    Path("runs/digits/vqgan.pt").write_text("imported")
    calls, _ = make("all")
    assert "vqgan train" not in names(calls)
    assert Path("runs/digits/vqgan.pt").read_text() == "imported"


@pytest.mark.parametrize("stage", ["vqgan train", "tokenize", "train", "sample"])
def test_what_was_killed_is_continued(project, stage):
    Path("fail").write_text(stage)
    make("all", code=2)
    Path("fail").write_text("nothing")
    calls, _ = make("all")
    assert names(calls)[0] == stage
    assert make("all")[0] == []


def test_a_repetition_that_was_killed_is_not_taken_as_done(project):
    make("all")
    before = trained()
    edit("lr = 4e-2", "lr = 2e-2")
    Path("fail").write_text("train")
    make("all", "OVERWRITE=1", code=2)
    Path("fail").write_text("nothing")
    make("all", code=2)
    assert trained() == before
    assert "train" in names(make("all", "OVERWRITE=1")[0])
    assert make("all")[0] == []


def test_a_cache_of_another_vqgan_is_replaced_only_when_asked(project):
    make("all")
    Path("runs/digits/vqgan.pt").write_text("trained by hand")
    Path("other").touch()
    before = Path("cache/digits.zarr/zarr.json").read_text()
    calls, said = make("all", code=2)
    assert "tokenize" in names(calls)
    assert "holds other tokens" in said
    assert Path("cache/digits.zarr/zarr.json").read_text() == before
    Path("other").unlink()
    assert {"tokenize", "train"} <= set(names(make("all", "OVERWRITE=1")[0]))


def test_clean_leaves_what_pipelines_made(project):
    make("all")
    before = trained()
    make("clean")
    assert not Path(".venv").exists()
    assert trained() == before
    assert Path("cache/digits.zarr/zarr.json").exists()
    listed = make("clean-runs")[1]
    assert "runs/digits" in listed
    assert "cache/digits.zarr" in listed
    assert "YES=1" in listed
    assert trained() == before
    make("clean-runs", "YES=1")
    assert [str(path) for path in sorted(Path.cwd().glob("[cr][au]*/*"))] == [str(project / "cache/FORMAT.md")]
    make("clean-runs")


def test_an_unknown_dataset_is_named(project):
    assert "there is no recipe pipelines/mnits.toml" in make("all", "DATASET=mnits", code=2)[1]
