"""What lies among the user's own images and is none of them is left out and reported; classes keep their numbers."""

import io
import os
import socket
import stat
import tarfile
import zipfile

import pytest

from tests.conftest import TINY_VQGAN, assert_refused, run_here
from tests.dataset_files import image_bytes, tar_bytes, write_tree, zip_bytes
from tests.test_own_images import contents, read
from vqgpt.data.file_trees import open_tree
from vqgpt.errors import InputError
from vqgpt.progress import Notice
from vqgpt.runtime.process import import_torchvision

IMAGE = image_bytes((255, 0, 0))
PETS = {f"{name}/{number}.png": IMAGE for name in ("cat", "dog") for number in (1, 2)}


def read_with_notices(root, **options):
    """The dataset, and the texts of all notices."""
    events = []
    found = read(root, events.append, **options)
    return found, [event.text for event in events if isinstance(event, Notice)]


def packed(folder, kind, files, folders=()):
    """Files and empty folders as a folder, a zip file or a tar file."""
    if kind == "folder":
        for name in folders:
            (folder / "all" / name).mkdir(parents=True)
        return write_tree(folder / "all", files)
    folder.mkdir(exist_ok=True)
    path = folder / f"all.{kind}"
    names = {f"{name}/": b"" for name in folders}
    if kind == "zip":
        path.write_bytes(zip_bytes(names | files))
        return path
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    "name",
    [
        "@eaDir/cat/1.png/SYNOPHOTO_THUMB_M.jpg",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
        "cat/deep/@EADIR/1.png",
        "RECYCLED/1.png",
        "FOUND.000/1.png",
        "cat/LOST.DIR/1.png",
        "#recycle/cat/9.png",
        "#snapshot/cat/9.png",
        "@Recycle/9.png",
        "$RECYCLE.BIN/S-1-5/$R1.png",
        "System Volume Information/9.png",
        "lost+found/#123/9.png",
        ".Trash-1000/files/9.png",
        "cat/.thumbnails/9.png",
        "__MACOSX/cat/._1.png",
        "cat/._1.png",
    ],
)
def test_folders_of_other_programs_are_left_out_and_told(tmp_path, kind, name):
    found, notices = read_with_notices(packed(tmp_path, kind, PETS | {name: IMAGE}))
    assert found.class_names == ("cat", "dog")
    assert sum(map(len, found.splits.values())) == 4
    parts = name.split("/")
    first = next(place for place in range(1, len(parts) + 1) if "/".join(parts[:place]) not in ("cat", "cat/deep"))
    (line,) = [line for line in notices if "left out" in line]
    assert line.startswith("1 file or folder is left out")
    assert line.endswith("/".join(parts[:first]) + ")")


def test_what_is_beside_the_images_and_no_image_is_not_hidden_news(tmp_path):
    strays = dict.fromkeys((".DS_Store", "cat/.DS_Store"), b"x")
    _, notices = read_with_notices(write_tree(tmp_path, PETS | strays))
    assert not any("left out" in line for line in notices)


def test_links_that_lead_nowhere_and_special_files_are_told(tmp_path):
    write_tree(tmp_path, PETS)
    for number in range(3, 19):
        os.symlink(tmp_path / "gone" / f"{number}.png", tmp_path / f"cat/{number}.png")
    os.symlink(tmp_path / "gone", tmp_path / "bird")
    os.symlink("b.png", tmp_path / "dog/a.png")
    os.symlink("a.png", tmp_path / "dog/b.png")
    os.symlink("../dog", tmp_path / "dog/inside")
    os.mkfifo(tmp_path / "dog/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
    found, notices = read_with_notices(tmp_path)
    assert sum(map(len, found.splits.values())) == 4
    nowhere, special, circle = (
        [line for line in notices if words in line]
        for words in ("lead to nothing", "neither files", "that they lie in")
    )
    assert nowhere == [line for line in nowhere if line.startswith("19 files or folders are left out")] != []
    assert str(tmp_path / "bird") in nowhere[0]
    assert special == [line for line in special if line.startswith("2 ") and "dog/pipe.png" in line] != []
    assert circle == [line for line in circle if line.startswith("1 ") and "dog/inside" in line] != []


def test_links_inside_tar_files_are_followed_or_told(tmp_path):
    buffer = io.BytesIO(tar_bytes(PETS))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for name, kind, target in (
            ("cat/3.png", tarfile.LNKTYPE, "cat/1.png"),
            ("cat/4.png", tarfile.SYMTYPE, "../dog/./2.png"),
            ("cat/5.png", tarfile.SYMTYPE, "4.png"),
            ("cat/6.png", tarfile.SYMTYPE, "../gone.png"),
            ("cat/7.png", tarfile.SYMTYPE, "7.png"),
            ("cat/8.png", tarfile.SYMTYPE, "/cat/1.png"),
            ("cat/9.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    found, notices = read_with_notices(tmp_path / "a.tar")
    assert sum(map(len, found.splits.values())) == 7
    assert all(open_tree(tmp_path / "a.tar").read(f"cat/{number}.png") == IMAGE for number in (3, 4, 5))
    assert any(line.startswith("3 files or folders") and "a.tar/cat/6.png" in line for line in notices)
    assert any(line.startswith("1 file or folder") and "a.tar/cat/9.png" in line for line in notices)


def test_links_inside_zip_files_are_followed_or_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in (PETS | {"dog/.3.png": IMAGE}).items():
            archive.writestr(name, data)
        for name, target in (
            ("cat/3.png", "../dog/1.png"),
            ("cat/4.png", "3.png"),
            ("cat/5.png", "../dog/.3.png"),
            ("cat/6.png", "gone.png"),
            ("cat/7.png", "/cat/1.png"),
            ("cat/8.png", "x" * 5000),
            ("cat/9.png", b"\xff"),
            ("cow", "dog"),
        ):
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
    found, notices = read_with_notices(tmp_path / "a.zip")
    assert sum(map(len, found.splits.values())) == 7
    assert found.class_names == ("cat", "dog")
    assert any(line.startswith("5 files or folders are left out: links that lead to no file") for line in notices)


def test_an_encrypted_zip_file_is_called_so(tmp_path):
    data = bytearray(zip_bytes({"cat/1.png": IMAGE}))
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.zip is encrypted"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_an_empty_class_folder_keeps_its_number(tmp_path, kind, split):
    files = {f"{split}{name}": data for name, data in PETS.items()} | {f"{split}ant/notes.txt": b"x"}
    root = packed(tmp_path, kind, files, [f"{split}bird"])
    found, notices = read_with_notices(root)
    assert found.class_names == ("ant", "bird", "cat", "dog")
    assert any(line.startswith("2 folders have no images") and line.endswith(f"{split}ant)") for line in notices)
    assert "no training image has the label 'ant', 'bird'" in notices
    if kind == "folder":
        images = import_torchvision("datasets").ImageFolder(root / split, allow_empty=True)
        assert tuple(images.classes) == found.class_names


def test_an_empty_folder_is_no_class_of_flat_images_and_no_wrapper(tmp_path):
    flat, notices = read_with_notices(
        packed(tmp_path / "a", "folder", {f"{number}.png": IMAGE for number in range(3)}, ["empty"])
    )
    assert flat.class_names == ("all",)
    assert any("1 folder has no images" in line for line in notices)
    nested, _ = read_with_notices(
        packed(tmp_path / "b", "folder", {"cat/a/1.png": IMAGE, "cat/b/1.png": IMAGE}, ["dog"])
    )
    assert nested.class_names == ("cat", "dog")
    wrapped, notices = read_with_notices(
        packed(tmp_path / "c", "zip", {f"pets/{name}": IMAGE for name in PETS} | {"doc/a.txt": b""})
    )
    assert wrapped.class_names == ("cat", "dog")
    assert any("all.zip/doc" in line for line in notices)


def test_classes_that_no_training_image_has_are_told(tmp_path):
    files = {f"train/cat/{number}.png": IMAGE for number in range(3)} | {
        "val/bird/1.png": IMAGE,
        "val/cat/1.png": IMAGE,
    }
    found, notices = read_with_notices(write_tree(tmp_path / "a", files))
    assert found.class_names == ("bird", "cat")
    assert "no training image has the label 'bird'" in notices
    files = {f"cat/{number}.png": IMAGE for number in range(200)} | {"dog/1.png": b""}
    found, notices = read_with_notices(write_tree(tmp_path / "b", files), on_error="skip")
    assert found.class_names == ("cat", "dog")
    assert "no training image has the label 'dog'" in notices
    _, notices = read_with_notices(
        write_tree(tmp_path / "c", {f"{name}/1.png": IMAGE for name in "abcd"}), val_split=0.5
    )
    assert "no training image has the label 'b', 'd'" in notices


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_names_are_the_same_however_their_letters_are_stored(tmp_path, kind):
    apart, together = "cafe\u0301", "caf\u00e9"
    files = {f"train/{apart}/1.png": IMAGE, "train/tea/1.png": IMAGE, f"val/{together}/1.png": IMAGE}
    found = read(packed(tmp_path, kind, files))
    assert found.class_names == (together, "tea")
    assert contents(found)["val"] == [(together, f"val/{together}/1.png")]
    found.splits["train"].image(0)
    both = {f"{apart}/1.png": IMAGE, f"{together}/2.png": IMAGE}
    with pytest.raises(InputError, match=r"cafe\\u0301.*caf\\xe9"):
        read(packed(tmp_path / "both", kind, both))


def test_classes_are_in_the_order_of_image_folder(tmp_path):
    names = ["cafe\u0301", "caff", "Zoo", "10", "2", "\u00e9", "e\u0300"]
    root = write_tree(tmp_path, {f"{name}/{number}.png": IMAGE for name in names for number in (1, 2)})
    images = import_torchvision("datasets").ImageFolder(root)
    found = read(root, val_split=0.5)
    train = found.splits["train"]
    ours = {train.source.names[index]: label for label, index in zip(train.labels, train.source_index, strict=True)}
    assert ours.items() <= {os.path.relpath(path, root): label for path, label in images.samples}.items()
    assert len(ours) == len(names)


def test_names_inside_zip_files_that_lead_elsewhere(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes(PETS | {"../up.png": IMAGE, "./cat//3.png": IMAGE, "/cat/4.png": IMAGE}))
    tree = open_tree(tmp_path / "a.zip")
    assert list(tree.sizes) == [*(f"cat/{n}.png" for n in range(1, 5)), "dog/1.png", "dog/2.png"]
    assert list(tree.left_out) == [".."]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("cat\\", b"")
        archive.writestr("dog\\1.png", IMAGE)
    assert open_tree(tmp_path / "b.zip").folders == {"cat", "dog"}


def test_commands_tell_what_they_leave_out(here):
    write_tree(here / "pets", PETS | {"@eaDir/1.png": IMAGE})
    os.symlink("gone.png", here / "pets/cat/3.png")
    common = ["--dataset", "folder", "--data-root", "pets"]
    for command in (["vqgan", "train", *common, *TINY_VQGAN], ["tokenize", *common]):
        outcome = run_here(*command)
        assert outcome.code == 0, outcome.err
        text = " ".join(outcome.err.split())
        assert "pets/@eaDir" in text
        assert "pets/cat/3.png" in text
    os.rename(here / "pets/dog", here / "pets/cafe\u0301")
    write_tree(here / "pets/caf\u00e9", {"1.png": IMAGE})
    assert_refused(run_here("tokenize", *common, "--cache", "x.zarr", "-q"), 3, "two folders", "rename one")
