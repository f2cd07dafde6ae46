"""Metrics to Weights & Biases: the real package, offline."""

import importlib.util
import json

import pytest

from tests.conftest import TINY_VQGAN, assert_refused, run_here, start_process

COMMAND = ["vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--n-epochs", "1", "--out", "x/vqgan.pt"]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not there")
def test_metrics_go_to_wandb_too(here):
    process = start_process(*COMMAND, "--wandb", cwd=here, WANDB_MODE="offline")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    (log,) = (here / "x").glob("wandb/offline-run-*/*.wandb")
    record = json.loads((here / "x/metrics.jsonl").read_text())
    data = log.read_bytes()
    assert b"psnr_db" in data
    assert str(record["psnr_db"]).encode()[:8] in data


def test_without_it_nothing_is_logged_there(here):
    for flag in (["--no-wandb"], ["--no_wandb"]):
        assert run_here(*COMMAND, *flag, "--overwrite").code == 0
    assert not list(here.glob("**/wandb"))


def test_without_the_package_the_error_says_what_to_do(here, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert_refused(run_here(*COMMAND, "--wandb", "-q"), 4, "wandb", "vqgpt[wandb]")
