"""The files of a training: one run at a time writes them, and no line of the metrics is lost."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.forked import fork_command
from tests.test_interruption import lines_of, saved_step, wait_for
from tests.test_vqgan_runs import SMALL
from vqgpt.options.definition import LoggingOptions
from vqgpt.progress import silent
from vqgpt.training.run import Job, TrainingFiles

TRAININGS = {
    "gpt": ["train", "--cache", "a.zarr", *TINY_GPT],
    "vqgan": ["vqgan", "train", "--dataset", "digits", *SMALL],
}


class UntrainedJob(Job):
    """A job of which only the files are looked at."""

    kind = "gpt"

    def content(self, figures):
        raise NotImplementedError


def open_run(name, report=silent, **changes):
    job = UntrainedJob(
        training=None,
        result=Path("s") / name,
        pictures=[],
        identity={"seed": 1, **changes},
        configuration={},
        logging=LoggingOptions(),
        overwrite=False,
        report=report,
        every_epochs=1,
    )
    return TrainingFiles(job)


@pytest.mark.parametrize(
    ("kind", "out"), [("gpt", "s/x.pt"), ("gpt", "link/x.pt"), ("gpt", "link.pt"), ("vqgan", "s/x.pt")]
)
def test_a_second_training_with_the_same_result_is_refused_and_the_first_goes_on(here, kind, out):
    write_cache(Path("a.zarr"), description())
    Path("s").mkdir()
    Path("link").symlink_to("s")
    Path("link.pt").symlink_to("s/x.pt")
    long = [*TRAININGS[kind], "--n-epochs", "10", "--sample-and-save-freq", "1"]
    first = fork_command(*long, "--out", "s/x.pt", cwd=here)
    wait_for(lambda: saved_step(Path("s/x.unfinished.pt")), first)
    first.send_signal(signal.SIGSTOP)
    second = run_here(*long, "--out", out, "--overwrite", "-q")
    assert_refused(second, 3, f"is being written by process {first.pid}", "--out")
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    steps = [line["step"] for line in lines_of(Path("s/metrics.jsonl"))]
    assert len(steps) == 10
    assert steps == sorted(set(steps))


def test_trainings_with_results_in_one_folder_keep_each_others_lines(here):
    def log_lines(run):
        for step in range(1, 101):
            run.log({"step": step})

    with open_run("a.pt") as run:
        logging = threading.Thread(target=log_lines, args=[run])
        logging.start()
        for seed in range(30):
            with open_run("b.pt", seed=seed) as other:  # drops the lines of the one before
                other.log({"step": 1})
        logging.join()
    records = lines_of(Path("s/metrics.jsonl"))
    assert [record["step"] for record in records if record["checkpoint"] == "a.pt"] == list(range(1, 101))
    assert [record["checkpoint"] for record in records].count("b.pt") == 1
    assert not list(Path("s").glob(".*.lock"))


@pytest.mark.parametrize("torn", ['{"stage": "gpt", "st', "x" * 200_000])
def test_a_torn_last_line_does_not_swallow_the_next_record(here, torn):
    metrics = Path("s/metrics.jsonl")
    with open_run("a.pt") as run:
        run.log({"step": 1})
        with open(metrics, "a") as file:
            file.write(torn)  # by a process that is killed, or meets a full disk
        run.log({"step": 2})
    assert [record["step"] for record in lines_of(metrics)] == [1, 2]


def test_lines_that_are_written_again_are_dropped_and_those_of_others_stay_byte_for_byte(here):
    metrics = Path("s/metrics.jsonl")
    with open_run("a.pt") as run:
        run.log({"step": 1})
    others = b'[1]\n"\xff\xe2\x80\xa8"\n\n'
    metrics.write_bytes(others + metrics.read_bytes() + b'{"torn')
    with open_run("a.pt", seed=2):
        pass
    assert metrics.read_bytes() == others


def test_what_a_finished_training_left_is_not_replaced_unasked(here):
    write_cache(Path("a.zarr"), description())
    command = [*TRAININGS["gpt"], "--out", "s/x.pt"]
    assert run_here(*command).code == 0
    names = {"x.pt", "x.best.pt", "x.samples.npy", "metrics.jsonl"}
    assert {path.name for path in Path("s").iterdir()} == names
    for gone, found in (("x.pt", "x.pt"), ("x.best.pt", "x.best.pt"), ("x.samples.npy", "x.samples.npy")):
        before = Path("s", found).read_bytes()
        assert_refused(run_here(*command, "-q"), 2, f"s/{found} exists", "--overwrite")
        assert Path("s", found).read_bytes() == before
        Path("s", gone).unlink()
    assert json.loads(Path("s/metrics.jsonl").read_text().splitlines()[0])["step"] == 1
    assert run_here(*command).code == 0


def flipped(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


DAMAGE = {"truncated": lambda data: data[: len(data) // 2], "empty": lambda data: b"", "flipped": flipped}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_valid_state_wins(here, damage):
    notices = []

    def state(step):
        weights = torch.full((5000,), float(step))
        progress = {"step": step, "ended": False, "losses": [], "best": 0.0, "worse": 0}
        return {**progress, "training": {"weights": weights}}

    def step_to_continue_from():
        with open_run("x.pt", notices.append) as run:
            return run.state["step"]

    with open_run("x.pt", notices.append) as run:
        for step in (1, 2, 3):
            run.save(state(step))
    assert step_to_continue_from() == 3
    assert not notices
    newest = Path("s/x.unfinished.pt")
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    with open_run("x.pt", notices.append) as again:
        assert again.state["step"] == 2
        assert "s/x.unfinished.pt" in notices[0].text
        again.save(state(3))
    assert step_to_continue_from() == 3  # and the state before it is still whole:
    newest.write_bytes(b"")
    assert step_to_continue_from() == 2


def damage(path):
    path.write_bytes(path.read_bytes()[:1000])


def test_where_no_state_can_be_continued_overwrite_starts_anew_and_nothing_is_to_be_deleted_by_hand(here):
    write_cache(Path("a.zarr"), description())
    command = [*TRAININGS["gpt"], "--out", "s/x.pt", "-q"]
    with open_run("x.pt") as run:
        run.keep_best({"model": {}})
        run.save({"step": 1, "ended": False})
    assert_refused(run_here(*TRAININGS["vqgan"], "--out", "s/x.pt", "-q"), 3, "of a gpt training", "another --out")
    for state in ("unfinished", "unfinished.previous"):
        damage(Path(f"s/x.{state}.pt"))
    assert_refused(run_here(*command), 3, "x.unfinished.pt is not a checkpoint", "give --overwrite to start anew")
    assert run_here(*command, "--overwrite").code == 0
    assert not list(Path("s").glob("*unfinished*"))


@pytest.mark.parametrize("name", ["x.best.pt", "x.samples.npy", "x.samples.png"])
def test_a_folder_where_a_file_is_to_be_is_told_before_the_first_step(here, name):
    write_cache(Path("a.zarr"), description())
    Path("s", name).mkdir(parents=True)
    outcome = run_here(*TRAININGS["gpt"], "--out", "s/x.pt", "--overwrite", "-q")
    assert_refused(outcome, 2, f"s/{name} is not a file")
    assert [path.name for path in Path("s").iterdir()] == [name]


def test_what_can_be_no_checkpoint_is_named_as_it_was_given(here):
    write_cache(Path("a.zarr"), description())
    Path("s").mkdir()
    Path("x.pt").symlink_to("s")
    os.mkfifo("pipe.pt")
    for command in TRAININGS.values():
        outcome = run_here(*command, "--out", "x.pt", "-q")
        assert_refused(outcome, 2, f"x.pt cannot be a checkpoint, it leads to {here / 's'}")
        assert_refused(run_here(*command, "--out", "pipe.pt", "--overwrite", "-q"), 2, "pipe.pt cannot be a checkpoint")
