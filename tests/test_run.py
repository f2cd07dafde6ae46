"""`vqgpt run`: which stages run, why, and what is not replaced unasked."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import assert_refused, files_of, run_here

RECIPE = """dataset = "digits"
[vqgan-train]
size = 16
channels = 32
z_channels = 8
ch_mult = [1, 1]
num_res_blocks = 1
n_embed = 16
embed_dim = 4
attn_resolutions = [8]
lr = 1e-3
limit = 64
batch_size = 32
n_epochs = 1
[tokenize]
limit = 64
[train]
condition = "class"
n_layer = 1
n_head = 2
embed_dim_t = 16
n_epochs = 1
lr = 1e-3
[sample]
num_samples = 10
temperature = 0.8
"""
STAGES = ["vqgan train", "vqgan reconstruct", "tokenize", "train", "sample", "evaluate samples", "report"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder in which `vqgpt run` ran: look, do not touch."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.toml").write_text(RECIPE)
        outcome = run_here("run", "--recipe", "tiny.toml", "--json")
        assert outcome.code == 0, outcome.err
        assert states(outcome) == dict.fromkeys(STAGES, "done")
    return folder


@pytest.fixture
def project(finished_run, tmp_path, monkeypatch):
    """A copy of it as the current folder. All its files have new times."""
    shutil.copytree(finished_run, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(*arguments):
    return run_here("run", "--recipe", "tiny.toml", "--json", *arguments)


def states(outcome) -> dict[str, str]:
    assert outcome.code == 0, outcome.err
    return {stage: told["state"] for stage, told in outcome.json["stages"].items()}


def those_that_ran(outcome) -> list[str]:
    return [stage for stage, state in states(outcome).items() if state in ("done", "would run")]


def edit(old: str, new: str) -> None:
    assert old in Path("tiny.toml").read_text()
    Path("tiny.toml").write_text(Path("tiny.toml").read_text().replace(old, new))


def test_the_second_run_has_nothing_to_do(project):
    before = files_of(project)
    outcome = run()
    assert states(outcome) == dict.fromkeys(STAGES, "up to date")
    assert "sample: up to date" in outcome.err
    assert files_of(project) == before


@pytest.mark.parametrize(
    ("old", "new", "stages", "why"),
    [
        ("temperature = 0.8", "temperature = 0.9", STAGES[4:], "[sample] temperature was 0.8, is 0.9"),
        ("[tokenize]", "[vqgan-reconstruct]\nnum_images = 3\n[tokenize]", ["vqgan reconstruct"], "was 16, is 3"),
        ("[tokenize]", "[evaluate-samples]\nseed = 1\n[tokenize]", STAGES[5:], "seed was 0, is 1"),
        ("[tokenize]", "[tokenize]\nbatch_size = 9", [], ""),
        ("lr = 1e-3", "lr = 0.001  # a comment", [], ""),
        ('dataset = "digits"', 'num_workers = 0\ndevice = "cpu"\ndataset = "digits"', [], ""),
    ],
)
def test_what_the_recipe_changed_runs_and_nothing_else(project, old, new, stages, why):
    networks = [Path(f"runs/digits/{name}.pt").read_bytes() for name in ("vqgan", "gpt")]
    edit(old, new)
    assert those_that_ran(run("--dry-run")) == stages
    outcome = run()
    assert those_that_ran(outcome) == stages
    assert why in outcome.err
    assert [Path(f"runs/digits/{name}.pt").read_bytes() for name in ("vqgan", "gpt")] == networks
    assert those_that_ran(run()) == []


@pytest.mark.parametrize(
    ("old", "new", "result", "why", "stages"),
    [
        ("embed_dim_t = 16", "embed_dim_t = 32", "gpt.pt", "[train] embed_dim_t was 16, is 32", STAGES[3:]),
        ("[tokenize]\nlimit = 64", "[tokenize]\nlimit = 32", "digits.zarr", "limit was 64, is 32", STAGES[2:]),
        ("[vqgan-train]", "[vqgan-train]\nseed = 3", "vqgan.pt", "[vqgan-train] seed was 0, is 3", STAGES),
    ],
)
def test_what_took_long_is_replaced_only_when_asked(project, old, new, result, why, stages):
    before = files_of(project)
    edit(old, new)
    outcome = run()
    assert_refused(outcome, 2, result, why, "--overwrite")
    assert states(run("--dry-run"))[stages[0]] == "stops without --overwrite"
    edit(new, old)
    assert those_that_ran(run()) == []
    assert files_of(project) == before
    edit(old, new)
    assert those_that_ran(run("--dry-run", "--overwrite")) == stages
    assert those_that_ran(run("--overwrite")) == stages
    assert those_that_ran(run()) == []


def test_until_ends_there_and_a_dry_run_writes_nothing(here):
    Path("tiny.toml").write_text(RECIPE)
    before = files_of(here)
    outcome = run("--dry-run")
    assert states(outcome) == dict.fromkeys(STAGES, "would run")
    assert outcome.json["stages"]["tokenize"]["why"] == "after vqgan train"
    assert all(stage["seconds"] > 0 for stage in outcome.json["stages"].values())
    assert files_of(here) == before
    assert list(states(run("--until", "vqgan-train"))) == ["vqgan train"]
    assert those_that_ran(run("--until", "vqgan-reconstruct", "--dry-run")) == ["vqgan reconstruct"]
    assert not Path("cache").exists()


def test_a_missing_result_is_made_again(project):
    Path("runs/digits/samples.png").unlink()
    assert those_that_ran(run()) == ["sample"]
    shutil.rmtree("cache")
    assert those_that_ran(run()) == ["tokenize"]


def test_what_plain_commands_made_is_taken_by_its_content(project):
    for record in Path("runs/digits").glob("*.made.json"):
        record.unlink()
    for name in ("samples.zarr", "samples.png", "reconstructions.png"):
        path = Path("runs/digits", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert those_that_ran(run()) == ["vqgan reconstruct", "tokenize", "sample", "evaluate samples", "report"]
    assert those_that_ran(run()) == []
    Path("runs/digits/train.made.json").unlink()
    edit("n_layer = 1", "n_layer = 2")
    assert_refused(run(), 2, "gpt.pt", "[train] n_layer was 1, is 2")


def test_another_network_in_its_place_is_noticed(project):
    outcome = run_here("train", "--recipe", "tiny.toml", "--dataset", "digits", "--seed", "5", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert_refused(run(), 2, "gpt.pt", "[train] seed was 5, is 0")
    edit("[train]", "[train]\nseed = 5")
    assert those_that_ran(run()) == STAGES[4:]


def test_samples_of_another_command_are_not_replaced_unasked(project):
    assert run_here("sample", "--dataset", "digits", "--num-samples", "3", "--overwrite").code == 0
    assert_refused(run(), 2, "samples.zarr", "another command", "--overwrite")
    assert those_that_ran(run("--overwrite")) == ["sample"]  # the same samples again: their evaluation stands


def test_the_evaluation_is_kept_and_can_be_left_out(project):
    evaluation = json.loads(Path("runs/digits/evaluation.json").read_text())
    assert evaluation["samples"][-1]["samples"] == "10 images of runs/digits/samples.zarr"
    Path("runs/digits/evaluate-samples.made.json").unlink()
    assert list(states(run("--no-evaluate"))) == [*STAGES[:5], "report"]
    assert list(states(run("--until", "sample"))) == STAGES[:5]
    outcome = run_here("run", "--recipe", "tiny.toml")
    assert outcome.code == 0, outcome.err
    assert "MIND" in outcome.out
    assert "few" in outcome.out  # ten samples are, and it says so
    kept = json.loads(Path("runs/digits/evaluation.json").read_text())["samples"]
    assert all(entry in kept for entry in evaluation["samples"])
    edit("[tokenize]", '[evaluate-samples]\nfeatures = "classifier"\n[tokenize]')
    assert run_here("evaluate", "samples", "runs/digits/samples.zarr", "--limit", "9", "--features", "lite0").code == 0
    assert those_that_ran(run("--dry-run")) == STAGES[5:]


def test_damaged_and_older_records(project):
    record = Path("runs/digits/sample.made.json")
    content = json.loads(record.read_text())
    del content["options"]["top_k"]  # which a former version did not have
    record.write_text(json.dumps(content))
    assert those_that_ran(run()) == []
    Path("runs/digits/train.made.json").write_text("{")
    assert those_that_ran(run()) == []
    record.write_text(json.dumps({**content, "finished": False}))
    outcome = run()
    assert those_that_ran(outcome) == ["sample"]
    assert "interrupted" in outcome.err


def test_a_vqgan_that_the_recipe_names_is_used_and_none_trained(project):
    Path("runs/digits/vqgan.pt").rename("theirs.pt")
    edit('dataset = "digits"', 'dataset = "digits"\ncheckpoint_vae = "theirs.pt"')
    outcome = run()
    assert states(outcome) == dict.fromkeys(STAGES[1:], "up to date")


def test_without_a_recipe_or_dataset_it_says_what_there_is(here):
    assert_refused(run_here("run"), 2, "no recipe", "digits")
    assert_refused(run_here("run", "--recipe", "mnits"), 2, "mnits", "mnist")
