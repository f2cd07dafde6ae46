"""Users without a home folder, or without a name: each command works, or says on one line what to set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OTHER_VQGAN, assert_refused, run_here
from vqgpt.training.loop import has_login

NOBODY = 12345  # no user has this number
UNKNOWN = ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME")


@pytest.fixture
def homeless(here, monkeypatch):
    """An empty current folder, and no home folder."""
    monkeypatch.setenv("HOME", "~")  # which makes Python look for the home folder, and find none
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(RuntimeError):
        Path.home()
    return here


def test_the_pipeline_runs(homeless):
    for words in (
        ["doctor"],
        ["datasets"],
        ["vqgan", "train", "--dataset", "digits", *OTHER_VQGAN],
        ["tokenize", "--dataset", "digits", "--limit", "20"],
    ):
        outcome = run_here(*words)
        assert outcome.code == 0, outcome.err
    assert "data root: data\n" in run_here("datasets").err
    assert {path.name for path in homeless.iterdir()} == {"runs", "cache"}


def test_a_home_that_is_no_folder_keeps_no_images(here, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    Path("file").touch()
    Path("unmounted").symlink_to("missing/home")
    for home in ("file", "unmounted"):
        monkeypatch.setenv("HOME", str(here / home))
        assert "data root: data\n" in run_here("datasets").err


def test_the_weights_of_the_perceptual_loss_have_no_place(homeless, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    words = ["vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--perceptual", "lpips", "-q"]
    assert_refused(run_here(*words), 4, "no home folder", "set HOME or TORCH_HOME")
    assert not Path("~").exists()


def test_a_home_that_cannot_be_written_to_is_told_with_what_to_set(here, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(here / "file" / "torch"))
    Path("file").touch()
    words = ["vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--perceptual", "lpips", "-q"]
    assert_refused(run_here(*words), 4, f"cannot be written to {here}/file/torch", "set TORCH_HOME")


def test_a_folder_below_no_home_is_refused_in_a_line(homeless):
    assert_refused(run_here("datasets", "--data-root", "~/images", "-q"), 2, "~", "set HOME")


def test_the_completion_of_a_shell_has_no_place(homeless, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert_refused(run_here("--install-completion", "bash"), 2, "no home", "set HOME")


def test_weights_and_biases_has_no_login(homeless, monkeypatch):
    for name in ("NETRC", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert not has_login()


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(("command", "home"), [("doctor", {}), ("datasets", {"HOME": "/"})])  # which Docker says
def test_a_user_without_a_name_keeps_images_here(here, command, home):
    code = f"import os; os.setreuid({NOBODY}, 0); from vqgpt.cli.app import main; main(['{command}'])"
    environment = {name: value for name, value in os.environ.items() if name not in UNKNOWN} | home
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^data root:? +data$", result.stdout + result.stderr, re.MULTILINE)
