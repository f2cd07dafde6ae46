"""Published datasets among other files: strays do not count, and nobody is told to delete what came by hand."""

import shutil

import pytest

from tests.dataset_files import (
    celeba_files,
    dtd_files,
    image_bytes,
    imagenet_archives,
    places365_files,
    tar_bytes,
    tinyimagenet_files,
    write_tree,
    zip_bytes,
)
from tests.test_data import read
from vqgpt.errors import VQGPTError
from vqgpt.progress import Notice

IMAGE = image_bytes(7, "JPEG")
STRAYS = ["desktop.ini", "Thumbs.db", "Icon\r", ".DS_Store", "readme.txt", "cover.jpg", "@eaDir/a/b.jpg", "notes/a.txt"]


def celeba(suffix="csv"):
    """As Kaggle has it: the images two folders deep, the lists beside them."""
    files, _ = celeba_files(suffix)
    return {name.replace("img_align_celeba/", "img_align_celeba/" * 2): data for name, data in files.items()}


def imagenet_folders(val="{wnid}/"):
    wnids = ("n01440764", "n02102040")
    train = {f"train/{wnid}/{wnid}_{n}.JPEG": IMAGE for wnid in wnids for n in (7, 10)}
    return train | {
        f"val/{val.format(wnid=wnid)}ILSVRC2012_val_0000000{n}.JPEG": IMAGE for n, wnid in enumerate(wnids, 1)
    }


def places365_folders():
    lists, train, val = places365_files()
    return lists | {name.replace("data_256", "data_256_standard", 1): data for name, data in train.items()} | val


LAYOUTS = {  # files by name, and the folders in which strays lie
    "celeba": (celeba(), ["", "img_align_celeba/", "img_align_celeba/img_align_celeba/"]),
    "dtd": ({f"dtd/dtd/{name}": data for name, data in dtd_files().items()}, ["dtd/dtd/", "dtd/dtd/images/"]),
    "places365": (places365_folders(), ["", "data_256_standard/", "data_256_standard/a/", "val_256/"]),
    "tinyimagenet": (
        {f"tiny-imagenet-200/{name}": data for name, data in tinyimagenet_files().items()},
        [f"tiny-imagenet-200/{folder}" for folder in ("", "train/", "train/n01/", "train/n01/images/", "val/images/")],
    ),
    "imagenet": (imagenet_folders(), ["", "train/", "val/"]),
}


def facts(name, root):
    """Classes, and of each split the labels and the names of the files below the dataset's own folders."""
    found = read(name, root)
    splits = {split: (rows.labels.tolist(), list(rows.source.names)) for split, rows in found.splits.items()}
    return found.class_names, splits


@pytest.mark.parametrize("name", LAYOUTS)
def test_strays_do_not_count(tmp_path, name):
    files, places = LAYOUTS[name]
    expected = facts(name, write_tree(tmp_path / "clean", files))
    strays = {f"{place}{stray}": IMAGE for place in places for stray in STRAYS}
    assert facts(name, write_tree(tmp_path / "full", strays | files)) == expected


def test_strays_in_archives_do_not_count(tmp_path):
    strays = dict.fromkeys(["desktop.ini", "__MACOSX/a/._b.jpg", "@eaDir/a.jpg", "._a.tar"], b"x")
    files, _ = celeba_files("txt")
    images = {name: data for name, data in files.items() if name.startswith("img")}
    lists = {name: data for name, data in files.items() if name not in images}
    write_tree(tmp_path / "a", lists | {"img_align_celeba.zip": zip_bytes(strays | images)})
    assert len(read("celeba", tmp_path / "a").splits["train"]) == 3
    tiny = {f"tiny-imagenet-200/{name}": data for name, data in tinyimagenet_files().items()}
    write_tree(tmp_path / "b", {"tiny-imagenet-200.zip": zip_bytes(strays | tiny)})
    assert len(read("tinyimagenet", tmp_path / "b").splits["train"]) == 6
    packed = zip(
        ("filelist_places365-standard", "train_256_places365standard", "val_256"), places365_files(), strict=True
    )
    write_tree(tmp_path / "c", {f"{name}.tar": tar_bytes(strays | files) for name, files in packed})
    assert len(read("places365", tmp_path / "c").splits["train"]) == 4
    write_tree(tmp_path / "c", {"places365_train_standard.txt": b"unpacked too, and not used"})
    assert len(read("places365", tmp_path / "c").splits["val"]) == 3


def test_a_class_folder_of_imagenet_without_images_keeps_its_number(tmp_path):
    write_tree(tmp_path, imagenet_folders() | {"train/n01443537/.keep": b""})
    told = []
    found = read("imagenet", tmp_path, report=told.append)
    assert found.class_names == ("n01440764", "n01443537", "n02102040")
    assert Notice(text="no training image has the label 'n01443537'") in told


def test_only_folders_of_its_classes_count_in_imagenet(tmp_path):
    files = imagenet_folders()
    expected = facts("imagenet", write_tree(tmp_path / "clean", files))
    places = ["train/samples/", "val/samples/", "train/n01440764/thumbs/", "train/backup/n02102040/"]
    assert facts("imagenet", write_tree(tmp_path / "full", files | {f"{place}1.JPEG": IMAGE for place in places})) == (
        expected
    )


def test_an_empty_folder_beside_an_archive_does_not_count(tmp_path):
    faces, _ = celeba_files("txt")
    images = {name: data for name, data in faces.items() if name.startswith("img")}
    lists = {name: data for name, data in faces.items() if name not in images}
    names = ("filelist_places365-standard", "train_256_places365standard", "val_256")
    tiny = {f"tiny-imagenet-200/{name}": data for name, data in tinyimagenet_files().items()}
    archives = {
        "celeba": lists | {"img_align_celeba.zip": zip_bytes(images)},
        "imagenet": imagenet_archives(),
        "places365": {f"{n}.tar": tar_bytes(f) for n, f in zip(names, places365_files(), strict=True)},
        "tinyimagenet": {"tiny-imagenet-200.zip": zip_bytes(tiny)},
    }
    for name, files in archives.items():
        root = write_tree(tmp_path / name, files)
        for folder in ("img_align_celeba", "train", "val", "data_256_standard", "val_256", "tiny-imagenet-200"):
            (root / folder).mkdir()
        assert len(read(name, root).splits["train"])


def test_lists_of_celeba_that_an_editor_began_with_a_mark(tmp_path):
    files, _ = celeba_files("txt")
    marked = {name: b"\xef\xbb\xbf" + data if name.endswith(".txt") else data for name, data in files.items()}
    assert facts("celeba", write_tree(tmp_path / "b", marked)) == facts("celeba", write_tree(tmp_path / "a", files))


FETCHED_WHERE_MISSING = "places365_train_standard.txt"


def spoilt(name, root):
    """What can be wrong with a dataset, one after the other, in a copy of its folder each."""
    files, _ = LAYOUTS[name]
    victims = [
        [next(file for file in files if file.lower().endswith((".jpg", ".jpeg")))],
        [file for file in files if file.lower().endswith((".jpg", ".jpeg"))],
        *([file] for file in files if file.endswith((".txt", ".csv")) and file != FETCHED_WHERE_MISSING),
    ]
    for number, removed in enumerate(victims):
        for content in (None, b"", b"\xff junk\n"):
            folder = root / f"{number}{content!r}"
            write_tree(folder, files)
            for file in removed:
                (folder / file).unlink()
                if content is not None and file.endswith((".txt", ".csv")):
                    (folder / file).write_bytes(content)
            yield folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_error_advises_to_delete(tmp_path, name):
    hints = {}
    for root in spoilt(name, tmp_path):
        try:
            read(name, root)
        except VQGPTError as error:
            hints[root] = error.hint
    assert hints
    for root, hint in hints.items():
        assert "delete" not in hint
        assert f"move {root} away" not in hint
        if name in ("celeba", "imagenet"):
            assert "away" not in hint
            assert "https://" in hint or "--data-root" in hint


def test_a_dataset_that_fills_the_data_root_is_not_moved_away(tmp_path):
    write_tree(tmp_path, tinyimagenet_files())
    shutil.rmtree(tmp_path / "val/images")
    with pytest.raises(VQGPTError, match="only partly unpacked") as caught:
        read("tinyimagenet", tmp_path)
    assert "another --data-root" in caught.value.hint


def test_a_damaged_archive_that_came_by_hand_stays(tmp_path):
    archives = imagenet_archives() | {"ILSVRC2012_img_val.tar": b"<html>sign in</html>"}
    with pytest.raises(VQGPTError, match=r"img_val\.tar") as caught:
        read("imagenet", write_tree(tmp_path, archives))
    assert caught.value.hint.startswith("get it again from https://")
