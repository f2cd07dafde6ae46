"""Several ranks of one training stop together, and take every branch together.

STOPS=50 stops each kind of training so many times at random instants, instead of once.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import TINY_GPT, description, run_here, write_cache
from tests.forked import run_ranks, start_ranks
from tests.test_interruption import lines_of, saved_step, wait_for
from tests.test_vqgan_runs import SMALL

STOPS = int(os.environ.get("STOPS", "1"))
GPT = ["train", "--cache", "a.zarr", *TINY_GPT, "--batch-size", "40", "--out", "s/x.pt"]
KINDS = {
    "gpt": GPT,
    "parts": [*GPT, "--shard"],
    "vqgan": ["vqgan", "train", "--dataset", "digits", *SMALL, "--out", "s/x.pt"],
}
BETWEEN = """
import signal, sys
from vqgpt.training import loop as training_loop
from vqgpt.__main__ import run
from vqgpt.runtime.device import rank

late, healthy, agreements = int(sys.argv[1]), training_loop.largest_over_ranks, []

def agree_and_then_hear(number):
    agreed = healthy(number)
    agreements.append(agreed)
    if rank() == late and len(agreements) == 2:
        signal.raise_signal(signal.SIGTERM)
    return agreed

training_loop.largest_over_ranks = agree_and_then_hear
run(sys.argv[2:])
"""


@pytest.fixture(autouse=True)
def cache(here):
    write_cache(Path("a.zarr"), description())


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_that_one_rank_hears_after_all_have_agreed_waits_for_the_next_agreement(kind, late):
    Path("between.py").write_text(BETWEEN)
    result = run_ranks(2, "between.py", str(late), *KINDS[kind])
    assert result.returncode == 143, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    steps = "3 of 6 steps"
    assert sorted(errors) == [
        f"error: interrupted by SIGTERM; {steps} are saved in s/x.unfinished.pt",
        f"error: interrupted by SIGTERM; the main process has saved {steps}",
    ]
    assert saved_step(Path("s/x.unfinished.pt")) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_are_signalled_twice_save_and_the_same_command_continues(kind):
    """As by a scheduler that signals torchrun and its ranks: torchrun passes its own signal on to them."""
    for stop in range(STOPS):
        command = [*KINDS[kind], "--n-epochs", "2000", "--sample-and-save-freq", "5", "--overwrite"]
        ranks = start_ranks(2, "-m", "vqgpt", *command)
        wait_for(lambda: saved_step(Path("s/x.unfinished.pt")), ranks[0])
        time.sleep(random.Random(stop).uniform(0, 0.5) if STOPS > 1 else 0)
        for _ in range(2):
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
        errors = [rank.communicate(timeout=60)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [143, 143], errors
        assert f"{saved_step(Path('s/x.unfinished.pt'))} of " in errors[0]
        assert "steps are saved in s/x.unfinished.pt" in errors[0]
        assert "the main process has saved" in errors[1]
        Path("s/x.unfinished.pt").unlink()


BRANCHES = """
import sys
from vqgpt.__main__ import run
from vqgpt.runtime.device import rank
from vqgpt.gpt.training import GPTTraining

healthy, scores = GPTTraining.validate, []

def validate(self):
    figures = healthy(self)
    scores.append(float(len(scores) if rank() else -len(scores)))  # ever better on the main process, worse elsewhere
    return {**figures, "held_out_nats_per_token": scores[-1]}

GPTTraining.validate = validate
run(sys.argv[1:])
"""


def test_which_validation_is_the_best_and_when_to_stop_is_for_the_main_process_to_say():
    Path("branches.py").write_text(BRANCHES)
    command = [*KINDS["parts"], "--n-epochs", "4", "--sample-and-save-freq", "1", "--patience", "1"]
    result = run_ranks(2, "branches.py", *command)
    assert result.returncode == 0, result.stderr
    assert [line["held_out_nats_per_token"] for line in lines_of(Path("s/metrics.jsonl"))] == [0, -1, -2, -3]


def test_what_the_main_process_refuses_ends_the_others_too():
    assert run_here(*GPT).code == 0
    for leftover in ("x.pt", "metrics.jsonl", "x.samples.npy"):
        Path("s", leftover).unlink()
    result = run_ranks(2, "-m", "vqgpt", *GPT)
    assert result.returncode == 2, result.stderr
    assert "error: s/x.best.pt exists" in result.stderr
    assert "error: the main process of this run has ended" in result.stderr


ELSEWHERE = """
import os, sys
from vqgpt.__main__ import run
if os.environ["RANK"] == "1":  # as on another machine, with a disk of its own
    os.makedirs("other", exist_ok=True)
    os.chdir("other")
run(sys.argv[1:])
"""


def test_ranks_that_do_not_share_a_disk_start_together_and_do_not_continue():
    command = [*GPT, "--cache", str(Path("a.zarr").resolve()), "--n-epochs", "300"]
    Path("elsewhere.py").write_text(ELSEWHERE)
    ranks = start_ranks(2, str(Path("elsewhere.py").resolve()), *command)
    wait_for(lambda: saved_step(Path("s/x.unfinished.pt")), ranks[0])
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    assert [rank.communicate(timeout=60)[1].count("interrupted") for rank in ranks] == [1, 1]
    result = run_ranks(2, str(Path("elsewhere.py").resolve()), *command)
    assert result.returncode != 0
    assert "do not find the same state in s/x.unfinished.pt" in result.stderr
    assert not list(Path("s").glob(".*.lock"))
