"""Environment variables: each names its command, and one that does not is refused."""

from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import assert_refused, run_here
from vqgpt.cli.app import COMMANDS
from vqgpt.cli.running import FOR_ALL_COMMANDS, check_environment, environment_variable
from vqgpt.errors import UsageError
from vqgpt.options.definition import options_of

PAIRS = [
    (command, item)
    for command in COMMANDS.values()
    for item in [*options_of(command.config), *options_of(command.flags)]
    if not item.is_argument
]
FOR_ALL = {"VQGPT_DATA_ROOT", "VQGPT_DEVICE", "VQGPT_SEED"}
WITHOUT_COMMAND = sorted({f"VQGPT_{item.key.upper()}" for _, item in PAIRS} - FOR_ALL)
DRY_VQGAN = ["vqgan", "train", "--dataset", "digits", "--size", "16", "--dry-run"]


def test_every_option_has_a_variable_of_its_own_that_names_the_command():
    counts = Counter(environment_variable(item, command.words) for command, item in PAIRS)
    assert {name for name, count in counts.items() if count > 1} == FOR_ALL
    assert {name for name in WITHOUT_COMMAND if name in counts} == set()
    for command, item in PAIRS:
        if item.name not in FOR_ALL_COMMANDS:
            words = command.words.upper().replace(" ", "_")
            assert environment_variable(item, command.words) == f"VQGPT_{words}_{item.key.upper()}"


def test_a_variable_changes_its_command_alone(here, monkeypatch):
    monkeypatch.setenv("VQGPT_VQGAN_TRAIN_BATCH_SIZE", "7")
    monkeypatch.setenv("VQGPT_TRAIN_N_EPOCHS", "3")
    err = run_here(*DRY_VQGAN).err
    assert "batch_size=7 " in err
    assert "n_epochs=100 " in err


def test_three_variables_serve_every_command(here, monkeypatch):
    for name, value in {"VQGPT_DATA_ROOT": "photos", "VQGPT_SEED": "41", "VQGPT_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    err = run_here(*DRY_VQGAN).err
    for text in ("data_root=photos", "seed=41", "device=cpu"):
        assert text in err
    monkeypatch.setenv("VQGPT_DEVICE", "cuda:99")
    assert_refused(run_here("score", "none.zarr"), 2, "cuda:99")


@pytest.mark.parametrize("name", WITHOUT_COMMAND)
def test_a_variable_without_a_command_is_refused_and_the_new_ones_are_named(name):
    new = [environment_variable(item, command.words) for command, item in PAIRS if name == f"VQGPT_{item.key.upper()}"]
    with pytest.raises(UsageError) as raised:
        check_environment({"HOME": "/", name: "1"}, COMMANDS.values())
    assert name in raised.value.message
    assert all(each in raised.value.hint for each in new)


def test_every_command_refuses_a_variable_without_a_command(here, monkeypatch):
    monkeypatch.setenv("VQGPT_BATCH_SIZE", "64")
    for command in (["cache", "list"], DRY_VQGAN, ["doctor"]):
        new = ("VQGPT_TRAIN_BATCH_SIZE", "VQGPT_VQGAN_TRAIN_BATCH_SIZE", "VQGPT_TOKENIZE_BATCH_SIZE")
        assert_refused(run_here(*command), 2, "VQGPT_BATCH_SIZE is set", *new)


def test_help_is_shown_whatever_is_set_and_an_empty_variable_is_none(here, monkeypatch):
    monkeypatch.setenv("VQGPT_BATCH_SIZE", "64")
    assert run_here("train", "--help").code == 0
    monkeypatch.setenv("VQGPT_BATCH_SIZE", "")
    Path("cache").mkdir()
    assert run_here("cache", "list").code == 0
