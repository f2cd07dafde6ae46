"""`vqgpt evaluate samples`: planted faults are named in plain words, and what cannot be compared is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from tests.conftest import OTHER_VQGAN, assert_refused, files_of, run_here
from tests.forked import run_ranks
from vqgpt.commands.evaluate_samples import figure_text
from vqgpt.data.image_sets import npz_images
from vqgpt.evaluation.distances import Moments
from vqgpt.evaluation.extractors import is_installed
from vqgpt.evaluation.features import Features
from vqgpt.evaluation.findings import findings_of_consistency
from vqgpt.evaluation.samples import figures_by_class, sample_figures
from vqgpt.progress import silent

COUNT = 40  # images of each of three classes and each split
CLASSES = ("disc", "frame", "stripes")
AGAINST = ["--against", "shapes:val", "--training", "shapes:train", "--limit", "0"]
needs_lite0 = pytest.mark.skipif(not is_installed("lite0"), reason="the package of the lite0 features is absent")
pytestmark = needs_lite0


def shape(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A picture (16, 16, 3) uint8 of a class, of random place, size and colours."""
    y, x = np.mgrid[:16, :16] - rng.uniform(6, 9, (2, 1, 1))
    radius, turn = rng.uniform(3, 6), rng.uniform(0, np.pi)
    inside = {
        "disc": x**2 + y**2 < radius**2,
        "frame": np.abs(np.maximum(np.abs(x), np.abs(y)) - radius) < 1.2,
        "stripes": np.sin((x * np.cos(turn) + y * np.sin(turn)) * 9 / radius) > 0,
    }[kind]
    background, colour = rng.integers(0, 90, 3), rng.integers(150, 256, 3)
    return np.where(inside[..., None], colour, background).astype(np.uint8)


def write_shapes(folder: Path, seed: int, kinds=CLASSES, change=lambda image, number: image) -> Path:
    """A class tree of new pictures; `change` may spoil each."""
    rng = np.random.default_rng(seed)
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for number in range(COUNT):
            picture = change(Image.fromarray(shape(kind, rng)), number)
            picture.save(folder / kind / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with the real pictures, shapes/train and shapes/val, whose features are kept."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "shapes/train", 1)
    write_shapes(folder / "shapes/val", 2)
    write_shapes(folder / "good", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        outcome = evaluate("good")
    assert outcome["findings"][-1].startswith("120 samples against 120 images are few")
    assert len(outcome["findings"]) == 1, outcome["findings"]
    return folder


@pytest.fixture
def project(shapes, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(shapes, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def evaluate(source, *flags) -> dict:
    outcome = run_here("evaluate", "samples", str(source), *AGAINST, "--features", "lite0", "--json", *flags)
    assert outcome.code == 0, outcome.err
    return outcome.json


def findings(source, *flags) -> str:
    return "\n".join(evaluate(source, *flags)["findings"])


def test_copies_of_training_images_are_named(project):
    shutil.copytree("shapes/train", "copies")
    assert "100.0% of the samples equal a training image in all pixels" in findings("copies")
    change = lambda image, number: Image.fromarray(np.clip(np.asarray(image) + np.int16(1), 0, 255).astype(np.uint8))  # noqa: E731
    write_shapes(Path("nearly"), 1, change=change)
    found = evaluate("nearly")
    assert found["copies_by_features"]["authentic"] < 0.2
    assert "suspiciously near to training images" in "\n".join(found["findings"])


def test_a_missing_class_is_named_also_where_samples_have_no_labels(project):
    write_shapes(Path("two"), 4, CLASSES[:2])
    assert "no sample is of class stripes" in findings("two")
    alone = run_here("evaluate", "samples", "two", "--against", "shapes:val", "--features", "lite0", "--json").json
    assert "no sample is of class stripes" in alone["findings"]
    assert alone["by_class"]["stripes"]["samples"] == 0
    flat = Path("flat")
    flat.mkdir()
    for number, file in enumerate(sorted(Path("two").rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    assert "no sample is of class stripes, as a classifier sees them" in findings("flat")


def test_blurred_repeated_and_mislabelled_samples_are_named(project):
    write_shapes(Path("blurred"), 5, change=lambda image, number: image.filter(ImageFilter.GaussianBlur(1.5)))
    assert "the samples are blurred" in findings("blurred")
    one = Image.fromarray(shape("disc", np.random.default_rng(9)))
    write_shapes(Path("repeated"), 6, change=lambda image, number: one)
    text = findings("repeated")
    assert "the samples repeat themselves: 1 different image among 120" in text
    assert "little of the variety" in text
    shutil.copytree("good", "turned")
    for old, new in zip(CLASSES, ("b", "c", "a"), strict=True):
        Path("turned", old).rename(Path("turned", new))
    for new, name in zip("abc", CLASSES, strict=True):
        Path("turned", new).rename(Path("turned", name))
    found = evaluate("turned")
    assert found["class_consistency"]["samples"]["share"] < 0.2
    assert "the labels do not belong to the samples" in "\n".join(found["findings"])


def test_a_split_against_itself_is_named_and_has_no_distance(project):
    found = evaluate("shapes:val")
    assert "120 of 120 samples are images of the reference, pixel for pixel" in found["findings"][0]
    assert found["figures"]["FD-lite0"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["figures"]["MIND"]["value"] == 0
    assert found["figures"]["precision"]["value"] == 1


def test_the_same_images_give_the_same_figures_from_any_source(project):
    expected = evaluate("good")
    shutil.make_archive("packed", "zip", "good")
    images, labels = [], []
    for label, kind in enumerate(CLASSES):
        for file in sorted(Path("good", kind).glob("*.png")):
            images.append(np.asarray(Image.open(file)))
            labels.append(label)
    np.savez("packed.npz", np.stack(images), np.array(labels))
    assert len(npz_images(Path("packed.npz"), silent)) == 120
    for source in ("packed.zip", "packed.npz"):
        found = evaluate(source)
        assert found["figures"] == expected["figures"]
        assert found["different_images"] == 120
    assert found["by_class"] is None  # an array names its classes by their numbers
    assert {name: row["samples"] for name, row in expected["by_class"].items()} == dict.fromkeys(CLASSES, COUNT)


def test_features_are_kept_and_two_processes_give_the_same_figures(project):
    expected = evaluate("good")
    assert Path("good-train-lite0.npz").exists()
    again = run_here("evaluate", "samples", "good", *AGAINST, "--features", "lite0", "--json")
    assert "are taken from good-train-lite0.npz" in again.err
    Path("twin").mkdir()
    shutil.copytree("shapes/val", "twin/good")  # other pictures, whose features lie at the same place
    shutil.make_archive("good", "zip", "twin/good")
    found = evaluate("good", "--against", "good.zip")
    assert found["in_the_reference"] == 0
    assert found["figures"]["MIND"]["value"] > 0
    for file in project.rglob("*-lite0.npz"):
        file.unlink()
    command = ["evaluate", "samples", "good", *AGAINST, "--features", "lite0", "--json"]
    result = run_ranks(2, "-m", "vqgpt", *command)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["figures"] == expected["figures"]


def test_the_line_gives_the_command_again_and_seconds_choose_the_number(project):
    outcome = run_here("evaluate", "samples", "good", *AGAINST, "--seconds", "6", "--json")
    assert outcome.code == 0, outcome.err
    assert "of at most" in outcome.err
    line = outcome.json["line"]
    assert "--seconds" not in line
    assert "--limit" in line
    hasty = ["evaluate", "samples", "good", *AGAINST[:-2], "--features", "classifier", "--seconds", "0.01"]
    outcome = run_here(*hasty, "--limit", "15", "--training-images", "0", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["samples"].startswith("15 images")
    assert "--limit 15 --training-images 0" in outcome.json["line"]
    outcome = run_here("evaluate", "samples", "good", *AGAINST, "--seconds", "6", "--json")
    line = outcome.json["line"]
    assert outcome.json["features"]["weights"][:12] in line
    words = line[line.index("vqgpt evaluate samples") :].split()[1:]
    again = run_here(*words, "--json")
    assert again.json["figures"] == outcome.json["figures"]


def test_the_screen_shows_tables_and_findings(project):
    outcome = run_here("evaluate", "samples", "good", *AGAINST, "--features", "lite0")
    lines = outcome.out.splitlines()
    assert lines.index("figures") < lines.index("class as asked for") < lines.index("by class")
    assert lines[lines.index("findings") + 1].startswith("120 samples against")
    first = lines[lines.index("figures") + 2]
    assert first.startswith("MIND")  # leads where there are few images


def test_what_cannot_be_compared_is_refused(project):
    assert_refused(run_here("evaluate", "samples", "good"), 2, "good", "--against")
    words = ["evaluate", "samples", "good", "--features", "lite0", "--against"]
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("one.png")
    Path("single").mkdir()
    shutil.move("one.png", "single/one.png")
    assert_refused(run_here(*words, "single"), 3, "single", "1 image")
    write_shapes(Path("large"), 7, change=lambda image, number: image.resize((20, 20)))
    assert_refused(run_here(*words, "large"), 3, "20 x 20", "16 x 16", "--size")
    assert run_here(*words, "large", "--size", "16", "--limit", "9", "--no-classify").code == 0
    write_shapes(Path("grey"), 7, change=lambda image, number: image.convert("L"))
    assert_refused(run_here(*words, "grey"), 3, "grey", "RGB")
    write_shapes(Path("black"), 7, change=lambda image, number: image.point(lambda level: 0))
    found = run_here("evaluate", "samples", "black", "--against", "good", "--features", "lite0", "--json")
    assert "1 different image among 120" in "".join(found.json["findings"]), found.err
    assert_refused(run_here(*words, "shapes:val", "--limit", "1"), 2, "limit")
    assert_refused(run_here(*words, "shapes:val", "--checkpoint-vae", "a.pt"), 2, "--checkpoint-vae")
    assert_refused(run_here(*words, "shapes:val", "--cache", "a.zarr"), 2, "--cache")
    Image.fromarray(np.zeros((9, 16, 3), np.uint8)).save("large/disc/odd.png")
    assert_refused(run_here(*words, "large"), 3, "different sizes", "odd.png")
    np.savez("floats.npz", np.full((4, 16, 16, 3), np.nan))
    assert_refused(run_here(*words, "floats.npz"), 3, "floats.npz", "arr_0 has type")
    assert_refused(run_here(*words, "good-train-lite0.npz"), 3, "good-train-lite0.npz", "features")
    assert_refused(run_here(*words, "mnist"), 2, "mnist:test")
    assert_refused(run_here(*words, "shapes:vall"), 2, "'vall'", "'val'")
    assert_refused(run_here(*words, "nowhere"), 4, "nowhere")


def test_labels_in_one_set_alone_give_no_figures_by_class(project):
    flat = Path("flat")
    flat.mkdir()
    for number, file in enumerate(sorted(Path("good").rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    outcome = run_here("evaluate", "samples", "flat", *AGAINST, "--features", "lite0", "--json")
    assert outcome.json["by_class"] is None
    assert "no figures by class: flat has no classes" in outcome.err
    refused = run_here("evaluate", "samples", "flat", *AGAINST, "--features", "lite0", "--by-class")
    assert_refused(refused, 2, "flat has no classes")


def test_features_that_are_not_there_or_unknown_are_refused(project):
    words = ["evaluate", "samples", "good", *AGAINST, "--features"]
    assert_refused(run_here(*words, "nothing.pt"), 4, "nothing.pt")
    assert_refused(run_here(*words, "incepton"), 2, "'incepton'", "'inception'")
    Path("other.pt").write_bytes(b"weights")
    assert_refused(run_here(*words, "other.pt"), 3, "other.pt", "SHA-256")
    plain = ["evaluate", "samples", "good", "--against", "shapes:val", "--features", "classifier"]
    assert_refused(run_here(*plain), 2, "classifier", "--training")
    assert evaluate("good", "--features", "classifier")["line"].count("FD-classifier") == 0  # MIND and KID lead
    assert "FD-classifier" in evaluate("good", "--features", "classifier")["figures"]


def test_samples_of_a_pipeline_are_compared_with_its_dataset_and_tokens(pipeline):
    words = ["evaluate", "samples", "runs/digits/samples.zarr", "--features", "lite0", "--limit", "20"]
    words += ["--training-images", "30", "--json"]
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["reference"] == "20 images of digits:test"
    assert found["copies_by_tokens"]["samples"]["images"] == 20
    assert found["class_consistency"]["reconstructions"]["images"] == 20
    assert Path(found["pictures"]["nearest"]).exists()
    record = json.loads(Path("runs/digits/evaluation.json").read_text())
    assert record["samples"][-1]["figures"] == found["figures"]
    assert run_here(*words).code == 0  # its picture is its own, and is made again
    assert len(json.loads(Path("runs/digits/evaluation.json").read_text())["samples"]) == 1
    Path("runs/digits/evaluation.json").unlink()
    assert_refused(run_here(*words), 2, "nearest.png", "--overwrite")
    before = files_of(pipeline)
    assert run_here(*words, "--overwrite", "--dry-run").code == 0
    assert files_of(pipeline) == before


def test_training_rows_as_samples_are_copies_in_all_tokens(pipeline):
    words = ["evaluate", "samples", "cache/digits.zarr:train", "--cache", "cache/digits.zarr", "--features", "lite0"]
    outcome = run_here(*words, "--limit", "20", "--training-images", "0", "--no-classify", "--json")
    assert "20 of 20 samples match a training image token for token" in "\n".join(outcome.json["findings"])


def test_a_cache_needs_its_own_vqgan(pipeline):
    words = ["evaluate", "samples", "runs/digits/samples.zarr", "--features", "lite0"]
    made = run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--out", "other.pt")
    assert made.code == 0, made.err
    assert_refused(run_here(*words, "--checkpoint-vae", "other.pt"), 3, "another VQ-GAN", "other.pt")
    Path("runs/digits/vqgan.pt").unlink()
    assert_refused(run_here(*words), 4, "runs/digits/vqgan.pt")


def test_a_figure_without_an_interval_has_a_place_in_the_line():
    with_interval, without = {"value": 2.0, "low": 1.0, "high": 3.0}, {"value": 1.5, "low": None, "high": None}
    assert figure_text("FID", with_interval) == "FID 2 [1, 3]"
    assert figure_text("FID-infinity", without) == "FID-infinity 1.5"


def test_all_figures_of_many_images_are_there_and_agree_by_class():
    rng = np.random.default_rng(0)
    labels = np.arange(5000) % 2
    samples, reference = (
        Features(
            about={},
            moments=Moments.of(values),
            rows=np.arange(5000),
            values=values,
            digests=rng.integers(0, 256, (5000, 16), dtype=np.uint8),
            sharpness=np.ones(5000, np.float32),
        )
        for values in (torch.from_numpy(rng.normal(shift, 1, (5000, 6))).float() for shift in (0.2, 0.0))
    )
    figures = sample_figures(samples, reference, "FID", 0)
    assert list(figures)[:2] == ["FID", "FID-infinity"]  # enough images: these lead
    assert figures["FID"].value == pytest.approx(6 * 0.2**2, abs=0.03)
    assert figures["FID-infinity"].value == pytest.approx(figures["FID"].value, abs=0.02)
    assert figures["FID"].low < 6 * 0.2**2 < figures["FID"].high
    by_class = figures_by_class(samples, reference, labels, labels, ("a", "b"), "FID", 0)
    assert [row["samples"] for row in by_class.values()] == [2500, 2500]
    assert by_class["a"]["FID"] == pytest.approx(figures["FID"].value, abs=0.15)


@pytest.mark.parametrize(
    ("share", "accuracy", "classes", "words"),
    [
        (0.98, 0.99, 2, ""),
        (0.52, 0.99, 2, "do not belong"),
        (0.60, 0.70, 3, ""),
        (0.65, 0.99, 10, "are classified as the class asked for, and 99% of real images"),
        (0.50, 0.55, 2, "the classifier says little"),
    ],
)
def test_class_consistency_is_judged_by_what_the_classifier_knows(share, accuracy, classes, words):
    said = list(findings_of_consistency({"share": share}, None, accuracy, classes))
    assert len(said) == bool(words)
    assert words in "".join(said)
