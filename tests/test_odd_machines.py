"""Machines that lack something, or tell us nonsense: a line that names it, a line that says what to do."""

import errno
import socket
import subprocess
import sys

import pytest

from tests.conftest import OTHER_VQGAN, Outcome, assert_refused, run_here
from vqgpt.cli.running import explain
from vqgpt.runtime import process
from vqgpt.runtime.process import device_number

TRAIN = ["vqgan", "train", "--dataset", "digits", *OTHER_VQGAN]
TOGETHER = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        *(
            ({"WORLD_SIZE": text}, f"WORLD_SIZE={text} ")
            for text in ("x", "", "0", "-1", "1.5", "2x", " 2", "9" * 5000)
        ),
        *(({"RANK": text}, f"RANK={text} ") for text in ("x", "", "-1", "1")),
        *(({**TOGETHER, "RANK": text}, f"RANK={text} ") for text in ("", "2")),
        *(({**TOGETHER, name: None}, f"{name} is not set") for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")),
        ({**TOGETHER, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({**TOGETHER, "MASTER_PORT": "x"}, "MASTER_PORT=x "),
        ({**TOGETHER, "MASTER_PORT": "65536"}, "MASTER_PORT=65536 "),
    ],
)
def test_variables_of_torchrun_that_make_no_sense_are_named(here, monkeypatch, variables, named):
    for name, text in variables.items():
        if text is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, text)
    assert_refused(run_here(*TRAIN), 2, named, "torchrun")


@pytest.mark.parametrize("address", ["no.such.host.invalid", "a..b", "x" * 100])
def test_an_address_that_cannot_be_resolved_is_named(here, monkeypatch, address):
    monkeypatch.setattr(process, "SECONDS_TO_RESOLVE", 0.0)
    for name, text in {**TOGETHER, "MASTER_ADDR": address}.items():
        monkeypatch.setenv(name, text)
    assert_refused(run_here(*TRAIN), 2, f"MASTER_ADDR={address} cannot be resolved", "torchrun")


def test_a_process_whose_device_is_not_there_is_told(monkeypatch):
    for text, words in (("2", "LOCAL_RANK=2, and this machine has 2"), ("x", "LOCAL_RANK=x "), (None, "not set")):
        monkeypatch.setenv("LOCAL_RANK", text or "")
        if text is None:
            monkeypatch.delenv("LOCAL_RANK")
        with pytest.raises(Exception, match=words):
            device_number(2)


def limited(limit: str, value: int, *arguments: str) -> Outcome:
    """A command in a process of its own, which from then on may have no more of something than `value`."""
    code = f"import resource; from vqgpt.cli.app import main; resource.setrlimit(resource.{limit}, ({value}, {value}))"
    program = f"{code}; main({list(arguments)})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_too_little_memory_to_load_torch(here):
    assert_refused(limited("RLIMIT_AS", 200 * 2**20, *TRAIN), 5, "out of memory", "ulimit -v")
    # with a little more, libraries of torch may end the process by themselves: what lacks is said before
    assert "memory is limited to 600 MiB (`ulimit -v`)" in limited("RLIMIT_AS", 600 * 2**20, *TRAIN).err


def test_too_few_open_files(here):
    assert_refused(limited("RLIMIT_NOFILE", 3, "cache", "list"), 5, "too many open files", "ulimit -n")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "a.pt"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (ImportError("x.so: failed to map segment from shared object"), "out of memory"),
        (OSError(errno.EMFILE, "Too many open files", "a.pt"), "too many open files, at a.pt"),
        (RuntimeError("can't start new thread"), "threads"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "processes"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.pt"), "no space left to write a.pt"),
    ],
)
def test_what_ran_out_is_told(error, named):
    failure = explain(error)
    assert failure.exit_code == 5
    assert named in failure.message


def test_an_error_that_only_sounds_like_it_is_another():
    assert explain(OSError(errno.EACCES, "Permission denied", "out of memory")).exit_code == 3


def test_a_name_between_colons_is_no_emoji(here):
    assert_refused(run_here("vqgan", "info", "a:cat:.pt"), 4, "a:cat:.pt")


def test_a_port_that_another_program_has_is_named(here, monkeypatch):
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = str(other.getsockname()[1])
        for name, text in {**TOGETHER, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, text)
        assert_refused(run_here(*TRAIN), 2, "cannot meet", f"MASTER_PORT={port}", "torchrun")
