"""The figures of `vqgpt evaluate gpt` against plain references, and what it finds wrong."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import description, run_here, write_cache
from tests.test_score import save_gpt
from vqgpt.evaluation.calibration import (
    BINS,
    Predictions,
    evenly_spaced,
    expected_calibration_error,
    findings,
    loss_by_class,
    reliability,
    smoothed_bits,
)
from vqgpt.gpt.checkpoint import KIND, gpt_content
from vqgpt.gpt.order import cells_of
from vqgpt.options.codec import to_json
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.tokens import CacheWriter, Split, TokenCache

WORDS = ["evaluate", "gpt", "--checkpoint-gpt", "g.pt"]
BITS = description(label_kind="bits", class_names=("a", "b", "c"))
CASES = {
    "class": (description(), {"condition": "class"}, lambda label: torch.tensor(int(label))),
    "views": (description(views=("identity", "hflip")), {"order": "raster"}, lambda label: torch.tensor(-1)),
    "bits": (
        BITS,
        {"condition": "bits", "arch": "llama", "order": "hilbert"},
        lambda label: torch.from_numpy(label.astype(np.int64) * 2 - 1),
    ),
    "none": (description(label_kind="none"), {"condition": "class"}, lambda label: torch.tensor(-1)),
}


def setup(what=None, **options):
    """A GPT, and the cache that it goes with, where they are looked for."""
    what = what or description()
    model = save_gpt(what, **options)
    write_cache(Path("cache/digits.zarr"), what)
    return model


def save(model, what):
    """Write changed weights over those of `save_gpt`."""
    codebook = torch.zeros(what.codebook_size, what.code_dimension)
    classes = range(model.config.num_classes)
    content = gpt_content(model.config, model.state_dict(), to_json(what), "", codebook, {}, {}, classes)
    save_checkpoint(Path("g.pt"), KIND, content)


def evaluate(*words):
    outcome = run_here(*WORDS, "--json", *map(str, words))
    assert outcome.code == 0, outcome.err
    return outcome.json


@torch.no_grad()
def distributions(model, grid, label):
    """For each cell, in the order in which it reads them: the distribution (K,) that the model has of its code."""
    shown, bits = model.start(label[None])
    for cell in cells_of(model.config.options.order, grid.shape):
        yield cell, model(shown, model.cells, added=bits)[0, -1].double().softmax(-1).numpy()
        shown = torch.cat([shown, torch.tensor([[int(grid[cell])]])], dim=1)


@pytest.mark.parametrize("case", CASES)
def test_the_figures_are_those_of_every_token_one_by_one(here, case):
    what, options, as_label = CASES[case]
    what = replace(what, splits=(Split(name="train", rows=40), Split(name="test", rows=15)))
    model = setup(what, **options)
    result = evaluate("--limit", "10")
    cache = TokenCache(Path("cache/digits.zarr"))
    loss = {}
    for split, rows in (("train", range(0, 40, 4)), ("test", [0, 1, 3, 4, 6, 7, 9, 10, 12, 13])):
        tokens = cache.read_split(split)
        maps, predicted = np.zeros((4, 4, 3)), []
        loss[split] = np.zeros(10)
        for number, row in enumerate(rows):
            grid = tokens.codes[row, 0]
            for cell, p in distributions(model, grid, as_label(tokens.labels[row])):
                of_cell = [-math.log2(p[grid[cell]]), -sum(p * np.log2(p)), p.argmax() == grid[cell], p.max()]
                maps[(slice(None), *cell)] += np.array(of_cell) / 10
                loss[split][number] += of_cell[0] / 12
                predicted.append((p.max(), p.argmax() == grid[cell]))
        figures = result["splits"][split]
        assert figures["rows"] == 10
        assert figures["bits_per_token"] == pytest.approx(loss[split].mean(), abs=1e-5)
        assert figures["bits_per_dimension"] == pytest.approx(loss[split].mean() * 12 / (16 * 12), abs=1e-5)
    found = result["calibration"]  # what is left in maps and predicted is of the held-out rows
    for name, expected in zip(("loss_bits", "entropy_bits", "share_right", "confidence"), maps, strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    np.testing.assert_allclose(found["entropy_minus_loss_bits"], maps[1] - maps[0], atol=1e-5)
    assert found["expected_calibration_error"] == pytest.approx(plain_error(predicted), abs=1e-5)
    assert result["gap"]["bits_per_token"] == pytest.approx(loss["test"].mean() - loss["train"].mean(), abs=1e-5)
    if what.label_kind == "class":
        labels = cache.read_split("test").labels[[0, 1, 3, 4, 6, 7, 9, 10, 12, 13]]
        for label, name in enumerate("ab"):
            rows_and_bits = result["loss_by_class"][name]
            assert rows_and_bits["rows"] == (labels == label).sum()
            assert rows_and_bits["bits_per_token"] == pytest.approx(loss["test"][labels == label].mean(), abs=1e-5)
    else:
        assert "loss_by_class" not in result


def plain_error(predicted):
    """The expected calibration error of pairs (confidence, right), by its definition."""
    total = 0.0
    for number in range(BINS):
        inside = [pair for pair in predicted if number / BINS < pair[0] <= (number + 1) / BINS]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            total += len(inside) / len(predicted) * abs(accuracy - confidence)
    return total


def test_the_baselines_are_frequencies_of_all_training_rows(here):
    setup()
    result = evaluate("--limit", "7")
    cache = TokenCache(Path("cache/digits.zarr"))
    train = cache.read_split("train").codes[:, 0].reshape(100, 12)
    held_out = cache.read_split("test").codes[:, 0].reshape(30, 12)[[0, 4, 8, 12, 17, 21, 25]]
    anywhere, here_ = Counter(train.ravel().tolist()), [Counter(column.tolist()) for column in train.T]
    by_code = [-math.log2((anywhere[int(code)] + 1) / (1200 + 16)) for code in held_out.ravel()]
    by_position = [
        -math.log2((here_[place][int(code)] + 1) / (100 + 16)) for row in held_out for place, code in enumerate(row)
    ]
    bits = {name: figures["bits_per_token"] for name, figures in result["baselines"].items()}
    expected = {"uniform": 4.0, "unigram": np.mean(by_code), "unigram_by_position": np.mean(by_position)}
    assert bits == pytest.approx(expected)


def test_add_one_smoothing_of_known_counts():
    np.testing.assert_allclose(smoothed_bits(np.array([3, 1, 0])), -np.log2(np.array([4, 2, 1]) / 7))


def test_a_gpt_that_finds_all_codes_alike_is_calibrated_and_no_better_than_that(here):
    what = description()
    model = setup(what)
    for parameter in model.parameters():
        parameter.data.zero_()
    save(model, what)
    result = evaluate()
    found = result["calibration"]
    np.testing.assert_allclose(found["loss_bits"], np.full((4, 3), 4.0), atol=1e-5)
    np.testing.assert_allclose(found["entropy_minus_loss_bits"], np.zeros((4, 3)), atol=1e-5)
    zeros = (TokenCache(Path("cache/digits.zarr")).read_split("test").codes == 0).mean()
    assert found["expected_calibration_error"] == pytest.approx(abs(zeros - 1 / 16), abs=1e-6)
    assert [row["tokens"] for row in found["reliability"]] == [360, *[0] * (BINS - 1)]
    assert [result["gap"]["bits_per_token"], *result["gap"]["interval"]] == pytest.approx([0, 0, 0], abs=1e-5)
    (finding,) = result["findings"]
    assert finding.startswith("the GPT predicts held-out rows no better than a uniform distribution does (4.00")


def test_the_calibration_error_of_a_known_case():
    bins = reliability(np.array([0.95, 0.95, 0.15]), np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(bins[:, 14], [2, 1.9, 1])
    np.testing.assert_allclose(bins[:, 2], [1, 0.15, 0])
    assert expected_calibration_error(bins) == pytest.approx((0.9 + 0.15) / 3)
    edges = reliability(np.array([0.0, 0.2, 0.2 + 1e-9, 1.0]), np.ones(4))
    assert np.flatnonzero(edges[0]).tolist() == [0, 2, 3, 14]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-3, 1), st.booleans()), min_size=1, max_size=50))
def test_the_calibration_error_is_that_of_its_definition(predicted):
    confidence, right = np.array(predicted).T
    assert expected_calibration_error(reliability(confidence, right)) == pytest.approx(plain_error(predicted))


@given(st.integers(1, 500), st.integers(0, 600))
def test_rows_are_evenly_spaced(rows, limit):
    chosen = evenly_spaced(rows, limit)
    assert len(chosen) == (min(rows, limit) if limit else rows)
    assert chosen[0] == 0
    assert chosen[-1] < rows
    steps = np.diff([*chosen, rows])
    assert steps.min() >= 1
    assert steps.max() - rows // len(chosen) <= 1


def test_the_intervals_are_about_what_a_normal_distribution_gives(here):
    setup(description(rows=(200, 150)))
    result = evaluate()
    outcome = run_here("score", "cache/digits.zarr", "--checkpoint-gpt", "g.pt", "--out", "s.npz")
    assert outcome.code == 0
    with np.load("s.npz") as scores:
        bits = {split: scores["bits_per_token"][scores["split"] == split] for split in ("train", "test")}
    variance = {split: numbers.var() / len(numbers) for split, numbers in bits.items()}
    mean = {split: numbers.mean() for split, numbers in bits.items()}
    expected = {split: (mean[split], variance[split], result["splits"][split]["interval"]) for split in bits}
    expected["gap"] = (mean["test"] - mean["train"], sum(variance.values()), result["gap"]["interval"])
    for middle, of_mean, (lowest, highest) in expected.values():
        half = 1.96 * math.sqrt(of_mean)
        assert lowest == pytest.approx(middle - half, abs=0.15 * half)
        assert highest == pytest.approx(middle + half, abs=0.15 * half)


def predictions(loss=3.0, entropy=3.0, bins=None, labels=(0,)):
    """Of a grid of 2 x 2, as `predict` would give them."""
    maps = {"loss": loss, "entropy": entropy, "share_right": 0.5, "confidence": 0.5}
    return Predictions(
        rows=np.arange(len(labels)),
        labels=np.array(labels),
        bits=loss + np.arange(len(labels)),
        bins=reliability(np.array([0.5, 0.5]), np.array([1.0, 0.0])) if bins is None else bins,
        **{name: np.full((2, 2), value) for name, value in maps.items()},
    )


@pytest.mark.parametrize(
    ("changes", "gap", "words"),
    [
        ({}, (0.05, 0.01, 0.09), []),
        ({}, (0.3, -0.1, 0.7), []),
        ({}, (-0.3, -0.5, -0.1), ["held-out rows cost 0.30 bits per token less"]),
        ({}, (0.41, 0.3, 0.5), ["overfitting: held-out rows cost 0.41 bits per token more than training rows"]),
        ({"entropy": 2.5}, (0, 0, 0), ["overconfident: held-out tokens cost 0.50 bits more"]),
        ({"entropy": 3.5}, (0, 0, 0), ["underconfident: held-out tokens cost 0.50 bits less"]),
        ({"loss": 3.8, "entropy": 3.8}, (0, 0, 0), ["no better than the frequencies of codes by position do (3.80"]),
        ({"bins": reliability(np.full(2, 0.9), np.ones(2))}, (0, 0, 0), ["is off by 0.10 on average"]),
    ],
)
def test_what_looks_wrong_is_found(changes, gap, words):
    by_frequencies = {"uniform": 4.0, "unigram": 3.9, "unigram_by_position": 3.8}
    of_tokens = {name: {"bits_per_token": bits} for name, bits in by_frequencies.items()}
    found = findings(predictions(**changes), gap[0], gap[1:], of_tokens)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_rows_without_a_class_come_last_and_names_that_are_shared_have_numbers():
    some = predictions(loss=1.0, labels=(1, -1, 0, 1))
    figures = loss_by_class(some, description())
    assert list(figures) == ["a", "b", "no class"]
    assert figures["b"] == {"rows": 2, "bits_per_token": 2.5}
    assert figures["no class"] == {"rows": 1, "bits_per_token": 2.0}
    assert list(loss_by_class(some, description(class_names=("crane", "crane")))) == [
        "0 crane",
        "1 crane",
        "2 no class",
    ]


def test_the_result_does_not_depend_on_passes_and_shards(here, monkeypatch):
    setup()
    whole = evaluate()
    cache = TokenCache(Path("cache/digits.zarr"))
    writer = CacheWriter.create_or_resume(Path("s.zarr"), description(shard_rows=8), cache.codebook(), {})
    for shard in writer.missing():
        tokens, here_ = cache.read_split(shard.split), slice(shard.start, shard.stop)
        writer.write(shard, tokens.codes[here_], tokens.labels[here_], tokens.source_index[here_])
    monkeypatch.setattr("vqgpt.gpt.scoring.NUMBERS_PER_PASS", 3 * 12 * 16)
    parts = evaluate("--limit", "0", "--cache", "s.zarr")
    for name in ("splits", "gap", "baselines", "loss_by_class"):
        assert json.dumps(rounded(parts[name])) == json.dumps(rounded(whole[name]))
    np.testing.assert_allclose(parts["calibration"]["loss_bits"], whole["calibration"]["loss_bits"], atol=1e-5)


def rounded(value):
    """Floats to four places, in nested mappings."""
    if isinstance(value, dict):
        return {name: rounded(element) for name, element in value.items()}
    return np.round(value, 4).tolist() if isinstance(value, float | list) else value
