"""Metrics to Weights & Biases: the real package, offline."""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY_GPT, TINY_VQGAN, assert_refused, description, run_here, write_cache
from tests.forked import fork_command
from vqgpt.training.loop import has_login, is_installed

GPT = ["train", "--cache", "a.zarr", *TINY_GPT, "--out", "x/gpt.pt"]
VQGAN = ["vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--size", "8", "--limit", "64", "--out", "x/vqgan.pt"]

needs_wandb = pytest.mark.skipif(not is_installed(), reason="the package wandb is not there")


@pytest.fixture
def cache(here):
    """A folder with a token cache."""
    write_cache(Path("a.zarr"), description())
    return here


@pytest.fixture
def not_set_up(monkeypatch):
    """An environment in which wandb has no login."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "netrc")
    return monkeypatch


@needs_wandb
@pytest.mark.parametrize(("command", "figure"), [(GPT, "held_out_nats_per_token"), (VQGAN, "psnr_db")])
def test_metrics_go_to_wandb_where_it_is_set_up(cache, command, figure):
    process = fork_command(*command, cwd=cache, WANDB_MODE="offline")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "logging to Weights & Biases (offline); --no-wandb turns it off" in err
    (log,) = (cache / "x").glob("wandb/offline-run-*/*.wandb")
    *_, record = map(json.loads, (cache / "x/metrics.jsonl").read_text().splitlines())
    data = log.read_bytes()
    assert figure.encode() in data
    assert str(record[figure]).encode()[:8] in data


@pytest.mark.parametrize(
    ("mode", "flags"), [("offline", ["--no-wandb"]), ("disabled", []), ("disabled", ["--wandb"]), (None, [])]
)
def test_nothing_is_logged_there_unasked(cache, not_set_up, mode, flags):
    if mode:
        not_set_up.setenv("WANDB_MODE", mode)
    outcome = run_here(*GPT, *flags)
    assert outcome.code == 0, outcome.err
    assert "Biases" not in outcome.err
    assert not list(cache.glob("**/wandb"))


@needs_wandb
def test_a_server_that_does_not_answer_ends_no_training(cache, not_set_up):
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1"}
    process = fork_command(*GPT, cwd=cache, **nowhere)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "no longer logging to Weights & Biases" in err
    assert Path("x/gpt.pt").exists()


def test_a_login_is_a_key_or_an_entry_for_its_host(here, not_set_up):
    assert not has_login()
    Path("netrc").write_text("machine api.wandb.ai login user password 123\n")
    assert has_login()
    not_set_up.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_login()
    not_set_up.setenv("WANDB_API_KEY", "123")
    assert has_login()


@needs_wandb
def test_without_an_account_the_error_says_what_to_do(cache, not_set_up):
    assert_refused(run_here(*GPT, "--wandb", "-q"), 4, "account", "wandb login", "WANDB_MODE=offline")


def test_without_the_package_the_error_says_what_to_do(cache, not_set_up):
    not_set_up.setitem(__import__("sys").modules, "wandb", None)
    not_set_up.setenv("WANDB_MODE", "offline")
    assert run_here(*GPT, "-q").code == 0
    assert_refused(run_here(*GPT, "--wandb", "-q", "--overwrite"), 4, "wandb", "vqgpt[wandb]")
