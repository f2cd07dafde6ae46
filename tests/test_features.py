"""Features are computed once, kept as plain arrays, and never taken from a file that is damaged or of other images."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.forked import Forked, run_ranks
from vqgpt.data.image_sets import ImageSet
from vqgpt.errors import InputError, NonFiniteError
from vqgpt.evaluation import features as features_module
from vqgpt.evaluation.distances import drawn_rows
from vqgpt.evaluation.extractors import Extractor
from vqgpt.evaluation.features import (
    IMAGES_AT_ONCE,
    about_features,
    is_kept,
    make_features,
    read_features,
)
from vqgpt.evaluation.pixels import pixel_digests, sharpness
from vqgpt.progress import Notice, Progress, silent

COUNT, DIMENSIONS = 5 * IMAGES_AT_ONCE + 10, 3  # six batches, of which the last one is smaller
ARRAY = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 4, 4), dtype=np.uint8)
WEIGHTS = torch.from_numpy(np.random.default_rng(1).integers(-2, 3, (16, DIMENSIONS))).float()  # which makes sums exact
PROGRAM = """
import os, signal, time
from pathlib import Path
import torch
from tests.test_features import linear, made
from vqgpt.evaluation import features
from vqgpt.evaluation.features import make_features
from vqgpt.progress import silent
from vqgpt.runtime.device import process_group

kill_at, pause, calls = int(os.environ.get("KILL_AT", 0)), float(os.environ.get("PAUSE", 0)), []

def compute(images):
    calls.append(len(images))
    if len(calls) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause)
    return linear().compute(images)

def write_and_die(member, header):
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("KILL_AT_END"):
    features.np.lib.format.write_array_header_1_0 = write_and_die
with process_group(torch.device("cpu")):
    make_features(made(Path("set")), linear(compute=compute), silent)
"""


def made(stem: Path | None, array: np.ndarray = ARRAY, **changes) -> ImageSet:
    """A set of images (N, C, H, W) in memory."""
    values = {
        "name": "made",
        "sha256": "0" * 64,
        "labels": np.full(len(array), -1),
        "class_names": (),
        "shape": array.shape[1:],
        "features_stem": stem,
        "rows": np.arange(len(array)),
        "read": lambda batches: (array[list(rows)] for rows in batches),
    }
    return ImageSet(**{**values, **changes})


def linear(**changes) -> Extractor:
    """A network that is a linear map of the pixels."""
    values = {
        "kind": "lite0",
        "distance_name": "FD-lite0",
        "sha256": "w" * 64,
        "preprocessing": "none",
        "dimensions": DIMENSIONS,
        "images_per_pass": 8,
        "compute": lambda images: images.flatten(1).float() @ WEIGHTS,
    }
    return Extractor(**{**values, **changes})


class Counted:
    """The same map, which notes how many images it got each time, and stops before call number `stop_at`."""

    def __init__(self, stop_at: int = 0) -> None:
        self.calls: list[int] = []
        self.stop_at = stop_at

    def __call__(self, images):
        if len(self.calls) + 1 == self.stop_at:
            raise NonFiniteError("stopped", "by the test")
        self.calls.append(len(images))
        return linear().compute(images)


def never(images):
    raise AssertionError("features were computed again")


def expected(array: np.ndarray = ARRAY) -> np.ndarray:
    """(N, 3) float32."""
    return array.reshape(len(array), -1).astype(np.float32) @ WEIGHTS.numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The file that a run makes which nothing interrupts."""
    return make_features(made(tmp_path_factory.mktemp("whole") / "set"), linear(), silent).read_bytes()


# What is in the file


def test_features_are_those_of_the_extractor_and_moments_those_of_numpy(tmp_path):
    images, extractor = made(tmp_path / "sub" / "set"), linear()
    events = []
    path = make_features(images, extractor, events.append)
    assert path == tmp_path / "sub" / "set-lite0.npz"
    assert [path] == list(path.parent.iterdir())
    found = read_features(path)
    assert found.count == COUNT
    assert found.about == about_features(images, extractor)
    assert found.values.dtype == torch.float32
    assert (found.values.numpy() == expected()).all()
    assert found.rows.tolist() == list(range(COUNT))
    assert np.allclose(found.moments.mean, expected().astype(float).mean(axis=0), rtol=1e-12)
    assert np.allclose(found.moments.covariance, np.cov(expected().astype(float), rowvar=False), rtol=1e-10)
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == [*range(IMAGES_AT_ONCE, COUNT, IMAGES_AT_ONCE), COUNT]


def test_the_file_is_plain_arrays_that_numpy_opens(tmp_path):
    path = make_features(made(tmp_path / "set"), linear(), silent)
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"features", "digests", "sharpness", "about"}
        assert arrays["features"].dtype == np.dtype("<f4")
        assert (arrays["features"] == expected()).all()
        assert (arrays["digests"] == pixel_digests(ARRAY)).all()
        assert (arrays["sharpness"] == sharpness(ARRAY)).all()
        assert json.loads(str(arrays["about"]))["weights"] == "w" * 64


def test_equal_images_have_equal_digests_and_others_have_others():
    images = np.concatenate([ARRAY[:20], ARRAY[:20]])
    images[25, 0, 3, 3] ^= 1
    digests = [digest.tobytes() for digest in pixel_digests(images)]
    assert digests[:5] == digests[20:25]
    assert len(set(digests)) == 21


def test_sharpness_is_the_mean_difference_of_neighbouring_pixels():
    image = np.array([[[[0, 10], [4, 4]]]], dtype=np.uint8)
    assert sharpness(image).tolist() == [(4 + 6) / 2 + (10 + 0) / 2]
    assert sharpness(np.full((2, 3, 5, 5), 200, np.uint8)).tolist() == [0, 0]
    assert sharpness(np.array([[[[0, 255, 0]]]], dtype=np.uint8)).tolist() == [255]
    assert sharpness(np.zeros((2, 1, 1, 1), np.uint8)).tolist() == [0, 0]
    assert sharpness(ARRAY[:1]).dtype == np.float32


def test_of_many_images_the_moments_are_of_all_and_the_values_of_some(tmp_path, monkeypatch):
    path = make_features(made(tmp_path / "set"), linear(), silent)
    monkeypatch.setattr(features_module, "ROWS_IN_MEMORY", 100)
    monkeypatch.setattr(features_module, "ROWS_AT_ONCE", 64)
    found = read_features(path)
    assert found.count == found.moments.count == COUNT
    assert np.allclose(found.moments.mean, expected().astype(float).mean(axis=0), rtol=1e-12)
    assert np.allclose(found.moments.covariance, np.cov(expected().astype(float), rowvar=False), rtol=1e-10)
    assert found.rows.tolist() == drawn_rows(COUNT, 100).tolist()
    assert (found.values.numpy() == expected()[found.rows]).all()
    assert (found.digests == pixel_digests(ARRAY)).all()


# When it is taken, and when not


def test_kept_features_are_taken_and_nothing_is_computed(tmp_path):
    path = make_features(made(tmp_path / "set"), linear(), silent)
    before, events = path.stat(), []
    assert make_features(made(tmp_path / "set"), linear(compute=never), events.append) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert [event.text for event in events if isinstance(event, Notice)] == [f"features of made are taken from {path}"]


@pytest.mark.parametrize("change", ["images", "weights", "preprocessing", "count"])
def test_features_of_something_else_are_computed_again(tmp_path, change):
    path = make_features(made(tmp_path / "set"), linear(), silent)
    images, compute = made(tmp_path / "set"), Counted()
    extractor = linear(compute=compute)
    match change:
        case "images":
            images = replace(images, sha256="1" * 64)
        case "weights":
            extractor = replace(extractor, sha256="x" * 64)
        case "preprocessing":
            extractor = replace(extractor, preprocessing="another")
        case "count":
            images = replace(images, rows=images.rows[:70])
    assert make_features(images, extractor, silent) == path
    assert sum(compute.calls) == len(images)
    assert read_features(path).about == about_features(images, extractor)
    assert make_features(images, linear(compute=never, **_identity(extractor)), silent) == path


def _identity(extractor: Extractor) -> dict[str, str]:
    return {"sha256": extractor.sha256, "preprocessing": extractor.preprocessing}


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, -1])
def test_features_of_a_truncated_file_are_computed_again(tmp_path, whole, left):
    path = tmp_path / "set-lite0.npz"
    path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(InputError, match="set-lite0.npz is damaged"):
        read_features(path)
    make_features(made(tmp_path / "set"), linear(), silent)
    assert path.read_bytes() == whole


def test_features_are_never_taken_from_a_file_in_which_a_bit_is_flipped(tmp_path, whole):
    path, about = tmp_path / "set-lite0.npz", about_features(made(tmp_path / "set"), linear())
    path.write_bytes(whole)
    assert is_kept(path, about)
    rng, refused = np.random.default_rng(0), 0
    structures = range(whole.rindex(b"PK\1\2") - 400, len(whole))  # names, sizes, methods: the end of the archive
    for place in [*rng.integers(len(whole), size=150), *structures]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        if is_kept(path, about):  # as the bit is in a date, say
            found = read_features(path)
            assert (found.values.numpy() == expected()).all()
            assert (found.digests == pixel_digests(ARRAY)).all()
            assert (found.sharpness == sharpness(ARRAY)).all()
        else:
            refused += 1
    assert refused > 300
    flipped = bytearray(whole)
    flipped[2000] ^= 1  # in a feature
    path.write_bytes(flipped)
    make_features(made(tmp_path / "set"), linear(), silent)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("broken", ["pickle", "no features", "another shape", "no archive"])
def test_files_that_are_no_features_are_refused(tmp_path, broken):
    path = make_features(made(tmp_path / "set"), linear(), silent)
    with np.load(path) as arrays:
        held = dict(arrays)
    match broken:
        case "pickle":
            np.savez(path, **{**held, "digests": np.array([{}, []], dtype=object)})
        case "no features":
            np.savez(path, **{name: array for name, array in held.items() if name != "features"})
        case "another shape":
            np.savez(path, **{**held, "features": held["features"][0]})
        case "no archive":
            path.write_text("PK")
    with pytest.raises(InputError, match="is damaged"):
        read_features(path)


# Interrupted runs


def test_a_run_that_was_stopped_is_continued(tmp_path, whole):
    images = made(tmp_path / "set")
    with pytest.raises(NonFiniteError):
        make_features(images, linear(compute=Counted(stop_at=4)), silent)
    assert not (tmp_path / "set-lite0.npz").exists()
    rest = Counted()
    path = make_features(images, linear(compute=rest), silent)
    assert rest.calls == [IMAGES_AT_ONCE, IMAGES_AT_ONCE, 10]
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_stopped_run_of_something_else_left_is_not_continued(tmp_path):
    with pytest.raises(NonFiniteError):
        make_features(made(tmp_path / "set"), linear(compute=Counted(stop_at=4)), silent)
    compute = Counted()
    make_features(made(tmp_path / "set"), linear(compute=compute, sha256="x" * 64), silent)
    assert sum(compute.calls) == COUNT


@pytest.mark.parametrize("lost", [1, 40, 64 * 32, 3 * 64 * 32 + 5])
def test_rows_that_a_crash_tore_are_computed_again(tmp_path, whole, lost):
    with pytest.raises(NonFiniteError):
        make_features(made(tmp_path / "set"), linear(compute=Counted(stop_at=4)), silent)
    (rows,) = tmp_path.iterdir()
    os.truncate(rows, rows.stat().st_size - lost)
    assert make_features(made(tmp_path / "set"), linear(), silent).read_bytes() == whole


def test_a_link_in_place_of_the_rows_is_not_followed(tmp_path, whole):
    with pytest.raises(NonFiniteError):
        make_features(made(tmp_path / "set"), linear(compute=Counted(stop_at=2)), silent)
    (rows,) = tmp_path.iterdir()
    rows.rename(tmp_path / "thesis.tex")
    (tmp_path / "thesis.tex").write_text("years of work")
    rows.symlink_to("thesis.tex")
    assert make_features(made(tmp_path / "set"), linear(), silent).read_bytes() == whole
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("kill_at", [1, 2, 6])
def test_a_killed_run_is_continued_to_the_same_bytes(here, whole, kill_at):
    Path("program.py").write_text(PROGRAM)
    run = Forked("program.py", cwd=here, KILL_AT=str(kill_at))
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    rest = Counted()
    assert make_features(made(Path("set")), linear(compute=rest), silent).read_bytes() == whole
    assert len(rest.calls) == 6 - (kill_at - 1)
    assert sorted(map(str, Path().iterdir())) == ["program.py", "set-lite0.npz"]


def test_a_run_that_is_killed_at_any_instant_is_continued(here, whole):
    Path("program.py").write_text(PROGRAM)
    run = Forked("program.py", cwd=here, PAUSE="1")
    rows, sizes = Path(".set-lite0.npz.rows.partial"), set()
    while len(sizes) < 2:  # until the first batch is there
        assert run.poll() is None
        sizes |= {rows.stat().st_size} if rows.exists() else set()
        time.sleep(0.01)
    run.kill()
    run.communicate(timeout=60)
    assert not Path("set-lite0.npz").exists()
    rest = Counted()
    assert make_features(made(Path("set")), linear(compute=rest), silent).read_bytes() == whole


def test_a_run_that_is_killed_while_it_writes_the_file_computes_no_whole_batch_again(here, whole):
    Path("program.py").write_text(PROGRAM)
    run = Forked("program.py", cwd=here, KILL_AT_END="yes")
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    rest = Counted()
    assert make_features(made(Path("set")), linear(compute=rest), silent).read_bytes() == whole
    assert rest.calls == [10]
    assert sorted(map(str, Path().iterdir())) == ["program.py", "set-lite0.npz"]


def test_rows_that_a_run_left_which_was_killed_at_its_end_are_removed(tmp_path, whole):
    (tmp_path / "set-lite0.npz").write_bytes(whole)
    (tmp_path / ".set-lite0.npz.rows.partial").write_bytes(b"rows")
    path = make_features(made(tmp_path / "set"), linear(compute=never), silent)
    assert list(tmp_path.iterdir()) == [path]


# Where it lies


def test_features_of_a_folder_in_which_nothing_can_be_written_are_kept_in_the_users_cache(
    tmp_path, monkeypatch, as_any_user
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = tmp_path / "archive"
    folder.mkdir(mode=0o555)
    path = make_features(made(folder / "set"), linear(), silent)
    assert path.parent == tmp_path / "xdg" / "vqgpt" / "features"
    assert not list(folder.iterdir())
    assert (read_features(path).values.numpy() == expected()).all()
    assert make_features(made(folder / "set"), linear(compute=never), silent) == path
    others = make_features(replace(made(folder / "set"), sha256="1" * 64), linear(), silent)
    assert others != path
    assert make_features(made(folder / "set"), linear(compute=never), silent) == path


def test_features_of_images_beside_which_nothing_is_kept(here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "xdg"))
    assert make_features(made(None), linear(), silent).parent == here / "xdg" / "vqgpt" / "features"


def test_two_networks_have_a_file_each(tmp_path):
    paths = [make_features(made(tmp_path / "set"), linear(kind=kind), silent) for kind in ("lite0", "inception")]
    assert [path.name for path in paths] == ["set-lite0.npz", "set-inception.npz"]
    assert make_features(made(tmp_path / "set"), linear(compute=never), silent) == paths[0]


# Several processes


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_make_the_same_bytes_and_continue_what_is_there(here, whole, ranks):
    Path("program.py").write_text(PROGRAM)
    result = run_ranks(ranks, "program.py")
    assert result.returncode == 0, result.stderr
    assert Path("set-lite0.npz").read_bytes() == whole
    assert run_ranks(ranks, "program.py").returncode == 0  # which finds the file
    Path("set-lite0.npz").unlink()

    with pytest.raises(NonFiniteError):
        make_features(made(Path("set")), linear(compute=Counted(stop_at=4)), silent)
    result = run_ranks(ranks, "program.py")
    assert result.returncode == 0, result.stderr
    assert Path("set-lite0.npz").read_bytes() == whole
    assert sorted(map(str, Path().iterdir())) == ["program.py", "set-lite0.npz"]
