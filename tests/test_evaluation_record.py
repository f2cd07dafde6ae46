"""The record of evaluations: each entry stays until the same is measured again, and nothing else is ever replaced."""

import json
import os
import shlex
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgpt.api.evaluation_options import EvaluateSamplesConfig, EvaluateTokenizerConfig
from vqgpt.api.options import EncoderOptions, SourceOptions
from vqgpt.cli.running import typer_function
from vqgpt.data.options import ImageOptions
from vqgpt.errors import InputError, UsageError
from vqgpt.evaluation.record import (
    LARGEST,
    check_replaceable,
    command_text,
    keep_evaluation,
    latest_evaluation,
    read_evaluations,
)
from vqgpt.options.definition import Command, resolve
from vqgpt.options.paths import CacheURL, evaluation_path


def entry(name: str, value: float, **more) -> dict:
    return {"of": {"samples": name, "limit": 100}, "figures": {"FID": value}, **more}


# Keeping


def test_an_entry_takes_the_place_of_one_of_the_same_and_all_others_stay(tmp_path):
    path = tmp_path / "runs" / "digits" / "evaluation.json"
    assert read_evaluations(path) == {}
    assert latest_evaluation(path, "samples") is None
    keep_evaluation(path, "samples", entry("a", 1))
    keep_evaluation(path, "samples", entry("b", 2))
    keep_evaluation(path, "tokenizer", entry("a", 3))
    assert latest_evaluation(path, "gpt") is None
    keep_evaluation(path, "samples", entry("a", 4))
    assert read_evaluations(path) == {"samples": [entry("b", 2), entry("a", 4)], "tokenizer": [entry("a", 3)]}
    assert latest_evaluation(path, "samples") == entry("a", 4)
    assert latest_evaluation(path, "tokenizer") == entry("a", 3)
    assert [path] == list(path.parent.iterdir())  # no lock, and nothing half-written


def test_kinds_and_entries_of_other_versions_stay(tmp_path):
    path = tmp_path / "evaluation.json"
    others = {"speed": [{"of": {"images": 3}}], "samples": [{"of": {"by": "hand"}, "more": 1}]}
    path.write_text(json.dumps(others))
    keep_evaluation(path, "samples", entry("a", 1))
    assert read_evaluations(path) == {**others, "samples": [*others["samples"], entry("a", 1)]}


def test_what_cannot_be_kept_leaves_the_record_as_it_was(tmp_path):
    path = tmp_path / "evaluation.json"
    keep_evaluation(path, "samples", entry("a", 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        keep_evaluation(path, "samples", entry("b", float("nan")))
    assert path.read_bytes() == before
    assert [path] == list(tmp_path.iterdir())


def test_each_dataset_has_a_record_beside_its_run():
    assert evaluation_path("digits") == Path("runs/digits/evaluation.json")


DAMAGED = {
    "a number that is none": '{"samples": [{"of": {}, "value": NaN}]}',
    "an entry of nothing": '{"samples": [{"figures": {}}]}',
    "an entry of a list": '{"samples": [{"of": []}]}',
    "empty": "",
    "cut": '{"samples": [{"of": 1}',
    "no object": "[]",
    "no list": '{"samples": {"of": 1}}',
    "no entries": '{"samples": [1]}',
    "deep": '{"samples": [' + "[" * 100_000,
    "deeper than plain": '{"samples": [{"of": ' + "[" * 80 + "]" * 80 + "}]}",
    "large number": '{"samples": [{"of": 1' + "0" * 60 + "}]}",
    "half a character": '{"samples": [{"of": "\\ud800"}]}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_no_record_is_refused_and_stays(tmp_path, name):
    path = tmp_path / "evaluation.json"
    path.write_text(DAMAGED[name])
    for call in (
        lambda: read_evaluations(path),
        lambda: latest_evaluation(path, "samples"),
        lambda: keep_evaluation(path, "samples", entry("a", 1)),
        lambda: check_replaceable(path, [], overwrite=True),
    ):
        with pytest.raises(InputError, match=r"evaluation\.json is not a record of evaluations") as refused:
            call()
        assert refused.value.hint
    assert path.read_text() == DAMAGED[name]
    assert [path] == list(tmp_path.iterdir())


def test_bytes_that_are_no_text_and_files_too_large_or_special_are_refused(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a record"):
        read_evaluations(path)
    os.truncate(path, LARGEST + 1)
    with pytest.raises(InputError, match="may have at most"):
        read_evaluations(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe"):
        read_evaluations(path)


# Pictures


def test_only_pictures_that_an_evaluation_made_are_replaced(here):
    path, ours, other = Path("evaluation.json"), Path("nearest.png"), Path("mine.png")
    check_replaceable(path, [ours, other], overwrite=False)  # nothing is there
    keep_evaluation(path, "samples", entry("a", 1, pictures={"nearest": str(ours)}))
    keep_evaluation(path, "samples", entry("b", 1))
    ours.write_bytes(b"a picture")
    other.write_bytes(b"another")
    check_replaceable(path, [ours], overwrite=False)
    with pytest.raises(UsageError, match=r"mine\.png exists") as refused:
        check_replaceable(path, [ours, other], overwrite=False)
    assert "--overwrite" in refused.value.hint
    check_replaceable(path, [ours, other], overwrite=True)


def test_an_entry_with_other_pictures_than_ours_makes_none(here):
    path, picture = Path("evaluation.json"), Path("nearest.png")
    picture.write_bytes(b"a picture")
    keep_evaluation(path, "samples", entry("a", 1, pictures=["nearest.png"]))
    with pytest.raises(UsageError):
        check_replaceable(path, [picture], overwrite=False)


# The command of a configuration


def parsed(text: str, words: str, config_class: type):
    """The configuration that a command line has for the program."""
    found = []

    def run(config, flags, report):
        """Nothing."""
        found.append(config)
        return {}

    command = Command(words=words, config=config_class, run=run, takes_recipe=False)
    app = typer.Typer()
    app.command()(typer_function(command, {words: command}))
    program, *arguments = shlex.split(text)
    assert [program, *words.split()] == ["vqgpt", *arguments[: len(words.split())]]
    app(args=arguments[len(words.split()) :], standalone_mode=False)
    return found[0]


WORDS = st.sampled_from(["a", "two words", "it's", '"quoted"', "$HOME", "mnist:test", "~", "é", "a;b", "x=1"])
PATHS = st.none() | WORDS.map(Path) | st.just(Path("folder/~/file"))
COUNTS = st.just(0) | st.integers(2, 10**9)


@settings(max_examples=60, deadline=None)
@given(
    samples=WORDS,
    against=st.none() | WORDS,
    cache=PATHS | st.just(CacheURL("s3://bucket/a.zarr")),
    size=st.none() | st.integers(1, 512),
    limit=COUNTS,
    training_images=COUNTS,
    by_class=st.none() | st.booleans(),
    classify=st.booleans(),
    seconds=st.none() | st.floats(1e-8, 1e9),
    seed=st.integers(0, 2**63 - 1),
    out=PATHS,
    data_root=PATHS,
    device=st.sampled_from(["auto", "cpu"]),
)
def test_the_text_of_a_command_is_read_as_its_configuration(data_root, device, **values):
    config = EvaluateSamplesConfig(sources=SourceOptions(data_root=data_root, device=device), **values)
    text = command_text("evaluate samples", config)
    assert parsed(text, "evaluate samples", EvaluateSamplesConfig) == config


def test_the_text_says_only_what_differs_from_the_defaults():
    config = EvaluateSamplesConfig(samples="my pictures", by_class=False, limit=0, sources=resolve(SourceOptions))
    text = command_text("evaluate samples", config)
    assert text == "vqgpt evaluate samples 'my pictures' --limit 0 --no-by-class"


def test_the_text_of_a_command_with_lists_and_choices():
    images = resolve(ImageOptions, {"dataset": "digits", "limit": 7})
    vqgan = resolve(EncoderOptions, {"checkpoint_vae": Path("a b.pt")})
    config = EvaluateTokenizerConfig(images=images, vqgan=vqgan, perturb=0.25, split="val")
    text = command_text("evaluate tokenizer", config)
    assert parsed(text, "evaluate tokenizer", EvaluateTokenizerConfig) == config
