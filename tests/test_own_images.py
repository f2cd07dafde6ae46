"""The user's own images: which class and split each is in, what is left out, and what is refused."""

import io
import itertools
import os
import zipfile

import numpy as np
import pytest

from tests.conftest import TINY_VQGAN, assert_refused, files_of, run_here
from tests.dataset_files import image_bytes, tar_bytes, write_tree, zip_bytes
from tests.test_image_files import BROKEN
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.options.definition import resolve
from vqgpt.progress import Notice, silent
from vqgpt.tokens import TokenCache

WHITE = (255, 255, 255)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def read(root, report=silent, **options):
    return read_dataset(find_dataset("folder"), resolve(ImageOptions, {"data_root": root, **options}), 16, report)


def contents(dataset):
    """Of each split, (class name, name of the file) of each image."""
    return {
        name: [
            (dataset.class_names[label] if label >= 0 else None, split.source.names[index])
            for label, index in zip(split.labels, split.source_index, strict=True)
        ]
        for name, split in dataset.splits.items()
    }


def test_class_folders_are_sorted_and_deep_files_belong_to_them(tmp_path):
    image = image_bytes(RED)
    write_tree(tmp_path, {"dog/1.png": image, "cat/b/2.PNG": image, "cat/a.jpeg": image, "dog/notes.txt": b"x"})
    events = []
    found = read(tmp_path, events.append, val_split=0.5)
    assert found.class_names == ("cat", "dog")
    assert sorted(itertools.chain.from_iterable(contents(found).values())) == [
        ("cat", "cat/a.jpeg"),
        ("cat", "cat/b/2.PNG"),
        ("dog", "dog/1.png"),
    ]
    assert any(".txt" in event.text for event in events if isinstance(event, Notice))


@pytest.mark.parametrize("packed", [False, True])
def test_one_folder_around_everything_does_not_count(tmp_path, packed):
    files = {f"pets/{name}/{n}.png": image_bytes(RED) for name in ("cat", "dog") for n in (1, 2)}
    files["cover.jpg"] = image_bytes(RED, "JPEG")
    (tmp_path / "pets.zip").write_bytes(zip_bytes(files))
    events = []
    found = read(tmp_path / "pets.zip" if packed else write_tree(tmp_path / "all", files), events.append)
    assert found.class_names == ("cat", "dog")
    assert any("cover.jpg" in event.text for event in events if isinstance(event, Notice))
    assert Notice(text="images: 4 in train; 2 classes (cat, dog)") in events


def test_names_that_windows_wrote_into_zips(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes({f"{name}\\1.png": image_bytes(RED) for name in ("./cat", "./dog")}))
    assert read(tmp_path / "a.zip").class_names == ("cat", "dog")


def test_names_that_are_no_text_are_escaped(here):
    folder = write_tree(here / "photos", {f"cat/{n}.png": image_bytes(RED) for n in range(12)})
    os.rename(os.fsencode(folder / "cat/0.png"), os.fsencode(folder) + b"/cat/\xff\n.png")
    os.rename(os.fsencode(folder / "cat"), os.fsencode(folder) + b"/\xfe")
    common = ["--dataset", "folder", "--data-root", folder]
    assert run_here("vqgan", "train", *common, *TINY_VQGAN).code == 0
    assert run_here("tokenize", *common).code == 0
    assert TokenCache(here / "cache/folder.zarr").description.class_names == ("\\udcfe",)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    assert_refused(run_here("tokenize", *common), 3, "is broken", "\\udcfe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path):
    write_tree(tmp_path, {"cat/1.png": image_bytes(RED), "dog/1.png": image_bytes(RED)})
    (tmp_path / "dog").chmod(0)
    with pytest.raises(PermissionError):
        read(tmp_path)
    (tmp_path / "dog").chmod(0o700)


def test_a_flat_folder_is_one_class_and_a_tenth_is_held_out(tmp_path):
    write_tree(tmp_path / "kites", {f"{number:02d}.png": image_bytes(RED) for number in range(20)})
    found = read(tmp_path / "kites")
    assert found.class_names == ("kites",)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 18, "val": 2}


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "validation"), ("train", "test")])
def test_train_and_val_folders_are_splits(tmp_path, names):
    train, held_out = names
    image = image_bytes(RED)
    files = {f"{train}/a/1.png": image, f"{train}/b/1.png": image, f"{held_out}/b/9.png": image, "extra/1.png": image}
    events = []
    found = contents(read(write_tree(tmp_path, files), events.append))
    assert found["train"] == [("a", f"{train}/a/1.png"), ("b", f"{train}/b/1.png")]
    assert list(found.values())[1] == [("b", f"{held_out}/b/9.png")]
    assert any("extra/1.png" in event.text for event in events if isinstance(event, Notice))


def test_a_class_may_be_called_train_and_a_test_folder_may_be_flat(tmp_path):
    image = image_bytes(RED)
    vehicles = read(write_tree(tmp_path / "a", {f"{name}/{n}.png": image for name in ("train", "car") for n in (1, 2)}))
    assert vehicles.class_names == ("car", "train")
    files = {"train/cat/1.png": image, "val/cat/2.png": image, "test/3.png": image}
    assert contents(read(write_tree(tmp_path / "b", files)))["test"] == [(None, "test/3.png")]
    with pytest.raises(InputError, match="are not in class folders"):
        read(write_tree(tmp_path / "d", {"train/1.png": image, "val/cat/2.png": image}))
    with pytest.raises(InputError, match="no train"):
        read(write_tree(tmp_path / "c", {"val/cat/1.png": image, "test/cat/1.png": image}))


def test_hidden_folders_and_files_do_not_exist(tmp_path):
    image = image_bytes(RED)
    names = [".ipynb_checkpoints/1.png", "cat/.2.png", "cat/.git/3.png", "__MACOSX/cat/4.png"]
    write_tree(tmp_path, dict.fromkeys([*names, "cat/5.png", "cat/6.png"], image))
    found = read(tmp_path)
    assert found.class_names == ("cat",)
    assert sum(map(len, found.splits.values())) == 2


def test_links_are_followed_and_loops_end(tmp_path):
    write_tree(tmp_path / "elsewhere", {"1.png": image_bytes(RED), "2.png": image_bytes(RED)})
    (tmp_path / "images").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "images/cat")
    os.symlink(tmp_path / "elsewhere", tmp_path / "images/dog")
    os.symlink(tmp_path / "images", tmp_path / "elsewhere/loop")
    found = read(tmp_path / "images")
    assert found.class_names == ("cat", "dog")
    assert sum(map(len, found.splits.values())) == 4


@pytest.mark.parametrize("pack", [zip_bytes, tar_bytes])
@pytest.mark.parametrize("wrapper", ["", "pets/"])
def test_archives_of_class_folders_are_read_in_place(tmp_path, pack, wrapper):
    files = {f"{wrapper}{name}/{n}.png": image_bytes((n, 0, 0)) for name in ("cat", "dog") for n in (1, 2)}
    archive = tmp_path / ("pets.zip" if pack is zip_bytes else "pets.tar")
    archive.write_bytes(pack(files | {f"{wrapper}__MACOSX/cat/._1.png": b"x"}))
    found = read(archive, val_split=0.5)
    assert found.class_names == ("cat", "dog")
    train = found.splits["train"]
    levels = [train.image(row).getpixel((0, 0))[0] for row in range(2)]
    assert levels == [int(name.split("/")[-1][0]) for name in (train.source.names[i] for i in train.source_index)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name]


def test_hostile_archives_are_refused_or_harmless(tmp_path):
    outside = zip_bytes({"../../evil/1.png": image_bytes(RED), "/abs/2.png": image_bytes(RED)})
    (tmp_path / "a.zip").write_bytes(outside)
    with pytest.raises(InputError):
        read(tmp_path / "a.zip")
    assert not (tmp_path.parent / "evil").exists()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(2**30 + 1))
    (tmp_path / "b.zip").write_bytes(bomb.getvalue())
    with pytest.raises(InputError, match=r"1.png is broken .*1\.1 GB"):
        read(tmp_path / "b.zip")
    good = zip_bytes({"cat/1.png": image_bytes(RED), "cat/2.png": image_bytes(RED)})
    (tmp_path / "c.zip").write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        read(tmp_path / "c.zip")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("cat/1.png", image_bytes(RED, size=(90, 90)))
            archive.writestr("cat/2.png", image_bytes(RED))
        damaged = bytearray(packed.getvalue())
        damaged[50:90] = bytes(40)
        (tmp_path / "d.zip").write_bytes(damaged)
        with pytest.raises(InputError, match="1.png is broken"):
            read(tmp_path / "d.zip")


def test_what_cannot_be_a_folder_of_images_is_named(tmp_path):
    with pytest.raises(MissingDataError, match="no-such-folder"):
        read(tmp_path / "no-such-folder")
    with pytest.raises(InputError, match="no images"):
        read(write_tree(tmp_path / "a", {"notes.txt": b"x"}))
    with pytest.raises(UsageError, match="needs a folder"):
        read(None)


def folder_of(tmp_path, good, broken, content=BROKEN["truncated"]):
    files = {f"cat/{number:03d}.jpg": image_bytes((number, 0, 0), "JPEG") for number in range(good)}
    return write_tree(tmp_path / "photos", files | {f"dog/bad{number}.jpg": content for number in range(broken)})


def test_a_broken_image_stops_with_its_path(here):
    folder = folder_of(here, 30, 1)
    outcome = run_here("vqgan", "train", "--dataset", "folder", "--data-root", folder, *TINY_VQGAN)
    assert_refused(outcome, 3, "photos/dog/bad0.jpg", "--on-error skip")


@pytest.mark.parametrize("more", [(), ("--on-error", "skip")])
def test_an_image_that_may_not_be_read_is_not_called_broken(here, as_any_user, more):
    folder = folder_of(here, 120, 0)
    (folder / "cat/003.jpg").chmod(0)
    outcome = run_here("vqgan", "train", "--dataset", "folder", "--data-root", folder, *TINY_VQGAN, *more)
    assert_refused(outcome, 3, "photos/cat/003.jpg: Permission denied", "check the path and its permissions")


def test_skipping_leaves_broken_images_out_and_lists_them(here):
    folder = folder_of(here, 120, 1)
    common = ["--dataset", "folder", "--data-root", folder, "--on-error", "skip"]
    assert run_here("vqgan", "train", *common, *TINY_VQGAN).code == 0
    outcome = run_here("tokenize", *common, "--num-workers", "3")
    assert outcome.code == 0, outcome.err
    assert "1 of 121 images is broken and left out: dog/bad0.jpg" in outcome.err
    cache = TokenCache(here / "cache/folder.zarr")
    assert cache.description.skipped == ("dog/bad0.jpg",)
    assert cache.description.class_names == ("cat", "dog")
    assert run_here("cache", "info", "cache/folder.zarr", "--json").json["skipped"] == ["dog/bad0.jpg"]
    rows = [cache.read_split(split).source_index for split in ("train", "val")]
    assert sorted(np.concatenate(rows)) == list(range(120))
    write_tree(folder, {"dog/bad1.jpg": b""})
    assert_refused(run_here("tokenize", *common), 3, "2 of 122", "bad0.jpg", "bad1.jpg")


def test_any_change_of_the_folder_is_noticed(here):
    folder = folder_of(here, 30, 0)
    common = ["--dataset", "folder", "--data-root", folder]
    assert run_here("vqgan", "train", *common, *TINY_VQGAN).code == 0
    assert run_here("tokenize", *common).code == 0
    before = files_of(here / "cache")
    assert "nothing to do" in run_here("tokenize", *common).err
    one = folder / "cat/000.jpg"
    content = bytearray(one.read_bytes())
    content[-10] ^= 1
    one.write_bytes(content)
    assert_refused(run_here("tokenize", *common), 3, "source_sha256")
    assert files_of(here / "cache") == before
    one.unlink()
    assert_refused(run_here("tokenize", *common), 3, "source_sha256")


def test_a_folder_without_colors_makes_a_grey_vqgan_unless_told_otherwise(here):
    write_tree(here / "xrays", {f"a/{n}.png": image_bytes(n, mode="L", size=(20, 30)) for n in range(12)})
    common = ["--dataset", "folder", "--data-root", "xrays"]
    for asked, channels in (([], 1), (["--image-channels", "3"], 3)):
        out = f"{channels}.pt"
        assert run_here("vqgan", "train", *common, *asked, *TINY_VQGAN, "--out", out).code == 0
        assert run_here("vqgan", "info", out, "--json").json["image_channels"] == channels
        cache = f"{channels}.zarr"
        assert run_here("tokenize", *common, "--checkpoint-vae", out, "--cache", cache).code == 0
        assert TokenCache(here / cache).description.image_channels == channels
