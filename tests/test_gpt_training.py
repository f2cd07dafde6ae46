"""The GPT's training step: passes, optimisers, several processes, GenerativeZoo's files, and the new flags."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from tests.forked import fork_command, run_ranks
from tests.test_interruption import saved_step, wait_for
from vqgpt.errors import NonFiniteError
from vqgpt.gpt.checkpoint import load_gpt
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions
from vqgpt.gpt.order import scan_order
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining
from vqgpt.runtime.device import resolve_precision, resolve_precision_of_products
from vqgpt.training.loop import read_figures
from vqgpt.training.muon import Muon
from vqgpt.training.schedule import Schedule

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"


def new_model(condition="none", labels=0, **changes):
    torch.manual_seed(0)
    options = GPTOptions(n_layer=2, n_head=2, embed_dim_t=16, condition=condition, **changes)
    model = GPT(GPTConfig(options=options, codebook_size=16, grid=(4, 4), num_classes=labels))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def new_training(rows=40, precision="fp32", model=None, **options):
    model = model or new_model()
    codes = torch.randint(16, (rows, 2, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    data = TokenGrids(codes=codes, labels=torch.full((rows,), -1))
    options = GPTTrainingOptions(**{"batch_size": 40, "lr": 1e-3, "warmup": 0, "n_epochs": 4, **options})
    schedule = Schedule(seed=3, num_rows=rows, batch_size=options.batch_size, n_epochs=4, max_steps=options.max_steps)
    return GPTTraining(model, data, data, options, schedule, precision)


def trained(training):
    losses = [read_figures([(step, training.take_step(step))])["loss"][0] for step in training.schedule.steps(0)]
    return losses, [parameter.detach().clone() for parameter in training.result.parameters()]


@pytest.mark.parametrize(("arch", "precision"), [("gpt2", "fp32"), ("llama", "fp32"), ("gpt2", "bf16")])
def test_how_a_step_is_cut_into_passes_changes_nothing(arch, precision):
    """Dropout included: an image's masks do not depend on the pass that it is in. But for rounding."""
    once, thrice = (new_training(grad_accum=n, model=new_model(arch=arch), precision=precision) for n in (1, 3))
    rounding = {"fp32": 1, "bf16": 100}[precision]
    assert len(once.passes(40, 40)) == 1
    assert len(thrice.passes(40, 40)) == 3
    (losses, weights), (more_losses, more_weights) = trained(once), trained(thrice)
    assert losses == pytest.approx(more_losses, rel=1e-5 * rounding)
    for one, other in zip(weights, more_weights, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4 * rounding, rtol=0)


def test_the_rate_of_dropout_acts_in_training_alone():
    losses = [trained(new_training(model=new_model(dropout_t=rate)))[0][0] for rate in (0.0, 0.1, 0.5)]
    assert len(set(losses)) == 3
    held_out = [new_training(model=new_model(dropout_t=rate)).validate() for rate in (0.0, 0.5)]
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"ema": 0.9}, {"token_dropout": 0.3}])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_continues_bit_for_bit_from_its_state(changes, precision, tmp_path):
    whole, first, second = (new_training(precision=precision, **changes) for _ in range(3))
    _, expected = trained(whole)
    for step in list(first.schedule.steps(0))[:2]:
        torch.manual_seed(step.index)
        first.take_step(step)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in second.schedule.steps(2):
        second.take_step(step)
    for one, other in zip(expected, second.result.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_moves_nothing_nor_do_later_ones(optimizer):
    training = new_training(optimizer=optimizer)
    steps = list(training.schedule.steps(0))
    training.take_step(steps[0])
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    healthy = training.loss
    training.loss = lambda *arguments: healthy(*arguments) * math.inf
    unread = [(steps[1], training.take_step(steps[1]))]
    training.loss = healthy
    unread.append((steps[2], training.take_step(steps[2])))
    for parameter, value in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    with pytest.raises(NonFiniteError, match=f"step 1 .*rows {steps[1].rows[0]}, "):
        read_figures(unread)


def test_muon_moves_the_matrices_of_the_blocks_and_learns():
    training = new_training(optimizer="muon", lr=1e-2)
    matrices = sum(len(group["params"]) for group in training.optimizer.muon.param_groups)
    assert matrices == 2 * 4
    losses, _ = trained(training)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_muon_takes_the_steps_of_torchs_own(shape):
    """Which computes in bfloat16: they differ by its rounding."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    muon = Muon([ours], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_muon_in_threads_moves_weights_as_in_one():
    torch.manual_seed(0)
    starts = [torch.randn(size, 16) for size in (16, 32, 48, 64)]
    with ThreadPoolExecutor(3) as pool:
        moved = []
        for compute in (map, pool.map):
            weights = [torch.nn.Parameter(start.clone()) for start in starts]
            muon = Muon(weights, lr=1e-2, weight_decay=0.1, compute=compute)
            for _ in range(3):
                for weight, start in zip(weights, starts, strict=True):
                    weight.grad = start.sin()
                muon.step()
            moved.append([weight.detach() for weight in weights])
    for one, other in zip(*moved, strict=True):
        assert torch.equal(one, other)


def test_in_bfloat16_on_a_cpu_the_gpt_takes_nearly_the_same_steps():
    """Of two layers: gradients of 8 bits, weights of 24."""
    losses = {precision: trained(new_training(precision=precision))[0] for precision in ("fp32", "bf16")}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_auto_trains_in_bfloat16_where_products_of_it_are_fast(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, precision in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert resolve_precision_of_products("auto", cpu) == precision
        assert resolve_precision("auto", cpu) == "fp32"
        assert resolve_precision_of_products("fp32", cpu) == "fp32"
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision_of_products("auto", cpu) == "fp32"
    assert resolve_precision_of_products("auto", torch.device("mps")) == "fp32"


def test_to_muon_a_kernel_is_the_matrix_of_its_rows():
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 8, 4, 3, 3)
    kernel = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    for weight in (kernel, matrix):
        Muon([weight], lr=1e-2, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())
    assert (matrix - start.flatten(1)).abs().max() > 1e-3


@pytest.mark.parametrize("position", [0, 5, 15])
def test_llama_sees_no_future(position):
    model = new_model(arch="llama", order="hilbert").eval()
    tokens = torch.randint(16, (2, 16))
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 16
    before, after = model(tokens, model.cells), model(changed, model.cells)
    torch.testing.assert_close(before[:, :position], after[:, :position])
    assert not torch.allclose(before[:, position:], after[:, position:])


def test_the_two_architectures_are_of_one_size():
    sizes = []
    for arch in ("gpt2", "llama"):
        options = GPTOptions(arch=arch, embed_dim_t=192)
        model = GPT(GPTConfig(options=options, codebook_size=128, grid=(8, 8), num_classes=0))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@settings(max_examples=30)
@given(grid=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_the_hilbert_curve_goes_to_a_neighbour_each_time(grid):
    cells = scan_order("hilbert", grid)
    assert sorted(cells.tolist()) == list(range(grid[0] * grid[1]))
    rows, columns = cells // grid[1], cells % grid[1]
    assert max([0, *rows.diff().abs().tolist(), *columns.diff().abs().tolist()]) <= 1


def test_on_a_square_it_is_hilberts_own():
    assert scan_order("hilbert", (4, 4)).tolist() == [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]


def test_bits_tell_yes_no_and_nothing_apart():
    model = new_model(condition="bits", labels=3).eval()
    codes = torch.randint(16, (1, 16))
    losses = {
        bits: model.loss(codes, torch.tensor([bits]), model.cells).item()
        for bits in ((0, 0, 0), (-1, -1, -1), (1, -1, 1))
    }
    assert len(set(losses.values())) == 3


def test_bits_are_told_to_a_gpt_of_many_codes():
    """Bits have 8 bits, and the codes here have more."""
    config = replace(new_model(condition="bits", labels=3).config, codebook_size=1000)
    data = TokenGrids.of(torch.randint(1000, (8, 1, 4, 4)).short(), torch.ones(8, 3, dtype=torch.uint8), config)
    assert data.labels.dtype == torch.int8
    schedule = Schedule(seed=0, num_rows=8, batch_size=8, n_epochs=1)
    training = GPTTraining(GPT(config), data, data, GPTTrainingOptions(batch_size=8), schedule, "fp32")
    assert training.take_step(next(schedule.steps(0)))["loss"] > 0
    assert training.model.start(data.labels)[0].unique().tolist() == [1000]


def test_bits_train_and_sample(here):
    write_cache(Path("bits.zarr"), description(label_kind="bits"))
    flags = ["--condition", "bits", "--arch", "llama", "--order", "hilbert", "--n-layer", "1", "--n-head", "2"]
    flags += ["--embed-dim-t", "16", "--out", "x.pt", "--ema", "0.9", "--max-steps", "1"]
    outcome = run_here("train", "--cache", "bits.zarr", *flags)
    assert outcome.code == 0, outcome.err
    assert np.load("x.samples.npy").shape == (16, 4, 3)
    command = ["sample", "--checkpoint-gpt", "x.pt", "--tokens-only", "--num-samples", "3"]
    outcome = run_here(*command, "--class", "a+b", "b", "none", "--out", "x.zarr")
    assert outcome.code == 0, outcome.err
    from vqgpt.tokens import TokenCache

    assert TokenCache(Path("x.zarr")).read_split("samples").labels.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert run_here(*command, "--class", "0+b", "1", "none", "--out", "z.zarr").code == 0
    assert files_of(Path("z.zarr")) == files_of(Path("x.zarr"))
    assert_refused(run_here(*command, "--class", "a+c", "--out", "y.zarr"), 2, "'c'")


def test_max_steps_patience_and_tensorboard(pipeline):
    pytest.importorskip("tensorboard")
    flags = [*TINY_GPT, "--batch-size", "1000", "--sample-and-save-freq", "1"]
    outcome = run_here("train", *flags, "--max-steps", "3", "--tensorboard", "--out", "a/gpt.pt")
    assert outcome.code == 0, outcome.err
    records = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 3]
    assert records[-1]["images"] == records[0]["images"] + 1000
    assert {"tokens_per_second", "waiting_seconds", "learning_rate", "gradient_norm"} <= set(records[-1])
    assert list(Path("a/tensorboard").rglob("events.*"))
    assert Path("a/gpt.samples.png").read_bytes()[:4] == b"\x89PNG"
    outcome = run_here("train", *flags, "--n-epochs", "9", "--patience", "1", "--lr", "5", "--out", "b/gpt.pt")
    assert outcome.code == 0, outcome.err
    assert "no better validation in the last 1" in outcome.err


def test_out_of_memory_names_batch_precision_and_flags(pipeline, monkeypatch):
    def refuse(self, step):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")

    monkeypatch.setattr(GPTTraining, "take_step", refuse)
    for precision, remedies in (("fp32", 1), ("bf16", 0)):
        outcome = run_here("train", *TINY_GPT, "--out", "x.pt", "-q", "--precision", precision)
        assert_refused(outcome, 5, "--batch-size 256", f"--precision {precision}", "--grad-accum")
        assert outcome.err.count("try --precision bf16") == remedies


def test_small_sets_train(here):
    write_cache(Path("small.zarr"), description(rows=(3, 1)))
    outcome = run_here("train", "--cache", "small.zarr", *TINY_GPT, "--out", "x.pt")
    assert outcome.code == 0, outcome.err
    assert "a step takes all 3 rows: --batch-size is 256" in outcome.err


RANKS = """
import sys
import torch
from tests.test_gpt_training import new_training, trained
from vqgpt.__main__ import leave_at_once
from vqgpt.runtime.device import process_group, rank

with process_group(torch.device("cpu")):
    losses, weights = trained(new_training(rows=43, batch_size=10, token_dropout=0.1))
    if rank() == 0:
        torch.save({"losses": losses, "weights": weights}, sys.argv[1])
leave_at_once(0)
"""


def test_two_and_three_processes_take_the_steps_of_one(here):
    """With dropout: losses, weights and order are those of one process. The last batch of an epoch has 3 rows."""
    Path("ranks.py").write_text(RANKS)
    losses, weights = trained(new_training(rows=43, batch_size=10, token_dropout=0.1))
    for count in (2, 3):
        result = run_ranks(count, "ranks.py", f"{count}.pt")
        assert result.returncode == 0, result.stderr
        theirs = torch.load(f"{count}.pt", weights_only=True)
        assert theirs["losses"] == pytest.approx(losses, rel=1e-5)
        for one, other in zip(weights, theirs["weights"], strict=True):
            torch.testing.assert_close(one, other, atol=5e-4, rtol=0)


def test_a_training_of_one_process_continues_on_two(pipeline):
    flags = [*TINY_GPT, "--n-epochs", "6", "--sample-and-save-freq", "2", "--batch-size", "100", "--out", "s/gpt.pt"]
    process = fork_command("train", *flags, cwd=pipeline)
    wait_for(lambda: saved_step(Path("s/gpt.unfinished.pt")), process)
    process.kill()
    process.communicate(timeout=60)
    result = run_ranks(2, "-m", "vqgpt", "train", *flags)
    assert result.returncode == 0, result.stderr
    assert "continuing after step" in result.stderr
    assert Path("s/gpt.pt").exists()


def as_generativezoo_saves(model, path):
    weights = model.state_dict()
    torch.save({**weights, "lm_head.weight": weights["transformer.wte.weight"]}, path)


def test_a_gpt_of_generativezoo_of_another_size_loads_samples_and_starts_a_training(here):
    write_cache(Path("a.zarr"), description())
    options = GPTOptions(n_layer=3, n_head=4, embed_dim_t=24, bias=True)
    model = GPT(GPTConfig(options=options, codebook_size=16, grid=(4, 3), num_classes=0)).eval()
    as_generativezoo_saves(model, "gz.pt")
    loaded = load_gpt(Path("gz.pt"), torch.device("cpu"), 4, (4, 3)).model
    tokens = torch.randint(17, (2, 12))
    assert torch.equal(loaded(tokens, model.cells), model(tokens, model.cells))
    command = ["sample", "--checkpoint-gpt", "gz.pt", "--cache", "a.zarr", "--tokens-only", "--out", "s.zarr"]
    assert run_here(*command, "--n-head", "4", "--num-samples", "2").code == 0
    assert_refused(run_here(*command[:-1], "t.zarr", "--n-head", "5"), 2, "--n-head 5")
    start = ["train", "--cache", "a.zarr", "--checkpoint-gpt", "gz.pt", "--out", "x.pt", "--max-steps", "1"]
    sizes = ["--n-layer", "3", "--n-head", "4", "--embed-dim-t", "24", "--bias"]
    assert run_here(*start, *sizes).code == 0
    assert_refused(run_here(*start[:-3], "y.pt"), 3, "another architecture")


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="there is no shared/fixtures beside the project")
def test_logits_of_generativezoos_gpt_are_those_of_its_home():
    reference = np.load(FIXTURES / "gz_reference.npz")
    model = load_gpt(FIXTURES / "gz_gpt.pt", torch.device("cpu"), n_head=8).model
    with torch.no_grad():
        logits = model(torch.from_numpy(reference["gpt_input"]).long(), model.cells)
    np.testing.assert_allclose(logits, reference["logits"][..., :128], atol=1e-4, rtol=0)
