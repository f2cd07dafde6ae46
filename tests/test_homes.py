"""`~` in paths that users write, where no shell expands it: --cache=~/x, variables, recipes, arguments."""

import os
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import assert_refused, description, files_of, run_here, write_cache
from vqgpt.cli.app import COMMANDS
from vqgpt.cli.running import environment_variable
from vqgpt.options.codec import convert
from vqgpt.options.definition import Flags, options_of, value_of
from vqgpt.options.paths import CachePath, CacheURL

HERE_NOBODY = "~no-such-user-here"
PATHS = [
    (command, item)
    for command in COMMANDS.values()
    for item in [*options_of(command.config), *(options_of(Flags) if command.takes_recipe else [])]
    if item.type in (Path, CachePath)
]
NAMES = [f"{command.table} {item.name}" for command, item in PATHS]
WRITTEN = ("variable", "recipe", "flag")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home beside the current folder, both empty."""
    for name in ("home", "current"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "home"


def test_the_options_that_are_paths_are_found():
    expected = {"tokenize cache", "tokenize data_root", "train recipe", "cache-rm cache", "export out", "score against"}
    assert expected <= set(NAMES)


@pytest.mark.parametrize(("command", "item"), PATHS, ids=NAMES)
def test_every_path_means_the_home(home, command, item):
    assert value_of("~/a b/c.zarr", item.type, item.name) == home / "a b/c.zarr"
    assert value_of("~", item.type, item.name) == home
    assert value_of("~root/x", item.type, item.name) == Path(os.path.expanduser("~root")) / "x"
    for plain in ("./~", "./~/x", "x/~", "a~", "/tmp/~/x"):
        assert value_of(plain, item.type, item.name) == Path(plain)


@pytest.mark.parametrize(("command", "item"), PATHS, ids=NAMES)
def test_an_unknown_home_is_named_wherever_it_is_written(home, monkeypatch, command, item):
    path = f"{HERE_NOBODY}/x.zarr"
    words = [*command.words.split(), *("x.zarr" for other in options_of(command.config) if other.is_argument)]
    error = (2, item.name, path, "no home", f"./{HERE_NOBODY}")
    if item.is_argument:
        assert_refused(run_here(*command.words.split(), path), *error)
        return
    assert_refused(run_here(*words, f"{item.flag}={path}"), *error)
    if command.takes_recipe and item.name != "recipe":
        Path("r.toml").write_text(f'[{command.table}]\n{item.key} = "{path}"\n')
        assert_refused(run_here(*words, "--recipe", "r.toml"), *error)
    monkeypatch.setenv(environment_variable(item, command.words), path)
    assert_refused(run_here(*words), *error)


def test_no_option_is_a_list_of_paths_which_would_stay_unexpanded(home):
    all_options = [item for command in COMMANDS.values() for item in options_of(command.config)]
    assert not [item.name for item in all_options if "Path" in str(typing.get_args(item.type)) and item.is_list]
    assert value_of("s3://bucket/~/x.zarr", CachePath, "x") == CacheURL("s3://bucket/~/x.zarr")


def test_what_a_file_of_ours_says_is_not_another_users_home(home):
    assert convert("~/x", Path | None, "out") == Path("~/x")
    assert value_of(Path("~/x"), Path | None, "out") == Path("~/x")


def test_files_lie_in_the_home_and_in_no_folder_of_that_name(home, monkeypatch):
    write_cache(home / "a.zarr", description())
    monkeypatch.setenv("VQGPT_CACHE_EXPORT_OUT", "~/from a variable")
    (home / "r.toml").write_text('[cache-export]\nout = "~/from a recipe"\n')
    for arguments in ([], ["--recipe=~/r.toml"], ["--out=~/from a flag"], ["--out", "./~"]):
        outcome = run_here("cache", "export", "~/a.zarr", *arguments)
        assert outcome.code == 0, outcome.err
        monkeypatch.delenv("VQGPT_CACHE_EXPORT_OUT", raising=False)
    assert {path.name for path in home.iterdir()} == {"a.zarr", "r.toml", *(f"from a {x}" for x in WRITTEN)}
    assert [path.name for path in Path.cwd().iterdir()] == ["~"]
    assert files_of(Path("~")) == files_of(home / "from a flag")


def test_without_a_home_a_line_says_so(home, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # of nobody
    assert_refused(run_here("cache", "info", "~/x.zarr"), 2, "cache = ~/x.zarr", "no home of ~")
    assert_refused(run_here("tokenize", "--data-root", "~"), 2, "data_root = ~", "no home of ~")


def test_prompts_and_masks_lie_in_the_home_too(pipeline, monkeypatch):
    (pipeline / "home").mkdir()
    monkeypatch.setenv("HOME", str(pipeline / "home"))
    (pipeline / "cache/digits.zarr").rename(pipeline / "home/d.zarr")
    Image.fromarray(np.repeat(np.uint8([[255]] * 4 + [[0]] * 4), 8, axis=1)).save("home/mask.png")
    rendered = run_here("render", "~/d.zarr", "--format=png", "--rows=17:18", "--out=~/pictures")
    assert rendered.code == 0, rendered.err
    sampled = {}
    for name, arguments in {
        "row": ["--prompt=cache:~/d.zarr:train/17"],
        "mask": ["--prompt=cache:~/d.zarr:train/17", "--keep=~/mask.png"],
        "image": ["--prompt=~/pictures/000017.png", "--class=none"],
    }.items():
        outcome = run_here("sample", "--tokens-only", "--num-samples=1", f"--out={name}.zarr", *arguments)
        assert outcome.code == 0, outcome.err
        sampled[name] = files_of(pipeline / f"{name}.zarr")["samples/codes/c/0/0/0/0"]
    assert sampled["row"] == sampled["mask"]
    for arguments in (["--prompt", f"{HERE_NOBODY}/x.png"], ["--prompt", "cache:train/1", "--keep", HERE_NOBODY]):
        assert_refused(run_here("sample", *arguments), 2, HERE_NOBODY, "no home")
