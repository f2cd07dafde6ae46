"""Where results go: through links, which stay; one run at a time; and told first where nothing can be written."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import assert_refused, description, files_of, run_here, write_cache
from tests.dataset_files import tar_bytes
from tests.disk_operations import before_each_operation
from tests.peer_checkpoints import taming_state
from vqgpt.data.downloads import ensure_files, unpack
from vqgpt.data.table import RemoteFile, find_dataset
from vqgpt.errors import InputError, MissingDataError
from vqgpt.progress import silent
from vqgpt.storage.files import check_writable, folder_atomically, remove, write_atomically
from vqgpt.storage.write_lock import WriteLock
from vqgpt.tokens import CacheWriter

DIGITS, SAMPLES = "cache/digits.zarr", "runs/digits/samples.zarr"
RESULTS = {
    "tokenize": (["tokenize", "--dataset", "digits", "--limit", "20", "--cache"], "x.zarr"),
    "sample": (["sample", "--num-samples", "4", "--out"], "x.zarr"),
    "render a sheet": (["render", SAMPLES, "--out"], "x.png"),
    "render an npz": (["render", SAMPLES, "--out"], "x.npz"),
    "render a folder": (["render", SAMPLES, "--out"], "x"),
    "render a tree": (["render", SAMPLES, "--format", "tree", "--out"], "x"),
    "score": (["score", SAMPLES, "--out"], "x.csv"),
    "export to transformers": (["export"], "x"),
    "export to safetensors": (["export", "--to", "safetensors"], "x.safetensors"),
    "cache export to a folder": (["cache", "export", SAMPLES, "--out"], "x"),
    "cache export to a file": (["cache", "export", SAMPLES, "--format", "npz", "--out"], "x.npz"),
    "cache preview": (["cache", "preview", SAMPLES, "--num-images", "2", "--out"], "x.png"),
    "vqgan import": (["vqgan", "import", "taming.pt", "--out"], "x.pt"),
    "vqgan reconstruct": (["vqgan", "reconstruct", "--dataset", "digits", "--out"], "x.png"),
}


@pytest.fixture(params=RESULTS)
def writes(request, pipeline):
    """A command without the path of its result, which the test gives, and how that is called."""
    words, name = RESULTS[request.param]
    if "taming.pt" in words:
        torch.save(taming_state(), "taming.pt")
    for folder in ("disk", "links"):
        Path(folder).mkdir()
    return words, name


def there(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_link_stays_and_what_it_leads_to_is_written(writes):
    words, name = writes
    link, target = Path("links", name), Path("disk", name)
    link.symlink_to(Path("../disk", name))  # to nothing yet
    picture = ["x.png"] if words[0] == "sample" else []  # beside what was given, not beside what that leads to
    first = run_here(*words, link)
    assert first.code == 0, first.err
    assert link.is_symlink()
    assert (there("links"), there("disk")) == (sorted([name, *picture]), [name])
    files = {path.relative_to(target) for path in target.rglob("*")}
    assert run_here(*words, link, "--overwrite").code == 0
    assert link.is_symlink()
    assert (there("links"), there("disk")) == (sorted([name, *picture]), [name])
    assert {path.relative_to(target) for path in target.rglob("*")} == files
    with WriteLock(target.resolve()) as lock:
        lock.take()
        assert_refused(run_here(*words, link, "--overwrite", "-q"), 3, f"{link} is being written by process")
        assert_refused(run_here(*words, target, "--overwrite", "-q"), 3, f"{target} is being written by process")


def test_links_that_lead_nowhere_are_refused(writes):
    words, name = writes
    Path("links", name).symlink_to(name)
    assert_refused(run_here(*words, f"links/{name}", "-q"), 3, f"links/{name} is a link that leads in a circle")
    Path("disk", name).symlink_to("/nowhere/mounted/x")
    assert_refused(run_here(*words, f"disk/{name}", "-q"), 4, f"disk/{name} is a link to /nowhere/mounted/x", "mount")
    Path("folder").symlink_to("/nowhere/mounted")
    assert_refused(run_here(*words, f"folder/{name}", "-q"), 4, "folder is a link to /nowhere/mounted", "mount")
    assert (there("links"), there("disk")) == ([name], [name])


def test_a_link_to_what_is_no_file_is_refused(pipeline):
    Path("null.png").symlink_to(os.devnull)
    assert_refused(run_here("render", SAMPLES, "--out", "null.png", "--overwrite", "-q"), 2, "null.png is no file")
    with pytest.raises(InputError, match=r"null\.png is not a file"):
        write_atomically(Path("null.png"), b"x")
    assert not Path(os.devnull).is_file()


@pytest.fixture(params=["train", "train/codes", "train/codes/c/1/0/0/0", "zarr.json"])
def linked_inside(request, here):
    """A cache, a file or folder in which lies elsewhere."""
    write_cache(Path("a.zarr"), description())
    inner = Path("a.zarr", request.param)
    Path("mine").mkdir()
    inner.rename(Path("mine", inner.name))
    inner.symlink_to(Path("mine", inner.name).absolute())
    return request.param


def test_nothing_is_deleted_or_written_through_a_link_inside_a_cache(here, linked_inside):
    before = files_of(here)
    assert_refused(run_here("cache", "rm", "a.zarr", "--yes", "-q"), 3, linked_inside)
    for changes, overwrite in (({}, False), ({"precision": "bf16"}, True)):
        with pytest.raises(InputError, match=linked_inside):
            write_again(Path("a.zarr"), description(**changes), overwrite)
    assert files_of(here) == before
    assert not list(Path().rglob("*.partial"))


def test_a_cache_that_is_linked_inside_is_read(here, linked_inside):
    assert run_here("cache", "info", "a.zarr").code == 0


def write_again(path, what, overwrite):
    CacheWriter.create_or_resume(path, what, np.zeros((16, 2), np.float32), {}, overwrite)


@pytest.mark.parametrize(("words", "inner"), [(["--format", "tree"], "0"), ([], "000003.png")])
def test_nothing_is_deleted_or_written_through_a_link_in_a_folder_of_pictures(pipeline, words, inner):
    command = ["render", DIGITS, "--limit", "20", *words, "--out", "x"]
    assert run_here(*command).code == 0
    Path("x", inner).rename("mine")
    Path("x", inner).symlink_to(Path("mine").absolute())
    before = files_of(pipeline)
    assert_refused(run_here(*command, "--overwrite", "-q"), 3, f"x/{inner} is a link")
    assert files_of(pipeline) == before
    Path("x/about.json").rename("x/.unfinished.json")
    before = files_of(pipeline)
    assert_refused(run_here(*command, "-q"), 3, f"x/{inner} is a link")
    assert files_of(pipeline) == before


@pytest.mark.parametrize(
    ("words", "inner"), [(["export"], "config.json"), (["cache", "export", DIGITS, "--out"], "codebook.npy")]
)
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_an_export_does_not_replace_a_folder_that_holds_more_than_its_files(pipeline, words, inner, kind):
    assert run_here(*words, "x").code == 0
    Path("x", inner).rename("mine")
    if kind == "link":
        Path("x", inner).symlink_to(Path("mine").absolute())
    else:
        Path("x", inner).mkdir()
        Path("x", inner, "thesis.tex").write_text("years of work")
    before = files_of(pipeline)
    assert_refused(run_here(*words, "x", "--overwrite", "-q"), 3, f"x holds {inner}")
    assert files_of(pipeline) == before


def stop_while_filling(folder):
    with folder_atomically(folder) as new:
        (new / "new").write_text("half")
        raise KeyboardInterrupt


def test_a_folder_is_replaced_in_one_step_or_not_at_all(here):
    Path("x").mkdir()
    Path("x/old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        stop_while_filling(Path("x"))
    assert [str(path) for path in Path().rglob("*")] == ["x", "x/old"]
    Path("x").rename(".x.old")  # as a kill between the two renames leaves it
    with pytest.raises(KeyboardInterrupt):
        stop_while_filling(Path("x"))
    assert Path("x/old").read_text() == "old"
    with folder_atomically(Path("x")) as new:
        (new / "new").write_text("new")
    assert [str(path) for path in Path().rglob("*")] == ["x", "x/new"]


def replace_folder():
    with folder_atomically(Path("x")) as folder:
        write_atomically(folder / "file", b"new")


def test_a_full_disk_at_any_operation_leaves_the_old_folder_or_the_new_one(here):
    count = 0

    def act(operation):
        nonlocal count
        count += 1
        if count == fail_at and operation[0] in ("mkdir", "open", "write", "fsync", "replace"):
            raise OSError(errno.ENOSPC, "No space left on device", str(operation[1]))

    for fail_at in range(1, 14):
        Path("x").mkdir()
        Path("x/file").write_bytes(b"old")
        with before_each_operation(act), suppress(OSError):
            replace_folder()
        assert Path("x/file").read_bytes() in (b"old", b"new")
        assert not list(here.rglob("*.partial")), fail_at
        replace_folder()
        assert there(here) == ["x"]
        remove(Path("x"))
        assert count >= fail_at
        count = 0


def test_empty_folders_that_a_killed_removal_left_do_not_stay(here):
    for split in ("train", "test", "val"):
        Path("a.zarr", split, "codes/c/0").mkdir(parents=True)
    write_cache(Path("a.zarr"), description())
    assert there("a.zarr") == ["codebook", "test", "train", "zarr.json"]


@pytest.mark.parametrize(("before", "known"), [(None, True), ([], True), (["old"], False)])
def test_what_a_run_makes_where_nothing_was_is_known_by_its_lock(here, before, known):
    if before is not None:
        Path("x").mkdir()
        for name in before:
            Path("x", name).write_text("mine")
    with WriteLock(Path("x"), work="ours") as lock:
        lock.take()
        with folder_atomically(Path("x")) as folder:
            (folder / "new").write_text("new")
        assert WriteLock(Path("x"), work="ours").makes_what_is_there() == known
        assert not WriteLock(Path("x"), work="theirs").makes_what_is_there()


def test_a_folder_where_a_disk_is_mounted_is_not_replaced():
    with pytest.raises(InputError, match="/proc is where a disk is mounted"):
        stop_while_filling(Path("/proc"))


def test_the_current_folder_is_not_replaced_by_another_of_its_name(pipeline, monkeypatch):
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    outcome = run_here("cache", "export", f"../{DIGITS}", "--out", ".", "-q")
    assert_refused(outcome, 3, ". is the current folder", "a folder in it")


def test_what_is_unpacked_below_a_linked_data_root_lies_where_the_link_leads(here):
    Path("disk/archives").mkdir(parents=True)
    Path("data").symlink_to("disk")
    Path("disk/folder").symlink_to("archives/unpacked")
    Path("data/a.tar.gz").write_bytes(tar_bytes({"folder/x": b"x"}, "w:gz"))
    unpack(RemoteFile(path="a.tar.gz", url="", md5="", content="folder"), Path("data"))
    assert Path("disk/archives/unpacked/x").read_bytes() == b"x"
    assert Path("data").is_symlink()
    assert Path("disk/folder").is_symlink()
    assert there("disk/archives") == ["unpacked"]


def test_a_folder_that_is_not_mounted_is_not_writable(here):
    Path("scratch").symlink_to("/nowhere/mounted")
    with pytest.raises(MissingDataError, match="scratch is a link to"):
        check_writable(Path("scratch/runs"))


def test_a_place_that_cannot_be_written_is_told_before_the_work(writes, as_any_user):
    words, name = writes
    Path("disk").chmod(0o555)
    if words[0] in ("score", "cache") and "preview" not in words:
        Path(SAMPLES, "samples/codes/c/0/0/0/0").write_bytes(b"damaged")  # which the work would find
    outcome = run_here(*words, f"disk/{name}", "-q")
    assert_refused(outcome, 3, "disk", "Permission denied")
    assert "damaged" not in outcome.err
    assert there("disk") == []


def test_scores_beside_a_cache_that_is_read_only_are_refused_and_out_is_named(pipeline, as_any_user):
    Path(SAMPLES, "samples/codes/c/0/0/0/0").write_bytes(b"damaged")
    Path("runs/digits").chmod(0o555)
    outcome = run_here("score", SAMPLES, "-q")
    assert_refused(outcome, 3, "samples-scores.csv cannot be written", "Permission denied", "give another --out")
    Path("runs/digits").chmod(0o755)


def test_a_file_in_place_of_a_folder_is_told_before_the_work(writes):
    words, name = writes
    Path("disk/file").write_text("mine")
    assert_refused(run_here(*words, f"disk/file/{name}", "-q"), 3, "disk/file", "Not a directory")
    assert there("disk") == ["file"]


def test_many_may_try_at_once_whether_a_folder_is_writable(here):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check_writable(Path("new/folder")), range(400)))
    assert there(here) == []


def test_a_half_deleted_cache_can_be_deleted_again(here):
    write_cache(Path("a.zarr"), description())
    Path("a.zarr/zarr.json").unlink()
    assert_refused(run_here("cache", "rm", "a.zarr", "-q"), 2, "--yes")
    assert run_here("cache", "rm", "a.zarr", "--yes").code == 0
    assert there(here) == []


def test_a_cache_that_holds_other_files_is_not_replaced(here):
    write_cache(Path("a.zarr"), description())
    Path("a.zarr/train/thesis.tex").write_text("years of work")
    before = files_of(here)
    with pytest.raises(InputError, match=r"a\.zarr holds train/thesis\.tex"):
        write_again(Path("a.zarr"), description(precision="bf16"), overwrite=True)
    assert files_of(here) == before


def test_one_run_at_a_time_fetches_a_dataset(here):
    file = RemoteFile(path="a.tar.gz", url="http://127.0.0.1:9/a", md5="", content="")
    with WriteLock(Path("data/mnist")) as lock:
        lock.take()
        with pytest.raises(InputError, match="data/mnist is being written by process"):
            ensure_files(find_dataset("mnist"), (file,), Path("data"), silent)


FOLDERS_AS_CHECKPOINTS = [
    ["tokenize", "--dataset", "digits", "--checkpoint-vae"],
    ["sample", "--checkpoint-gpt"],
    ["sample", "--out", "s.zarr", "--checkpoint-vae"],
    ["train", "--out", "new.pt", "--checkpoint-gpt"],
    ["render", SAMPLES, "--out", "x.png", "--checkpoint-vae"],
    ["score", SAMPLES, "--checkpoint-gpt"],
    ["export", "x", "--checkpoint-gpt"],
    ["export", "x.safetensors", "--to", "safetensors", "--checkpoint-vae"],
    ["cache", "preview", DIGITS, "--checkpoint-vae"],
    ["cache", "verify", DIGITS, "--repair", "--checkpoint-vae"],
    ["vqgan", "reconstruct", "--dataset", "digits", "--checkpoint-vae"],
    ["vqgan", "import"],
    ["vqgan", "info"],
]


@pytest.mark.parametrize("words", FOLDERS_AS_CHECKPOINTS, ids=" ".join)
@pytest.mark.parametrize("folder", ["runs", "a.safetensors"])
def test_a_folder_in_place_of_a_checkpoint_is_told(pipeline, words, folder):
    Path(folder).mkdir(exist_ok=True)
    assert_refused(run_here(*words, folder, "-q"), 3, f"{folder} is a folder, not a checkpoint", "the file itself")
