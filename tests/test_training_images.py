"""The images of a VQ-GAN's training: streamed as loaded, whoever asks; random views; files that change meanwhile."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vqgpt
from tests.conftest import assert_refused, run_here
from tests.dataset_files import write_tree, zip_bytes
from tests.forked import fork_command, run_ranks
from tests.test_image_files import BROKEN
from tests.test_interruption import STOPS, assert_same_training, lines_of, saved_step, wait_for
from tests.test_preparing import how, split_of
from tests.test_vqgan_runs import SMALL
from vqgpt.api.made import options_that_count
from vqgpt.data import images as data_images
from vqgpt.data.augmentation import Augmentation
from vqgpt.data.file_trees import Folder, open_tree
from vqgpt.data.images import FileImages, ImageSplit, load_tensor
from vqgpt.data.training_images import LoadedImages, StreamedImages, whole_images
from vqgpt.errors import InputError, MissingDataError
from vqgpt.progress import Notice, Progress, silent
from vqgpt.runtime.process import CutShort, cut_short_on_signals, stop_on_signals
from vqgpt.training.schedule import Schedule

PHOTOS = 40
COMMAND = ["vqgan", "train", "--dataset", "folder", "--data-root", "photos", *SMALL, "--n-epochs", "10"]
COMMAND += ["--sample-and-save-freq", "1", "--dropout", "0.1"]
STEPS = 30  # of 36 images to train on, in batches of 16


def photo_bytes(number, tmp_path):
    """A JPEG file of 20 x 14 pixels or 14 x 20, of smooth noise."""
    size = (20, 14) if number % 2 else (14, 20)
    rough = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return path.read_bytes()


@pytest.fixture(scope="module")
def photo_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photo")
    return {f"{'ab'[n % 2]}/{n:02}.jpg": photo_bytes(n, folder) for n in range(PHOTOS)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photo_files):
    """A folder with photos and with trainings on them that nothing disturbed: look, do not touch."""
    folder, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    write_tree(folder / "photos", photo_files)
    os.chdir(folder)
    try:
        for out, flags in (("plain", []), ("views", ["--augment", "crop,hflip"])):
            outcome = run_here(*COMMAND, *flags, "--out", f"{out}/vqgan.pt")
            assert outcome.code == 0, outcome.err
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def photos(here, photo_files):
    return write_tree(here / "photos", photo_files)


def files_split(root):
    tree = open_tree(root)
    return ImageSplit.whole(FileImages(tree, tuple(tree.sizes), (255, 255, 255)), np.zeros(len(tree.sizes), np.int64))


def schedule_of(rows, batch_size, epochs=2):
    return Schedule(seed=0, num_rows=rows, batch_size=batch_size, n_epochs=epochs)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 40),
    workers=st.integers(0, 3),
    first=st.floats(0, 1),
    mirrored=st.booleans(),
)
def test_a_stream_gives_the_batches_of_loaded_images_from_any_step_on(rows, batch_size, workers, first, mirrored):
    split = split_of(np.random.default_rng(rows).integers(0, 256, (rows, 9, 6), dtype=np.uint8))
    schedule = schedule_of(rows, batch_size)
    augmentation = Augmentation(kinds=("hflip",), seed=rows) if mirrored else None
    loaded = LoadedImages(load_tensor(split, how(5), 0, "images", silent), augmentation)
    streamed = StreamedImages(split, how(5), workers, schedule, augmentation)
    torch.manual_seed(1)
    for step in schedule.outlook(int(first * (schedule.num_steps - 1))):
        assert torch.equal(streamed.batch(step), loaded.batch(step))
    assert torch.initial_seed() == 1  # those who look ahead draw no random numbers
    some = torch.tensor([rows - 1, 0, rows // 2])
    passes = zip(streamed.passes(some, 2), loaded.passes(some, 2), strict=True)
    assert all(torch.equal(one, other) for one, other in passes)
    streamed.close()


class Counting(Folder):
    """The files of a folder, and how often one was read."""

    reads = 0

    def read(self, name):
        self.reads += 1
        return super().read(name)


def test_no_more_than_a_batch_is_ahead_and_no_thread_is_left(here, photos):
    tree = Counting(photos)
    names = tuple(name for name in tree.sizes for _ in range(20))  # 800 images
    split = ImageSplit.whole(FileImages(tree, names, (0, 0, 0)), np.zeros(len(names), np.int64))
    schedule = schedule_of(len(names), 32)
    streamed = StreamedImages(split, how(8, channels=3), 2, schedule)
    for step in list(schedule.outlook(0))[:3]:
        streamed.batch(step)
    streamed.close()
    assert 3 * 32 <= tree.reads <= 4 * 32 + 3 * 16  # and what two threads have in hand
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def pixels_of(path):
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize(("out", "flags"), [("plain", []), ("views", ["--augment", "hflip", "crop"])])
@pytest.mark.parametrize("workers", ["0", "3"])
def test_a_streamed_training_is_the_one_on_loaded_images(photos, whole, out, flags, workers):
    outcome = run_here(*COMMAND, *flags, "--stream", "--num-workers", workers, "--out", f"{out}/vqgan.pt")
    assert outcome.code == 0, outcome.err
    assert "the images are read while training: --" in outcome.err
    assert_same_training(Path(out), whole / out, "vqgan.pt")
    configuration = torch.load(f"{out}/vqgan.pt", weights_only=True)["configuration"]
    assert configuration["stream"]
    assert configuration["augment"] == flags[1:]
    if not flags:
        assert pixels_of(whole / out / "vqgan.png") == pixels_of(f"{out}/vqgan.png")


def test_images_larger_than_memory_are_streamed(photos, whole, monkeypatch):
    monkeypatch.setattr(data_images, "SHARE_OF_MEMORY", 1e-9)
    outcome = run_here(*COMMAND, "--out", "plain/vqgan.pt")
    assert outcome.code == 0, outcome.err
    assert "the images are read while training: 40 at 8 pixels take 0.000 GB of memory, more than" in outcome.err
    assert_same_training(Path("plain"), whole / "plain", "vqgan.pt")


def test_the_processes_of_a_machine_share_its_memory(photos, monkeypatch):
    needed = PHOTOS * 3 * 8 * 8
    monkeypatch.setattr(data_images, "SHARE_OF_MEMORY", 1.5 * needed / data_images.memory_of_machine())
    alone = run_here(*COMMAND, "--n-epochs", "1", "--out", "1/vqgan.pt")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    two = run_here(*COMMAND, "--n-epochs", "1", "--out", "2/vqgan.pt")
    assert alone.code == two.code == 0
    assert "are read while training" not in alone.err
    assert "40 at 8 pixels in 2 processes take" in two.err


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stopped_streamed_training_continues_bit_for_bit(here, photos, whole, number, code):
    command = [*COMMAND, "--augment", "crop,hflip", "--stream", "--num-workers", "2", "--out", "views/vqgan.pt"]
    process = fork_command(*command, cwd=here)
    wait_for(lambda: len(lines_of(Path("views/metrics.jsonl"))) >= 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert code < 0 or 0 < saved_step(Path("views/vqgan.unfinished.pt")) < STEPS, err
    outcome = run_here(*command)
    assert outcome.code == 0, outcome.err
    assert "continuing after step" in outcome.err
    assert_same_training(Path("views"), whole / "views", "vqgan.pt")


class ChangesAfter:
    """A report that calls `change` once a training has done so many steps."""

    def __init__(self, steps, change):
        self.steps, self.change, self.notices = steps, change, []

    def __call__(self, event):
        if isinstance(event, Notice):
            self.notices.append(event.text)
        elif isinstance(event, Progress) and event.task == "vqgan" and event.done == self.steps:
            self.change()


OPTIONS = {"ch_mult": (1, 1), "attn_resolutions": (0,), "size": 8, "channels": 32, "z_channels": 8, "n_embed": 16}
OPTIONS |= {"num_res_blocks": 1, "embed_dim": 4, "lr": 1e-3, "limit": 95, "batch_size": 16, "n_epochs": 10}
OPTIONS |= {"sample_and_save_freq": 1, "dropout": 0.1, "dataset": "folder", "out": Path("plain/vqgan.pt")}


def train_here(root, report):
    vqgpt.train_vqgan(data_root=Path(root), stream=True, progress=report, **OPTIONS)


CHANGES = {
    "gone": (Path.unlink, MissingDataError, "gone"),
    "another": (lambda path: path.write_bytes(Path("photos/b/01.jpg").read_bytes()), InputError, "has changed"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:300]), InputError, "has changed"),
    "touched": (Path.touch, InputError, "has changed"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["a/02.jpg", "b/39.jpg"])  # one to train on, and a held-out one
def test_a_file_that_changes_is_named_and_what_was_learnt_is_kept(photos, whole, change, name):
    act, kind, words = CHANGES[change]
    path, before = photos / name, (photos / name).stat()
    data = path.read_bytes()
    report = ChangesAfter(1, lambda: act(path))
    with pytest.raises(kind, match=f"{name} .*{words}"):
        train_here("photos", report)
    saved = saved_step(Path("plain/vqgan.unfinished.pt"))
    assert 1 <= saved < STEPS
    assert any(f"{saved} of {STEPS} steps are saved" in text for text in report.notices)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    outcome = run_here(*COMMAND, "--out", "plain/vqgan.pt")  # without --stream: the same training
    assert outcome.code == 0, outcome.err
    assert f"continuing after step {saved} of {STEPS}" in outcome.err
    assert_same_training(Path("plain"), whole / "plain", "vqgan.pt")


def test_a_folder_that_stays_changed_is_another_dataset(photos):
    with pytest.raises(MissingDataError):
        train_here("photos", ChangesAfter(1, (photos / "a/02.jpg").unlink))
    assert_refused(run_here(*COMMAND, "--out", "plain/vqgan.pt", "-q"), 3, "other settings (images: ", "--overwrite")


def test_a_zip_file_that_changes_is_named(here, photo_files):
    Path("p.zip").write_bytes(zip_bytes(photo_files))

    def change():
        with open("p.zip", "r+b") as file:  # in place
            file.seek(100)
            file.write(b"x")

    with pytest.raises(InputError, match=r"p\.zip has changed"):
        train_here("p.zip", ChangesAfter(1, change))
    assert saved_step(Path("plain/vqgan.unfinished.pt")) >= 1


def test_other_augmentations_are_another_training(here, photos, whole):
    command = [*COMMAND, "--out", "x/vqgan.pt"]
    with pytest.raises(MissingDataError):
        vqgpt.train_vqgan(
            data_root=photos,
            stream=True,
            progress=ChangesAfter(1, (photos / "a/02.jpg").unlink),
            **OPTIONS | {"out": Path("x/vqgan.pt")},
        )
    (photos / "a/02.jpg").write_bytes((whole / "photos/a/02.jpg").read_bytes())
    assert_refused(run_here(*command, "--augment", "hflip", "-q"), 3, "augment: [] there, ['hflip'] here")


@pytest.mark.parametrize("fault", [*BROKEN, "unreadable"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named(photos, fault, workers):
    bad = photos / "a/02.jpg"
    if fault == "unreadable":
        bad.unlink()
        bad.symlink_to("/proc/self/mem")  # reading it is an error of input and output
    else:
        bad.write_bytes(BROKEN[fault])
    split = files_split(photos)
    schedule = schedule_of(len(split), 16)
    streamed = StreamedImages(split, how(8, channels=3), workers, schedule)
    with pytest.raises(InputError, match=r"a/02\.jpg"):
        list(map(streamed.batch, schedule.outlook(0)))
    with pytest.raises(InputError, match=r"a/02\.jpg"):
        list(whole_images(split, how(8, channels=3), workers, torch.arange(len(split)), 16))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


class Stopping(Folder):
    """The files of a folder, whose reader asks the process to stop."""

    def read(self, name):
        signal.raise_signal(signal.SIGTERM)
        return super().read(name)


def test_waiting_for_images_is_cut_short_and_not_taken_for_damage(photos):
    tree = Stopping(photos)
    split = ImageSplit.whole(FileImages(tree, tuple(tree.sizes), (0, 0, 0)), np.zeros(PHOTOS, np.int64))
    schedule = schedule_of(PHOTOS, 16)
    streamed = StreamedImages(split, how(8, channels=3), 0, schedule)
    with stop_on_signals() as stop, pytest.raises(CutShort), cut_short_on_signals():
        streamed.batch(next(schedule.outlook(0)))
    assert stop.signal == signal.SIGTERM
    assert not issubclass(CutShort, Exception)  # decoders make an error of the image out of any of these


RANKS = """
import sys
import torch
from pathlib import Path
from tests.test_training_images import Counting, FileImages, ImageSplit, StreamedImages, how, schedule_of
from vqgpt.__main__ import leave_at_once
from vqgpt.runtime.device import local_rows, process_group, rank
import numpy as np

class Noting(Counting):
    names = set()

    def read(self, name):
        self.names.add(name)
        return super().read(name)

with process_group(torch.device("cpu")):
    tree = Noting(Path("photos"))
    names = tuple(tree.sizes)
    split = ImageSplit.whole(FileImages(tree, names, (0, 0, 0)), np.zeros(len(names), np.int64))
    schedule = schedule_of(len(names), 16, epochs=1)
    streamed = StreamedImages(split, how(8, channels=3), 2, schedule)
    mine = set()
    for step in schedule.outlook(0):
        assert len(streamed.batch(step)) == len(local_rows(step.rows))
        mine |= {names[row] for row in local_rows(step.rows).tolist()}
    assert tree.names == mine and tree.reads == len(mine) == 20, (tree.names ^ mine, tree.reads)
    print("agreed", rank())
leave_at_once(0)
"""


def test_each_process_decodes_its_own_rows_alone(here, photos):
    Path("ranks.py").write_text(RANKS)
    result = run_ranks(2, "ranks.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("agreed") == 2


def test_two_processes_train_on_a_stream_as_on_loaded_images(here, photos):
    for out, flags in (("loaded", ["--augment", "hflip"]), ("streamed", ["--augment", "hflip", "--stream"])):
        result = run_ranks(2, "-m", "vqgpt", *COMMAND, *flags, "--out", f"{out}/vqgan.pt")
        assert result.returncode == 0, result.stderr
    assert_same_training(Path("loaded"), Path("streamed"), "vqgan.pt")


def test_values_that_cannot_be(here):
    assert_refused(run_here("vqgan", "train", "--augment", "flip"), 2, "'flip'", "hflip")
    outcome = run_here("vqgan", "train", "--dataset", "digits", "--augment", "hflip", "--dry-run")
    assert "in digits they may mean something else" in outcome.err


def test_a_pipeline_makes_nothing_anew_for_a_stream():
    assert options_that_count("vqgan-train", {"stream": True, "augment": ["crop"]}) == {"augment": ["crop"]}
    assert options_that_count("train", {"training": {"stream": True}}) == {"stream": True}
