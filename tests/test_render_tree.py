"""Class trees of pictures: torchvision's ImageFolder finds in them the labels of the cache."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import assert_refused, run_here
from tests.dataset_files import image_bytes
from tests.test_own_images import read
from tests.test_render import DIGITS, VQGAN, small_shards
from vqgpt.data.folder import WITHOUT_CLASS, class_folders
from vqgpt.runtime.process import import_torchvision
from vqgpt.tokens import TokenCache

NAMES = st.one_of(
    st.text(max_size=4),
    st.text("aA-_ .é\u0301", max_size=3),
    st.integers(0, 20).map(str),
    st.sampled_from(["train", "test", "zebra", "without-class", "lost+found", "__pycache__", "x" * 300, "猫" * 100]),
)


@given(st.lists(NAMES, min_size=1, max_size=12))
@example([str(number) for number in range(12)])
@example(["cat", "Cat", "zebra"])
@settings(max_examples=200)
def test_folders_are_different_and_in_the_order_of_their_classes(names):
    folders = class_folders(names)
    assert [*folders, WITHOUT_CLASS] == sorted([*folders, WITHOUT_CLASS])
    assert len({folder.casefold() for folder in [*folders, WITHOUT_CLASS]}) == len(names) + 1
    for folder in folders:
        assert Path(folder).name == folder
        assert folder not in ("", ".", "..")
        assert folder.isprintable()
        assert len(folder.encode()) < 255


@given(st.lists(NAMES, min_size=1, max_size=12))
@example([str(number) for number in range(12)])
@example(["train", "test"])
@settings(max_examples=25, deadline=None)
def test_image_folder_and_we_find_the_numbers_of_all_classes(names):
    with tempfile.TemporaryDirectory() as path:
        for number, folder in enumerate([*class_folders(names), WITHOUT_CLASS]):
            (Path(path) / folder).mkdir()
            for row in (1, 2):
                (Path(path) / folder / f"{row}{number:05d}.png").write_bytes(image_bytes(number, mode="L"))
        images = import_torchvision("datasets").ImageFolder(path)
        assert all(int(Path(file).stem[1:]) == label for file, label in images.samples)
        ours = read(Path(path), val_split=0.5)
        for split in ours.splits.values():
            for label, index in zip(split.labels, split.source_index, strict=True):
                assert int(Path(split.source.names[index]).stem[1:]) == label


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        ([*"abcdefghij"], "b"),
        ([str(number) for number in range(11, 1, -1)], "1-10"),
        ([*"abcdefghi", "zoo"], "1-b"),
        (["हिन्दी", *"bcdefghi", "cafe\u0301"], "1-b"),
    ],
)
def test_a_tree_is_what_image_folder_reads_and_tells_its_classes(pipeline, names, folder):
    small_shards("s.zarr", 64, class_names=tuple(names))
    outcome = run_here("render", "s.zarr", "--format", "tree", "--out", "tree")
    assert outcome.code == 0, outcome.err
    labels = TokenCache(Path("s.zarr")).read_split("train").labels
    images = import_torchvision("datasets").ImageFolder("tree")
    assert {int(Path(file).stem): label for file, label in images.samples} == dict(enumerate(labels.tolist()))
    classes = json.loads(Path("tree/about.json").read_text())["classes"]
    assert sorted(classes) == images.classes
    assert {facts["number"]: facts["name"] for facts in classes.values()} == dict(enumerate(names))
    assert classes[folder] == {"number": 1, "name": names[1]}


def test_marks_of_letters_stay():
    assert class_folders(["cafe\u0301", "tea"]) == ["caf\u00e9", "tea"]
    assert class_folders(["हिन्दी", "cafe\u0301"]) == ["0-हिन्दी", "1-caf\u00e9"]


def test_a_class_without_pictures_keeps_the_numbers_of_the_others(pipeline):
    labels = TokenCache(Path(DIGITS)).read_split("train").labels
    stop = 3
    absent = [number for number in range(10) if number not in labels[:stop]]
    outcome = run_here("render", DIGITS, "--format", "tree", "--out", "tree", "--rows", f":{stop}")
    assert "no rendered row is of" in outcome.err
    assert repr(str(absent[0])) in outcome.err
    images = import_torchvision("datasets").ImageFolder("tree", allow_empty=True)
    assert [label for _, label in sorted(images.samples, key=lambda pair: Path(pair[0]).name)] == labels[:stop].tolist()
    with pytest.raises(FileNotFoundError):
        import_torchvision("datasets").ImageFolder("tree")
    assert "no row" not in run_here("render", DIGITS, "--format", "tree", "--out", "whole").err
    words = ["tokenize", "--dataset", "folder", "--data-root", "tree", "--checkpoint-vae", VQGAN]
    assert run_here(*words, "--cache", "again.zarr").code == 0
    assert TokenCache(Path("again.zarr")).description.class_names == tuple(map(str, range(10)))


def test_a_rendering_of_another_kind_is_not_continued(pipeline):
    assert run_here("render", DIGITS, "--format", "tree", "--out", "tree", "--limit", "9").code == 0
    about = json.loads(Path("tree/about.json").read_text())
    del about["classes"]
    Path("tree/about.json").unlink()
    Path("tree/.unfinished.json").write_text(json.dumps(about))
    words = ["render", DIGITS, "--format", "tree", "--out", "tree", "--limit", "9", "-q"]
    assert_refused(run_here(*words), 2, "tree exists", "--overwrite")
