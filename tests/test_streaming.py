"""Tokens that do not fit in memory: the same batches as from memory, any start, few windows at a time."""

from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.forked import fork_command
from tests.test_interruption import assert_same_training, saved_step, wait_for
from vqgpt.gpt.token_grids import StreamedGrids, TokenGrids
from vqgpt.runtime.device import epoch_order
from vqgpt.training.schedule import Schedule, StreamOrder

SIZES = {
    "num_rows": st.integers(1, 70),
    "shard_rows": st.sampled_from([1, 3, 8, 100]),
    "buffer_rows": st.integers(1, 100),
    "seed": st.integers(0, 2**62),
}
CPU = torch.device("cpu")


@given(**SIZES, epoch=st.integers(0, 3))
def test_every_row_comes_once_and_only_rows_of_a_window_mix(num_rows, shard_rows, buffer_rows, seed, epoch):
    order = StreamOrder(num_rows=num_rows, shard_rows=shard_rows, buffer_rows=buffer_rows, seed=seed)
    rows = order.rows(epoch)
    assert sorted(rows.tolist()) == list(range(num_rows))
    assert torch.equal(rows, replace(order).rows(epoch))
    start = 0
    for shards in order.windows(epoch):
        in_window = [row for row in range(num_rows) if row // shard_rows in shards]
        assert len(in_window) <= max(buffer_rows, shard_rows)
        assert sorted(rows[start : start + len(in_window)].tolist()) == in_window
        start += len(in_window)
    if buffer_rows >= num_rows:
        assert torch.equal(rows, epoch_order(seed, epoch, num_rows))


def test_epochs_and_seeds_differ():
    def rows(seed, epoch):
        return StreamOrder(num_rows=64, shard_rows=4, buffer_rows=16, seed=seed).rows(epoch).tolist()

    assert len({tuple(rows(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@settings(max_examples=40, deadline=None)
@given(**SIZES, batch_size=st.integers(1, 40), first=st.floats(0, 1))
def test_batches_are_those_of_the_loaded_tokens_from_any_step_on(
    num_rows, shard_rows, buffer_rows, seed, batch_size, first
):
    order = StreamOrder(num_rows=num_rows, shard_rows=shard_rows, buffer_rows=buffer_rows, seed=seed)
    codes = torch.arange(num_rows * 2 * 3).view(num_rows, 2, 1, 3).to(torch.int32)
    loaded = TokenGrids(codes=codes, labels=torch.arange(num_rows))

    def load(shards):
        rows = torch.cat([torch.arange(num_rows)[shard * shard_rows : (shard + 1) * shard_rows] for shard in shards])
        assert len(rows) <= max(buffer_rows, shard_rows)
        return TokenGrids(codes=codes[rows], labels=rows)

    streamed = StreamedGrids(order, 3, load, 2, CPU)
    schedule = Schedule(seed=seed, num_rows=num_rows, batch_size=batch_size, n_epochs=3, stream=order)
    start = int(first * (schedule.num_steps - 1))
    for step, again in zip(schedule.steps(start), schedule.steps(start), strict=True):
        views = step.rows % 2
        ours = streamed.batch(step.epoch, step.rows, views)
        theirs = loaded.batch(again.epoch, again.rows, views)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        shards_of_step = set((step.rows // shard_rows).tolist())
        windows = [shards for shards in order.windows(step.epoch) if shards_of_step & set(shards)]
        assert len(streamed.held) <= len(windows) + 1


def test_a_shard_is_read_once_where_the_buffer_covers_the_set():
    order = StreamOrder(num_rows=20, shard_rows=4, buffer_rows=20, seed=0)
    loads = []

    def load(shards):
        loads.append(tuple(shards))
        nothing = torch.zeros(20, dtype=torch.int64)
        return TokenGrids(codes=torch.zeros(20, 1, 1, 3, dtype=torch.uint8), labels=nothing)

    streamed = StreamedGrids(order, 2, load, 1, CPU)
    for step in Schedule(seed=0, num_rows=20, batch_size=6, n_epochs=2, stream=order).steps(0):
        streamed.batch(step.epoch, step.rows, torch.zeros_like(step.rows))
    assert loads == [(0, 1, 2, 3, 4)]


def test_a_training_on_a_stream_is_the_one_on_loaded_tokens_where_the_buffer_covers_them(here):
    write_cache(Path("c.zarr"), description(views=("identity", "hflip")))
    command = ["train", "--cache", "c.zarr", "--condition", "class", *TINY_GPT, "--batch-size", "30", "--out"]
    for out, buffer in (("loaded", None), ("streamed", "100"), ("few", "40")):
        outcome = run_here(*command, f"{out}/gpt.pt", *(["--stream", "--shuffle-buffer", buffer] if buffer else []))
        assert outcome.code == 0, outcome.err
    assert_same_training(Path("loaded"), Path("streamed"), "gpt.pt")
    loaded, few = (torch.load(f"{out}/gpt.pt", weights_only=True)["model"] for out in ("loaded", "few"))
    assert any(not torch.equal(tensor, few[name]) for name, tensor in loaded.items())


def test_a_training_on_a_stream_that_is_killed_continues_bit_for_bit(here):
    write_cache(Path("c.zarr"), description((300, 10)))
    command = ["train", "--cache", "c.zarr", *TINY_GPT, "--n-epochs", "12", "--sample-and-save-freq", "3"]
    command += ["--batch-size", "20", "--stream", "--shuffle-buffer", "70", "--out"]
    process = fork_command(*command, "stopped/gpt.pt", cwd=here)
    wait_for(lambda: saved_step(Path("stopped/gpt.unfinished.pt")), process)
    process.kill()
    process.communicate(timeout=60)
    for folder in ("stopped", "whole"):
        outcome = run_here(*command, f"{folder}/gpt.pt")
        assert outcome.code == 0, outcome.err
    assert_same_training(Path("stopped"), Path("whole"), "gpt.pt")


def test_a_damaged_shard_in_the_stream_is_named(here):
    write_cache(Path("c.zarr"), description())
    shard = Path("c.zarr/train/codes/c/2/0/0/0")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    command = ["train", "--cache", "c.zarr", *TINY_GPT, "--batch-size", "10", "--stream", "--shuffle-buffer", "40"]
    damaged = run_here(*command, "--out", "x/gpt.pt", "-q")
    assert_refused(damaged, 3, "train/codes/c/2/0/0/0", "vqgpt cache verify --repair c.zarr")
    done = saved_step(Path("x/gpt.unfinished.pt"))
    assert done > 0  # which came before that shard
    shard.write_bytes(whole)
    for folder in ("x", "y"):
        outcome = run_here(*command, "--out", f"{folder}/gpt.pt")
        assert outcome.code == 0, outcome.err
        assert (f"continuing after step {done}" in outcome.err) == (folder == "x")
    assert_same_training(Path("x"), Path("y"), "gpt.pt")


def test_values_that_cannot_be(here):
    write_cache(Path("c.zarr"), description((0, 1)))
    assert_refused(run_here("train", "--cache", "c.zarr", "--stream", "-q"), 3, "'train' is empty")
    assert_refused(run_here("train", "--shuffle-buffer", "0"), 2, "shuffle_buffer")
