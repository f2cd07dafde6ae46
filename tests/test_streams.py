"""Losing stdin, stdout or stderr costs the text and nothing else, and every text can be encoded."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, description, run_here, write_cache
from tests.forked import CLOSED, Forked, fork_command, start_ranks
from tests.test_interruption import saved_step
from vqgpt.cli.console import LossyStream, secure_streams
from vqgpt.runtime.process import stop_on_signals, terminated_as_interrupted
from vqgpt.tokens import Split

VQGPT = [sys.executable, "-m", "vqgpt"]
TRAIN = [
    "train",
    "--cache",
    "a.zarr",
    *TINY_GPT,
    "--n-epochs",
    "40",
    "--sample-and-save-freq",
    "5",
    "--out",
    "x/gpt.pt",
]


@pytest.fixture
def cache(here):
    """A folder with a token cache of 100 rows."""
    write_cache(Path("a.zarr"), description())
    return here


def assert_trained_to_the_end(folder: Path) -> None:
    assert torch.load(folder / "gpt.pt", weights_only=True)["figures"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 40
    assert {path.name for path in folder.iterdir()} == {"gpt.pt", "gpt.best.pt", "gpt.samples.npy", "metrics.jsonl"}


def read_and_go_away(fifo: Path) -> int:
    """A descriptor of the reader of a new FIFO, which does not wait for a writer; close it to go away."""
    os.mkfifo(fifo)
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)


def test_a_training_goes_on_when_its_reader_goes_away(cache):
    """As in `vqgpt train 2>&1 | head -1`."""
    reader = read_and_go_away(cache / "fifo")
    process = fork_command(*TRAIN, cwd=cache, out=cache / "fifo", err=cache / "fifo")
    assert select.select([reader], [], [], 60)[0]
    os.close(reader)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert_trained_to_the_end(cache / "x")


@pytest.mark.parametrize("screen", ["/dev/full", CLOSED])
def test_a_training_goes_on_without_a_screen(cache, screen):
    process = fork_command(*TRAIN, cwd=cache, out=screen, err=screen)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert_trained_to_the_end(cache / "x")


def test_ranks_go_on_without_a_screen(cache):
    ranks = start_ranks(2, "-m", "vqgpt", *TRAIN, out="/dev/full", err="/dev/full")
    for rank in ranks:
        rank.communicate(timeout=100)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert_trained_to_the_end(cache / "x")


def hang_up_on(process: Forked, terminal: int, state: Path) -> None:
    """Read what a process writes to its terminal until a step is saved, then close the terminal."""
    while not saved_step(state):
        assert process.poll() is None
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 2**16)
    os.close(terminal)


def test_a_terminal_that_hangs_up_lets_a_training_save_and_leave(cache, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal, other_end = pty.openpty()
    name = os.ttyname(other_end)
    process = fork_command(*TRAIN, "--n-epochs", "10000", cwd=cache, out=name, err=name)
    assert select.select([terminal], [], [], 60)[0]
    os.close(other_end)
    hang_up_on(process, terminal, cache / "x/gpt.unfinished.pt")
    process.communicate(timeout=60)
    assert process.returncode == 129
    state = torch.load("x/gpt.unfinished.pt", weights_only=True)["state"]
    assert 0 < state["step"] < 10000
    assert not list(Path("x").glob(".*"))


@pytest.mark.parametrize(
    "words",
    [
        ["tokenize", "--dataset", "digits", "--limit", "50", "--cache", "new.zarr"],
        ["sample", "--num-samples", "2", "--tokens-only", "--out", "new.zarr"],
        ["render", "cache/digits.zarr", "--limit", "5", "--out", "new/"],
        ["score", "runs/digits/samples.zarr", "--out", "new.npz"],
        ["cache", "export", "cache/digits.zarr", "--out", "new"],
    ],
    ids=lambda words: words[0],
)
def test_other_work_is_done_without_a_screen(pipeline, words):
    process = fork_command(*words, cwd=pipeline, out="/dev/full", err="/dev/full")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(Path().glob("new*"))


@pytest.mark.parametrize("words", [["datasets"], ["datasets", "--json"], ["--help"], ["--version"]])
def test_a_command_without_a_reader_leaves_quietly(here, words):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([*VQGPT, *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert result.returncode == 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("data root")] == []


def test_a_result_that_a_full_disk_loses_is_an_error(here):
    with open("/dev/full", "w") as full:
        result = subprocess.run([*VQGPT, "datasets"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 5
    assert "could not be written to stdout: No space left" in result.stderr


def test_a_command_runs_with_all_streams_closed_and_no_file_takes_their_place(here):
    code = (
        "import os, sys\nfrom vqgpt.cli.app import main\n"
        "try:\n    main(['cache', 'list'])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        "file = open('shard', 'wb')\nassert file.fileno() > 2\n"
        "print('lost')\nprint('lost', file=sys.stderr)\nos.write(2, b'of a C library')\n"
        "assert sys.stdin.read() == ''"
    )
    closing = ["bash", "-c", '"$0" -c "$1" >&- 2>&- <&-', sys.executable, code]
    assert subprocess.run(closing, check=False).returncode == 0
    assert Path("shard").read_bytes() == b""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"caf\xe9 \u65e5\u672c \udcff.zarr"),
        ("latin-1", "café ".encode("latin-1") + rb"\u65e5\u672c \udcff.zarr"),
        ("utf-8", "café 日本 ".encode() + rb"\udcff.zarr"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(here, encoding, shown):
    name = "café 日本 \udcff.zarr"
    write_cache(Path("cache", name), description())
    for words in (["cache", "list"], ["cache", "info", f"cache/{name}"], ["cache", "info", "cache/日本.zarr"]):
        command = [*VQGPT, *words, "--debug"]
        result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert result.returncode == (4 if "cache/日本.zarr" in words else 0), result.stderr
        assert b"Unicode" not in result.stderr
        assert shown in result.stdout or result.returncode == 4


def test_frames_are_plain_where_they_cannot_be_drawn(tmp_path):
    with open(tmp_path / "out", "w") as file:
        print("╭─ ━╸ │ é", file=LossyStream(file.fileno(), "ascii"))
    assert (tmp_path / "out").read_bytes() == b"+- -- | \\xe9\n"


def test_a_full_pipe_that_does_not_block_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text = "all of it\n" * 50_000

    def write() -> None:
        LossyStream(writer, "utf-8").write(text)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader) as file:
        assert file.read() == text
    thread.join()


def test_streams_that_a_caller_redirected_are_left_alone(capsys):
    with contextlib.redirect_stdout(sys.stderr):
        before = sys.stdout, sys.stderr
        secure_streams()
        assert (sys.stdout, sys.stderr) == before


def test_a_result_is_shown_on_one_line_whatever_a_name_holds(here):
    write_cache(Path("cache/two\nlines \x1b]0;title\x07.zarr"), description())
    assert r"two\nlines \x1b]0;title\x07.zarr" in run_here("cache", "list").out


def test_no_name_in_a_cache_controls_the_terminal(here):
    evil = "x\x1b[2J\x07\ny"
    what = description(
        dataset=evil,
        class_names=(evil, "b"),
        splits=(Split(name=evil, rows=8), Split(name="train", rows=8)),
        preprocessing={"rule": evil},
        views=(evil,),
        precision=evil,
        skipped=(evil,),
    )
    write_cache(Path("cache") / f"{evil}.zarr", what)
    for command in (["list"], ["info", f"cache/{evil}.zarr"], ["verify", f"cache/{evil}.zarr"], ["info", evil]):
        outcome = run_here("cache", *command, "-v")
        for text in (outcome.out, outcome.err):
            assert not [char for char in text.replace("\n", "") if not char.isprintable()]
        assert r"x\x1b[2J\x07\ny" in outcome.out + outcome.err


@pytest.fixture
def hang_ups():
    """SIGHUP does what it usually does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hang_up_is_heard_once(hang_ups):
    heard = []
    with stop_on_signals() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):  # the last is the first that somebody meant
            signal.raise_signal(number)
            heard.append(stop.number)
    signal.raise_signal(signal.SIGHUP)
    assert heard == [signal.SIGHUP] * 3
    assert stop.as_error("all is saved").exit_code == 129


@pytest.mark.parametrize("block", [stop_on_signals, terminated_as_interrupted])
def test_under_nohup_a_hang_up_is_not_heard(hang_ups, block):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with block() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert not stop
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
