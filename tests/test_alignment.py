"""The loss that has the network tell the vectors of the codebook which its tokens mean."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from tests.test_gpt_training import new_model, new_training, trained
from tests.test_interruption import assert_resumes
from vqgpt.gpt.alignment import Alignment, late_block
from vqgpt.gpt.options import GPTConfig, GPTOptions

CODEBOOK = torch.randn(16, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("layers", "late"), [(1, 0), (2, 1), (4, 2), (6, 3), (12, 8), (20, 14)])
def test_the_late_block_is_at_three_quarters_of_the_depth(layers, late):
    options = GPTOptions(n_layer=layers)
    assert late_block(GPTConfig(options=options, codebook_size=16, grid=(4, 4), num_classes=0)) == late


def test_streams_that_tell_the_vectors_have_the_lowest_loss():
    """By MLPs that leave them as they are."""
    config = new_model().config
    alignment = Alignment(config, CODEBOOK, weight=0.5)
    alignment.of_read = alignment.of_next = torch.nn.Identity()
    codes = torch.randint(16, (3, 16))
    read = torch.cat([torch.zeros(3, 1, 4), 7 * CODEBOOK[codes[:, :-1]]], dim=1)
    streams = [read, 0.1 * CODEBOOK[codes]]
    assert alignment(streams, codes, codes).item() == pytest.approx(-0.5 * 2)
    noised = codes.clone()
    noised[:, :5] = (noised[:, :5] + 1) % 16
    assert alignment(streams, codes, noised).item() == pytest.approx(-0.5 * (10 / 15 + 1))
    assert alignment([-read, -streams[1]], codes, codes).item() == pytest.approx(0.5 * 2)


def test_of_one_token_the_next_alone_counts():
    alignment = Alignment(new_model().config, CODEBOOK, weight=1.0)
    alignment.of_read = alignment.of_next = torch.nn.Identity()
    codes = torch.tensor([[3], [5]])
    streams = [torch.zeros(2, 1, 4), CODEBOOK[codes]]
    assert alignment(streams, codes, codes).item() == pytest.approx(-1)


def test_it_is_added_to_the_loss_and_its_weights_move():
    training = new_training(codebook=CODEBOOK, alignment=2.0, token_noise=0.5, grad_accum=2)
    before = [parameter.detach().clone() for parameter in training.alignment.parameters()]
    losses, _ = trained(training)
    plain, _ = trained(new_training(token_noise=0.5))
    assert all(a != b for a, b in zip(losses, plain, strict=True))
    assert losses[-1] < losses[0]
    assert all((a != b).any() for a, b in zip(before, training.alignment.parameters(), strict=True))
    assert set(training.result_weights()) == set(new_model().state_dict())


def test_it_resumes_bit_for_bit(here):
    write_cache(Path("a.zarr"), description())
    command = ["train", "--cache", "a.zarr", *TINY_GPT, "--alignment", "1", "--token-noise", "1", "--batch-size", "20"]
    assert_resumes([*command, "--optimizer", "muon", "--sample-and-save-freq", "1"], "gpt.pt")


def test_codes_without_a_codebook_have_nothing_to_align_to(here):
    lines = [json.dumps({"class_id": 0, "tokens": [n % 16 for n in range(row, row + 16)]}) for row in range(20)]
    Path("rar.jsonl").write_text("\n".join(lines))
    outcome = run_here("cache", "import", "rar.jsonl", "--codebook-size", "16", "--cache", "a.zarr")
    assert outcome.code == 0, outcome.err
    write_cache(Path("b.zarr"), description())
    words = ["train", *TINY_GPT, "--alignment", "1", "--out", "x.pt", "--cache"]
    assert_refused(run_here(*words, "a.zarr", "-q"), 2, "a.zarr", "codebook", "--alignment")
    assert_refused(run_here(*words, "b.zarr", "--shard", "-q"), 2, "alignment", "--shard")
