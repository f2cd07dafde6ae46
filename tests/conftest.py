"""Shared by all tests: running commands in a folder of their own, and one tiny pipeline that many tests look at."""

import ctypes
import functools
import io
import json
import os
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vqgpt.cli.app import main
from vqgpt.tokens import CacheWriter, Description, Split

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: test processes share the cores, and equal bytes need equal threads
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)  # for what is forked or started; before the first
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell starts in the background
os.environ["WANDB_MODE"] = "disabled"  # where it is set up, trainings log by themselves

TINY_VQGAN = ["--size", "16", "--channels", "32", "--z-channels", "8", "--ch-mult", "1", "1", "--num-res-blocks", "1"]
TINY_VQGAN += ["--n-embed", "16", "--embed-dim", "4", "--attn-resolutions", "8", "--lr", "1e-3"]
TINY_VQGAN += ["--limit", "256", "--batch-size", "32", "--n-epochs", "1"]
OTHER_VQGAN = [*TINY_VQGAN, "--limit", "16", "--batch-size", "16", "--seed", "1"]
TINY_GPT = [
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--embed-dim-t",
    "16",
    "--n-epochs",
    "2",
    "--warmup",
    "1",
    "--lr",
    "1e-3",
]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


def run_here(*arguments: str) -> Outcome:
    """Run a vqgpt command in this process and in the current folder."""
    out, err = io.StringIO(), io.StringIO()
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a command that hears a signal leaves it ignored
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            signal.signal(signal.SIGHUP, hang_up)
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_refused(outcome, code, *words):
    """One line that names the thing, one that says what to do, no traceback, nothing on stdout."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    error = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    remedy = [line for line in outcome.err.splitlines() if line.startswith("  try: ")]
    assert len(error) == len(remedy) == 1, outcome.err
    for word in words:
        assert word in error[0] + remedy[0]


def torchrun(processes: int) -> list[str]:
    """How a command line begins that starts what follows on several processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launch, "--nproc-per-node", str(processes)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory):
    """A folder in which the whole pipeline ran on digits, tiny: look, do not touch."""
    folder = tmp_path_factory.mktemp("pipeline")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in (
            ["vqgan", "train", "--dataset", "digits", *TINY_VQGAN],
            ["tokenize", "--dataset", "digits"],
            ["train", "--condition", "class", *TINY_GPT],
            ["sample", "--num-samples", "20"],
        ):
            outcome = run_here(*command)
            assert outcome.code == 0, outcome.err
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a network."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    words = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=words)
        yield chromium
        chromium.close()


def violations(page):
    """What axe-core finds on a page: its rules, and an element each."""
    from axe_playwright_python.sync_playwright import Axe

    return [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page).response["violations"]]


@pytest.fixture(scope="module")
def copied_pipeline(finished_pipeline, tmp_path_factory):
    """A copy of the tiny pipeline for the tests of a module, which may add to it."""
    copy = tmp_path_factory.mktemp("copied") / "copy"
    shutil.copytree(finished_pipeline, copy)
    return copy


@pytest.fixture
def pipeline(finished_pipeline, tmp_path, monkeypatch):
    """A copy of the tiny pipeline, as the current folder: break it as you like."""
    shutil.copytree(finished_pipeline, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def commands():
    """What runs commands in processes to be killed."""
    from tests.forked import Commands

    program = Commands()
    yield program
    program.close()


@pytest.fixture
def as_any_user():
    """Permissions of files count, for root too, who owns what tests make.

    CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2) are laid down.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    assert libc.capget(header, held) == 0
    fewer[:] = [held[0] & ~(1 << 1 | 1 << 2), *held[1:]]
    assert libc.capset(header, fewer) == 0
    yield
    assert libc.capset(header, held) == 0


@pytest.fixture
def begin_anew(monkeypatch):
    """Called with a PATH: from then on nothing is compiled yet, as in a new process that looks for a compiler there."""
    from vqgpt.kernels import attention, decoding, normalisation, winograd
    from vqgpt.kernels.build import compiled_library

    def begin(path):
        monkeypatch.setenv("PATH", str(path))
        for module in (attention, decoding, normalisation, winograd):
            monkeypatch.setattr(module, "compiled_library", functools.cache(compiled_library.__wrapped__))

    return begin


def description(rows=(100, 30), **changes) -> Description:
    """A small token cache's description."""
    values = {
        "origin": "encoded",
        "dataset": "digits",
        "class_names": ("a", "b"),
        "label_kind": "class",
        "source_sha256": "s" * 64,
        "splits": (Split(name="train", rows=rows[0]), Split(name="test", rows=rows[1])),
        "limit": None,
        "val_split": None,
        "image_size": (16, 12),
        "image_channels": 1,
        "preprocessing": {"rule": "none"},
        "skipped": (),
        "views": ("identity",),
        "grid": (4, 3),
        "codebook_size": 16,
        "code_dimension": 2,
        "tokenizer_sha256": "t" * 64,
        "precision": "fp32",
        "sampling": {},
        "shard_rows": 32,
    }
    return Description(**{**values, **changes})


def rows_of(shard, what: Description, seed=0):
    """The rows of a shard: a pure function of the description, the shard and the seed."""
    generator = np.random.default_rng([seed, len(shard.split), shard.index])
    count = shard.stop - shard.start
    codes = generator.integers(0, what.codebook_size, (count, len(what.views), *what.grid))
    if what.label_kind == "bits":
        labels = generator.integers(0, 2, (count, len(what.class_names)))
    else:
        labels = generator.integers(0, len(what.class_names), count)
    return codes, labels, np.arange(shard.start, shard.stop)


def write_cache(path: Path, what: Description, only_first: int | None = None) -> Path:
    """Write a cache with made-up rows, or only its first missing shards."""
    codebook = np.arange(what.codebook_size * what.code_dimension, dtype=np.float32)
    writer = CacheWriter.create_or_resume(path, what, codebook.reshape(-1, what.code_dimension), {"vqgpt": "test"})
    for shard in list(writer.missing())[:only_first]:
        writer.write(shard, *rows_of(shard, what))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
