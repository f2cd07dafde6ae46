"""`vqgpt run` for images without a recipe: one is chosen, shown and saved, and can be edited."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import assert_refused, files_of, run_here
from vqgpt.api.chosen_recipe import SIZES, recipe_text
from vqgpt.commands import all_commands
from vqgpt.options.definition import resolve
from vqgpt.options.recipe import values_for


@pytest.fixture
def photos(here):
    """A folder `photos` with two classes of 12 images, 40 x 48 pixels."""
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        Path("photos", name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"photos/{name}/{number}.png")
    return here


def test_a_dry_run_shows_the_recipe_and_saves_nothing(photos):
    before = files_of(photos)
    outcome = run_here("run", "--dataset", "folder", "--data-root", "photos", "--device", "cpu", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    text = outcome.err[outcome.err.index("# Chosen for 24 images") : outcome.err.index("vqgan train:")]
    recipe = tomllib.loads(text)
    assert recipe["data_root"] == "photos"
    assert (recipe["vqgan-train"]["size"], recipe["vqgan-train"]["patch"]) == (32, 4)
    assert recipe["train"]["condition"] == "class"
    assert files_of(photos) == before
    assert all(stage["seconds"] > 0 for stage in outcome.json["stages"].values())


def test_grey_images_get_the_recipe_of_grey_ones(photos):
    for path in Path("photos").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    outcome = run_here("run", "--dataset", "folder", "--data-root", "photos", "--device", "cpu", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "the recipe mnist, scaled" in outcome.err


def test_a_chosen_recipe_is_saved_to_be_edited_and_its_images_are_known_by_name_and_content(photos):
    run = ("run", "--dataset", "folder", "--data-root", "photos", "--json")
    Path("runs/folder").mkdir(parents=True)
    saved = Path("runs/folder/recipe.toml")
    text = recipe_text(Path("photos"), images=24, classes=True, side=40, in_color=True, device="cpu")
    saved.write_text(re.sub("warmup = .*", "warmup = 0", text.replace("n_epochs = 200", "n_epochs = 1")))
    outcome = run_here(*run, "--until", "tokenize")
    assert outcome.code == 0, outcome.err
    assert [told["state"] for told in outcome.json["stages"].values()] == ["done"] * 3
    outcome = run_here("run", "--recipe", saved, "--json", "--until", "tokenize")
    assert [told["state"] for told in outcome.json["stages"].values()] == ["up to date"] * 3
    Path("photos/cats/0.png").rename("photos/cats/new.png")
    assert_refused(run_here(*run), 2, "vqgan.pt", "the images changed", "--overwrite")
    Path("photos/cats/new.png").rename("photos/cats/0.png")
    picture = Path("photos/cats/0.png").read_bytes()
    Path("photos/cats/0.png").write_bytes(picture[:-1] + b"x")
    assert_refused(run_here(*run), 2, "vqgan.pt", "the images changed", "--overwrite")
    Path("photos/cats/0.png").write_bytes(picture)
    assert [told["state"] for told in run_here(*run, "--until", "tokenize").json["stages"].values()] == [
        "up to date"
    ] * 3
    Path("photos").rename("elsewhere")
    outcome = run_here(*run, "--until", "tokenize")
    assert [told["state"] for told in outcome.json["stages"].values()] == ["up to date"] * 3


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("images", [2, 300, 20_000, 2_000_000])
@pytest.mark.parametrize("side", [8, 40, 100, 4000])
@pytest.mark.parametrize("in_color", [False, True])
def test_every_chosen_recipe_is_valid(device, images, side, in_color):
    commands = all_commands()
    text = recipe_text(Path('a "b" \\ é'), images, images > 2, side, in_color, device)
    recipe = tomllib.loads(text)
    assert recipe["data_root"] == 'a "b" \\ é'
    made = {
        table: resolve(commands[table].config, values_for(commands[table], recipe, "", commands))
        for table in ("vqgan-train", "tokenize", "train", "sample")
    }
    assert made["vqgan-train"].size in SIZES
    assert made["vqgan-train"].training.perceptual == ("off" if made["vqgan-train"].size >= 64 else None)
    assert made["vqgan-train"].training.batch_size <= images
    assert made["train"].training.warmup < made["train"].training.n_epochs


@pytest.mark.parametrize("images", [300, 20_000, 2_000_000])
def test_a_chosen_training_is_as_long_as_the_measured_one(images):
    recipe = tomllib.loads(recipe_text(Path("photos"), images, True, 64, True, "cpu"))
    for table, passes in (("vqgan-train", 36 * 3_071), ("train", 18 * 3_071)):
        training = recipe[table]
        rows = min(images, training.get("limit", images))
        steps = training.get("max_steps", training["n_epochs"] * rows / training["batch_size"])
        assert steps * training["batch_size"] == pytest.approx(min(passes, 200 * rows), rel=0.1)


def test_what_cannot_be_chosen_for_is_named(here):
    assert_refused(run_here("run", "--dataset", "emoji"), 2, "emoji")
    assert_refused(run_here("run", "--dataset", "folder"), 2, "--data-root")
    assert_refused(run_here("run", "--dataset", "folder", "--data-root", "photos"), 4, "photos")
    assert_refused(run_here("run", "--dataset", "mnits"), 2, "mnits", "mnist")
    assert not Path("runs").exists()
