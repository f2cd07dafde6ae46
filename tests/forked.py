"""Real processes at little cost: each is forked from one that has done what takes seconds (`tests.preloaded`).

fork_command("train", "--out", "x.pt", cwd=folder)  ->  Forked, to be watched and stopped like a Popen
run_ranks(2, "program.py", "argument")              ->  a program on two ranks, as torchrun would start them
Commands().run(arguments=["train"], kill_before=7)  ->  how it ended, killed before disk operation 7
"""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

CLOSED = "closed"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded", "tests.remote_child"])


def run_program(program: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    """What the new process does; its exit code is that of the program."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    if err.startswith("/dev/pts/"):
        os.setsid()
        os.dup2(os.open(err, os.O_RDWR), 0)  # which makes it the terminal of the session
    for descriptor, file in ((1, out), (2, err)):
        if file == CLOSED:
            os.close(descriptor)
        else:
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


class Forked:
    """A process that runs a program, or `-m MODULE`; used as a Popen is.

    `out` and `err` are what it writes to in place of what `communicate` returns: a path, or CLOSED.
    """

    def __init__(self, *program: str, cwd: Path, out: str = "", err: str = "", **environment: str) -> None:
        self.outputs = Path(tempfile.mkdtemp())
        words = [str(word) for word in program]
        whole = {**os.environ, **environment}  # not that of the process from which all are forked
        outputs = (str(out or self.outputs / "out"), str(err or self.outputs / "err"))
        arguments = (words, str(cwd), whole, *outputs)
        self.process = CONTEXT.Process(target=run_program, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it ended just now
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        files = [self.outputs / name for name in ("out", "err")]
        texts = tuple(file.read_text() if file.exists() else "" for file in files)  # none of one that died at once
        shutil.rmtree(self.outputs)
        return texts


def fork_command(*arguments: str, cwd: Path, **environment: str) -> Forked:
    """Start a vqgpt command."""
    return Forked("-m", "vqgpt", *arguments, cwd=cwd, **environment)


def start_ranks(processes: int, *program: str, **environment: str) -> list[Forked]:
    """Start a program, or `-m MODULE`, on several ranks in the current folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
    numbers = map(str, range(processes))
    return [Forked(*program, cwd=Path.cwd(), RANK=rank, LOCAL_RANK=rank, **common) for rank in numbers]


def run_ranks(processes: int, *program: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a program on several ranks; where one fails, the others are stopped, as by torchrun."""
    ranks = start_ranks(processes, *program, **environment)
    while None in (codes := [rank.poll() for rank in ranks]):
        if any(codes):
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    outputs, errors = zip(*(rank.communicate() for rank in ranks), strict=True)
    code = next((code for code in codes if code), 0)
    return subprocess.CompletedProcess(program, code, "".join(outputs), "".join(errors))


class Commands:
    """The program `tests.forked_commands`, whose children run in the current folder."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_commands"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, **request) -> dict:
        self.process.stdin.write(json.dumps({"folder": str(Path.cwd()), **request}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def shards_begun(self) -> int:
        """Since the last call."""
        calls = Path("calls.log")
        count = calls.stat().st_size if calls.exists() else 0
        calls.unlink(missing_ok=True)
        return count

    def close(self) -> None:
        self.process.communicate(timeout=60)
