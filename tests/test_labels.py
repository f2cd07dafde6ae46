"""What `--class` means: one class, or the error says which ones it could mean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vqgpt
from tests.conftest import TINY_GPT, assert_refused, description, run_here
from vqgpt.errors import UsageError, printable
from vqgpt.gpt.labels import KnownLabels
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.progress import silent
from vqgpt.tokens import CacheWriter, Split, TokenCache
from vqgpt.tokens.arrays import names_without, occurring


def known(names, condition="class", seen=None):
    options = GPTOptions(condition=condition)
    config = GPTConfig(options=options, codebook_size=4, grid=(2, 2), num_classes=len(names))
    return KnownLabels.of(config, names, seen)


def meant(names, *words, condition="class", seen=None):
    return known(names, condition, seen).cycle(words, silent)


def assert_ambiguous(names, word, *spellings, condition="class"):
    with pytest.raises(UsageError, match="several meanings") as caught:
        meant(names, word, condition=condition)
    for spelling in spellings:
        assert spelling in caught.value.hint
        meant(names, spelling, condition=condition)


@pytest.mark.parametrize(
    ("names", "word", "spellings"),
    [
        (["001", "002", "003"], "1", ["number:0", "number:1"]),
        (["1", "2", "3"], "1", ["number:0", "number:1"]),
        (["1", "01"], "1", ["number:0", "number:1"]),
        (["1_cat", "2_dog"], "1", ["number:0", "number:1"]),
        (["class1", "class2"], "1", ["number:0", "number:1"]),
        (["\uff11", "x"], "1", ["number:0", "number:1"]),
        (["crane", "tench", "crane"], "crane", ["number:0", "number:2"]),
        (["all", "cat"], "all", ["number:0", "number:all"]),
        (["cat", "none"], "none", ["number:1", "number:none"]),
    ],
)
def test_a_word_of_several_meanings_is_refused_with_clear_spellings(names, word, spellings):
    assert_ambiguous(names, word, *spellings)


@pytest.mark.parametrize(
    ("names", "word", "numbers"),
    [
        ([str(number) for number in range(10)], "3", [3]),
        ([f"class {number}" for number in range(10)], "3", [3]),
        (["a", "b", "mp3 player", "c"], "3", [3]),
        (["1", "2", "3"], "3", [2]),
        (["1", "2", "3"], "number:1", [1]),
        (["1", "2", "3"], "name:1", [0]),
        (["none", "all"], "name:none", [0]),
        (["none", "all"], "name:all", [1]),
        (["none", "all"], "number:all", [0, 1]),
        (["none", "all"], "number:none", [-1]),
        (["number:1", "x"], "number:1", [1]),
        (["number:1", "x"], "name:number:1", [0]),
        (["cafe\u0301", "x"], "caf\u00e9", [0]),
        (["caf\u00e9", "x"], "cafe\u0301", [0]),
        (["caf\u00e9", "x"], "name:cafe\u0301", [0]),
        (["+1", "x"], "+1", [0]),
        (["x", "01"], "01", [1]),
        (["b", "a"], "all", [0, 1]),
        (["b", "a"], "none", [-1]),
    ],
)
def test_a_word_of_one_meaning_is_taken(names, word, numbers):
    assert meant(names, word) == numbers


@pytest.mark.parametrize(
    "word", ["01", "+1", "-1", "\uff11", " 1", "1 ", "2", "number:2", "number:01", "name:1", "", "b+a"]
)
def test_what_is_no_number_and_no_name_is_refused(word):
    with pytest.raises(UsageError, match="there is no class"):
        meant(["b", "a"], word)


def test_the_nearest_name_is_never_the_same_to_look_at():
    with pytest.raises(UsageError) as caught:
        meant(["cafe\u0301", "x"], "cafe")
    assert caught.value.hint == "did you mean 'caf\u00e9'?"
    with pytest.raises(UsageError) as caught:
        meant([f"n{number:08}" for number in range(1000)], "cat")
    assert caught.value.hint.endswith("n00000049, and 950 more")


@given(st.lists(st.sampled_from(["0", "1", "2", "01", "a1", "all", "none", "a+b", "a", "b", "name:0"]), min_size=1))
def test_every_class_can_be_asked_for_by_number_and_a_unique_name(names):
    for number, name in enumerate(names):
        assert meant(names, f"number:{number}") == [number]
        if names.count(name) == 1:
            assert meant(names, f"name:{name}") == [number]


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "\udcff", "\u202etfel"])
def test_a_name_that_cannot_be_shown_is_given_as_it_is_or_as_it_is_shown(name):
    for names in ([name, "cat"], [printable(name), "cat"]):  # a folder's name is kept in a cache as it is shown
        assert meant(names, name) == meant(names, printable(name)) == meant(names, f"name:{name}") == [0]


def test_bits_with_a_plus_in_their_names():
    names = ["A+B", "A", "C"]
    assert meant(names, "A+B", "A+C", "C+A+B", condition="bits") == [[1, -1, -1], [-1, 1, 1], [1, -1, 1]]
    assert meant(names, "number:0+number:2", "2+0", condition="bits") == [[1, -1, 1]] * 2
    assert meant(names, "none", "all", condition="bits") == [[0, 0, 0], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    assert_ambiguous(["A+B", "A", "B"], "A+B", "number:0", "number:1+number:2", condition="bits")
    words = ("name:A+B", "name:A+name:B")
    assert meant(["A+B", "A", "B"], *words, condition="bits") == [[1, -1, -1], [-1, 1, 1]]
    assert_ambiguous(["x", "none"], "none", "number:1", "number:none", condition="bits")
    assert_ambiguous(["5_o_Clock", *"abcdefg"], "5", "number:0", "number:5", condition="bits")
    with pytest.raises(UsageError, match="no class 'D'"):
        meant(names, "A+D", condition="bits")


def test_what_was_never_seen_is_not_drawn():
    told = []
    words = known(["cat", "dog", "bird"], seen=[0, 2])
    assert words.cycle((), told.append) == words.cycle(("all",), told.append) == [0, 2]
    assert len(told) == 2
    assert "'dog'" in told[0].text
    assert words.cycle(("bird", "none"), told.append) == [2, -1]
    assert len(told) == 2
    for word in ("dog", "1", "number:1"):
        with pytest.raises(UsageError, match="'dog'"):
            words.cycle((word,), silent)
    bits = known(["A", "B"], "bits", seen=[1])
    assert bits.cycle((), told.append) == [[-1, 1]]
    with pytest.raises(UsageError, match="'A'"):
        bits.cycle(("A+B",), silent)
    assert known(["A", "B"], seen=[]).cycle((), silent) == [-1]


def test_what_occurs_among_labels():
    assert occurring(np.array([3, -1, 3, 0])) == {0, 3}
    assert occurring(np.array([[0, 1, 0], [0, 1, 1]], np.uint8)) == {1, 2}
    assert occurring(np.array([-1])) == occurring(np.zeros((0, 3))) == frozenset()
    assert names_without({0}, tuple("abcdefgh")) == "'b', 'c', 'd', 'e', 'f', and 2 more"
    assert names_without({0, 1}, ("a", "b")) == ""


def trained_on(labels, names, condition, *more):
    """A GPT on made-up tokens whose training rows have these labels, in the current folder."""
    bits = condition == "bits"
    what = description(rows=(len(labels), 4), class_names=names, label_kind=condition, dataset="folder")
    writer = CacheWriter.create_or_resume(Path("c.zarr"), what, np.zeros((16, 2), np.float32), {"vqgpt": "test"})
    for shard in writer.missing():
        held_out = np.ones((4, len(names)) if bits else 4, np.int64)
        of_split = np.array(labels) if shard.split == "train" else held_out
        here = of_split[shard.start : shard.stop]
        writer.write(shard, np.full((len(here), 1, 4, 3), shard.index), here, np.arange(shard.start, shard.stop))
    outcome = run_here("train", "--cache", "c.zarr", "--condition", condition, *TINY_GPT, "--out", "g.pt", *more)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.parametrize("more", [(), ("--stream",)])
@pytest.mark.parametrize("condition", ["class", "bits"])
def test_a_gpt_knows_what_it_was_trained_on(here, condition, more):
    labels = [0, 2] * 20 if condition == "class" else [[1, 0, 0], [1, 0, 1]] * 20
    outcome = trained_on(labels, ("cat", "dog", "bird"), condition, *more)
    assert "no training image has the label 'dog'" in outcome.err
    words = ["sample", "--checkpoint-gpt", "g.pt", "--tokens-only", "--num-samples", "4"]
    outcome = run_here(*words, "--out", "s.zarr")
    assert outcome.code == 0, outcome.err
    assert "'dog'" in outcome.err
    drawn = TokenCache(Path("s.zarr")).read_split("samples").labels
    assert occurring(drawn) == {0, 2}
    assert_refused(run_here(*words, "--class", "cat", "dog", "--out", "d.zarr", "-q"), 2, "'dog'")
    assert_refused(run_here(*words, "--prompt", "cache:c.zarr:test/0", "--out", "d.zarr", "-q"), 2, "'dog'", "--class")
    gpt = vqgpt.load_gpt("g.pt")
    np.testing.assert_array_equal(
        gpt.sample(num_samples=4), TokenCache(Path("s.zarr")).read_split("samples").codes[:, 0]
    )
    with pytest.raises(UsageError, match="'dog'"):
        gpt.sample(num_samples=1, classes=[1])
    assert run_here("export", "g.safetensors", "--to", "safetensors", "--checkpoint-gpt", "g.pt").code == 0
    assert vqgpt.load_gpt("g.safetensors").gpt.labels_seen == (0, 2)


def test_a_gpt_that_does_not_tell_draws_all_classes(here):
    trained_on([0, 2] * 20, ("1", "2", "3"), "class")
    content = torch.load("g.pt", weights_only=True)
    del content["labels_seen"]
    torch.save(content, "g.pt")
    words = ["sample", "--checkpoint-gpt", "g.pt", "--tokens-only", "--num-samples", "6"]
    assert run_here(*words, "--out", "s.zarr").code == 0
    assert TokenCache(Path("s.zarr")).read_split("samples").labels.tolist() == [0, 1, 2] * 2
    assert_refused(run_here(*words, "--class", "1", "--out", "d.zarr", "-q"), 2, "number:0 for '1', number:1 for '2'")
    assert vqgpt.load_gpt("g.pt").sample(num_samples=1, classes=[1, -1]).shape == (1, 4, 3)
    for word, number in (("name:1", 0), ("number:1", 1)):
        assert run_here(*words, "--class", word, "--out", f"{number}.zarr").code == 0
        assert set(TokenCache(Path(f"{number}.zarr")).read_split("samples").labels) == {number}


def test_names_of_old_caches_are_compared_as_they_look(here):
    trained_on([0, 1] * 20, ("cafe\u0301", "x"), "class")
    old = TokenCache(Path("c.zarr"))
    what = replace(old.description, class_names=("caf\u00e9", "x"), splits=(Split(name="train", rows=2),))
    writer = CacheWriter.create_or_resume(Path("n.zarr"), what, old.codebook(), {"vqgpt": "test"})
    for shard in writer.missing():
        writer.write(shard, np.zeros((2, 1, 4, 3), np.int64), np.array([1, 0]), np.arange(2))
    words = ["sample", "--checkpoint-gpt", "g.pt", "--tokens-only", "--num-samples", "1", "--prompt"]
    assert run_here(*words, "cache:n.zarr:train/0", "--out", "s.zarr").code == 0
    assert TokenCache(Path("s.zarr")).read_split("samples").labels.tolist() == [1]
    assert run_here("score", "n.zarr", "--checkpoint-gpt", "g.pt").code == 0
    assert run_here(*words[:-1], "--class", "caf\u00e9", "--out", "t.zarr").code == 0
