"""`vqgpt score`: the bits per token of every row, against plain references; what does not go together is refused."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import assert_refused, description, files_of, rows_of, run_here, write_cache
from vqgpt.evaluation.neighbours import nearest_codes
from vqgpt.gpt.checkpoint import KIND, gpt_content
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.gpt.order import grid_to_sequence, scan_order
from vqgpt.gpt.scoring import nats_of_images
from vqgpt.options.codec import to_json
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.tokens import CacheWriter, TokenCache

SAMPLES = Path("runs/digits/samples.zarr")


def save_gpt(what, **options) -> GPT:
    """A GPT with weights far from their start, for caches of a description."""
    torch.manual_seed(0)
    classes = len(what.class_names) if options.get("condition", "none") != "none" else 0
    config = GPTConfig(
        options=GPTOptions(n_layer=2, n_head=2, embed_dim_t=16, **options),
        codebook_size=what.codebook_size,
        grid=what.grid,
        num_classes=classes,
    )
    model = GPT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    weights, codebook = model.state_dict(), torch.zeros(what.codebook_size, what.code_dimension)
    save_checkpoint(
        Path("g.pt"), KIND, gpt_content(config, weights, to_json(what), "", codebook, {}, {}, range(classes))
    )
    return model


def score(*words):
    outcome = run_here("score", *map(str, words), "--checkpoint-gpt", "g.pt", "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json


def expected_nats(model, grid, label) -> float:
    """Token by token, each from all before it."""
    sequence = grid_to_sequence(
        torch.from_numpy(grid.astype(np.int64)), scan_order(model.config.options.order, grid.shape)
    )
    shown, bits = model.start(label[None])
    total = 0.0
    for code in sequence:
        with torch.no_grad():
            total -= float(model(shown, model.cells, added=bits)[0, -1].log_softmax(-1)[code])
        shown = torch.cat([shown, code.view(1, 1)], dim=1)
    return total


CASES = {
    "class": (description(), {"condition": "class"}, lambda label: torch.tensor(int(label))),
    "no class": (description(), {"order": "raster"}, lambda label: torch.tensor(-1)),
    "views": (description(views=("identity", "hflip")), {"condition": "class"}, lambda label: torch.tensor(int(label))),
    "bits": (
        description(label_kind="bits", class_names=("a", "b", "c")),
        {"condition": "bits", "arch": "llama", "order": "hilbert", "embed_dim_t": 16},
        lambda label: torch.from_numpy(label.astype(np.int64) * 2 - 1),
    ),
    "unlabelled": (description(label_kind="none"), {"condition": "class"}, lambda label: torch.tensor(-1)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_row_has_the_nats_of_its_tokens_one_by_one(here, case):
    what, options, as_label = CASES[case]
    options = {name: value for name, value in options.items() if name != "embed_dim_t"}
    model = save_gpt(what, **options)
    write_cache(Path("c.zarr"), what)
    result = score("c.zarr", "--out", "s.npz")
    with np.load("s.npz", allow_pickle=False) as scores:
        columns = dict(scores)
    assert len(columns["nats"]) == result["rows"] == 130
    cache = TokenCache(Path("c.zarr"))
    for split, rows in (("train", (0, 31, 32, 99)), ("test", (0, 29))):
        tokens = cache.read_split(split)
        for row in rows:
            (place,) = np.flatnonzero((columns["split"] == split) & (columns["row"] == row))
            nats = expected_nats(model, tokens.codes[row, 0], as_label(tokens.labels[row]))
            assert columns["nats"][place] == pytest.approx(nats, abs=1e-4)
            assert columns["bits_per_token"][place] == pytest.approx(nats / math.log(2) / 12, abs=1e-5)
            assert columns["source_index"][place] == tokens.source_index[row]
            np.testing.assert_array_equal(columns["label"][place], tokens.labels[row])


def test_the_figures_are_those_of_the_rows(here):
    save_gpt(description())
    write_cache(Path("c.zarr"), description())
    result = score("c.zarr", "--show-rows", "3")
    with open("c-scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    bits = np.array([float(row["bits_per_token"]) for row in rows])
    names = [f"{row['split']}/{row['row']}" for row in rows]
    assert list(result["oddest_rows"]) == [names[index] for index in np.argsort(-bits)[:3]]
    assert list(result["likeliest_rows"]) == [names[index] for index in np.argsort(bits)[:3]]
    test = bits[100:]
    figures = result["splits"]["test"]
    assert figures["rows"] == 30
    assert figures["bits_per_token"] == pytest.approx(test.mean())
    assert figures["standard_deviation"] == pytest.approx(test.std())
    assert (figures["lowest"], figures["highest"]) == pytest.approx((test.min(), test.max()))
    only = score("c.zarr", "--split", "test", "--out", "t.csv", "--show-rows", "0")
    assert only["splits"] == {"test": figures}
    assert "oddest_rows" not in only


def test_validation_and_score_agree(pipeline):
    outcome = run_here("score", "cache/digits.zarr", "--split", "test", "--json")
    assert outcome.code == 0, outcome.err
    trained = torch.load("runs/digits/gpt.pt", weights_only=True)["figures"]["held_out_bits_per_token"]
    assert outcome.json["splits"]["test"]["bits_per_token"] == pytest.approx(trained, abs=1e-5)


def test_sampled_rows_have_the_log_probability_that_they_were_drawn_with(pipeline):
    tokens = TokenCache(SAMPLES).read_split("samples")
    assert run_here("score", SAMPLES, "--out", "s.npz").code == 0
    with np.load("s.npz", allow_pickle=False) as scores:
        np.testing.assert_allclose(scores["nats"], -tokens.log_prob, atol=1e-3)


def test_the_nearest_training_row_is_found(here):
    what = description(views=("identity", "hflip"))
    save_gpt(what)
    write_cache(Path("t.zarr"), what)
    training = TokenCache(Path("t.zarr"))
    codes = training.read_split("train").codes
    sampled = replace(what, origin="sampled", views=("identity",), splits=(replace(what.splits[0], name="samples"),))
    writer = CacheWriter.create_or_resume(Path("s.zarr"), sampled, training.codebook(), {"vqgpt": "test"})
    for shard in writer.missing():
        drawn, labels, index = rows_of(shard, sampled, seed=1)
        if shard.index == 0:
            drawn[3, 0] = codes[77, 1]  # a copy of a mirrored view
        writer.write(shard, drawn, labels, index)
    result = score("s.zarr", "--against", "t.zarr", "--out", "s.npz")
    with np.load("s.npz", allow_pickle=False) as scores:
        distance, row = scores["nearest_distance"], scores["nearest_row"]
    drawn = TokenCache(Path("s.zarr")).read_split("samples").codes[:, 0]
    unlike = (drawn[:, None, None] != codes[None]).sum(axis=(3, 4)).min(axis=2)
    np.testing.assert_array_equal(distance, unlike.min(axis=1))
    assert (unlike[np.arange(100), row] == distance).all()
    assert (distance[3], row[3]) == (0, 77)
    assert result["splits"]["samples"]["rows_in_training"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 50))
def test_nearest_is_a_plain_search(rows, others, width, numbers_per_pass):
    from vqgpt.evaluation import neighbours

    before, neighbours.NUMBERS_PER_SEARCH = neighbours.NUMBERS_PER_SEARCH, numbers_per_pass
    try:
        generator = torch.Generator().manual_seed(rows * others)
        a, b = (torch.randint(3, (count, width), generator=generator).float() for count in (rows, others))
        distance, row = nearest_codes(a, b)
    finally:
        neighbours.NUMBERS_PER_SEARCH = before
    unlike = (a[:, None] != b[None]).sum(dim=2)
    assert torch.equal(distance, unlike.min(dim=1).values)
    assert torch.equal(unlike.gather(1, row[:, None])[:, 0], distance)


def test_scores_do_not_depend_on_the_passes(here, monkeypatch):
    model = save_gpt(description())
    codes, labels = torch.randint(16, (20, 4, 3)), torch.full((20,), -1)
    whole = torch.cat(list(nats_of_images(model, codes, labels, "fp32")))
    monkeypatch.setattr("vqgpt.gpt.scoring.NUMBERS_PER_PASS", 3 * 12 * 16)
    parts = list(nats_of_images(model, codes, labels, "fp32"))
    assert len(parts) == 7
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 32}, ["codes 16", "has 32"]),
        ({"grid": (3, 4)}, ["4 x 3", "3 x 4"]),
        ({"tokenizer_sha256": "u" * 64}, ["t" * 12, "u" * 12]),
        ({"class_names": ("b", "a")}, ["the classes a, b", "has b, a"]),
    ],
)
def test_a_gpt_of_other_tokens_is_refused_with_both_sides(here, changes, words):
    save_gpt(description(), condition="class")
    write_cache(Path("c.zarr"), description(**changes))
    assert_refused(run_here("score", "c.zarr", "--checkpoint-gpt", "g.pt", "-q"), 3, "g.pt", "c.zarr", *words)
    assert not Path("c-scores.csv").exists()


def test_mistakes_are_named_and_nothing_is_replaced(here):
    save_gpt(description())
    write_cache(Path("c.zarr"), description())
    words = ["score", "c.zarr", "--checkpoint-gpt", "g.pt", "-q"]
    assert_refused(run_here(*words, "--split", "val"), 3, "no split 'val'")
    assert_refused(run_here(*words, "--out", "x.txt"), 2, "out", ".csv")
    assert_refused(run_here("score", "c.zarr", "-q"), 4, "runs/digits/gpt.pt")
    other = write_cache(Path("o.zarr"), description(tokenizer_sha256="u" * 64))
    assert_refused(run_here(*words, "--against", str(other)), 3, "tokenizer_sha256", "same VQ-GAN")
    write_cache(Path("e.zarr"), description(rows=(0, 0)))
    assert_refused(run_here("score", "e.zarr", *words[2:]), 3, "e.zarr", "no rows")
    assert run_here(*words, "--dry-run").code == 0
    assert not Path("c-scores.csv").exists()
    assert run_here(*words).code == 0
    before = files_of(here)
    assert_refused(run_here(*words), 2, "c-scores.csv exists", "--overwrite")
    assert run_here(*words, "--overwrite").code == 0
    assert files_of(here) == before
