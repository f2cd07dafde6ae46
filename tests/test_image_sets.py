"""Sets of images, wherever they come from: the same pixels in any batches, and an identity that follows the content."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import OTHER_VQGAN, description, run_here, write_cache
from tests.dataset_files import image_bytes, pixels, tar_bytes, write_mnist, write_tree, zip_bytes
from vqgpt.api.image_sets import find_images, made_comparable, references_of
from vqgpt.api.options import EncoderOptions, SourceOptions
from vqgpt.api.render import load_its_vqgan
from vqgpt.data.image_sets import ImageSet
from vqgpt.errors import InputError, MissingDataError, UsageError
from vqgpt.progress import Progress, silent
from vqgpt.tokens import Split, TokenCache
from vqgpt.vqgan.coding import decode_codes

HERE = SourceOptions(device="cpu")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def find(source, size=None, like=None, report=silent, **options) -> ImageSet:
    return find_images(str(source), size, like, SourceOptions(**{"device": "cpu", **options}), report)


def everything(images: ImageSet, at_once: int = 5) -> np.ndarray:
    """All images (N, C, H, W), after a look at each batch."""
    batches = list(images.batches(at_once))
    assert all(batch.dtype == np.uint8 and batch.shape[1:] == images.shape for batch in batches)
    assert [len(batch) for batch in batches[:-1]] == [at_once] * (len(batches) - 1)
    return np.concatenate(batches)


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def repeated(grey: np.ndarray) -> np.ndarray:
    """(N, H, W) -> (N, H, W, 3)."""
    return np.repeat(grey[..., None], 3, axis=-1)


def made_of(array: np.ndarray, labels=None) -> ImageSet:
    """A set of images (N, C, H, W) that are in memory."""
    return ImageSet(
        name="made",
        sha256="0" * 64,
        labels=np.full(len(array), -1) if labels is None else labels,
        class_names=(),
        shape=array.shape[1:],
        features_stem=None,
        rows=np.arange(len(array)),
        read=lambda batches: (array[list(rows)] for rows in batches),
    )


# Choosing images


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), at_once=st.integers(1, 25), step=st.integers(1, 5), wanted=st.integers(0, 70))
def test_batches_of_all_processes_are_the_set(count, at_once, step, wanted):
    array = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    images = made_of(array).drawn(wanted)
    assert len(images) == (min(wanted, count) or count)
    shared = [list(images.batches(at_once, first, step)) for first in range(step)]
    turns = max(map(len, shared))
    in_order = [process[turn] for turn in range(turns) for process in shared if turn < len(process)]
    assert all(len(batch) == at_once for batch in in_order[:-1])
    assert np.concatenate(in_order).ravel().tolist() == images.rows.tolist()


def test_a_subset_has_its_own_rows_labels_and_identity(tmp_path):
    files = {f"{name}/{n}.png": image_bytes((n, 9, 0)) for name in ("a", "b") for n in range(5)}
    images = find(write_tree(tmp_path / "photos", files))
    some = images.subset([1, 3, 8])
    assert some.labels.tolist() == [0, 0, 1]
    assert some.rows.tolist() == [1, 3, 8]
    assert everything(some)[:, 0, 0, 0].tolist() == [1, 3, 3]
    assert some.features_stem == tmp_path / "photos-train-3"
    assert len({images.sha256, some.sha256, images.subset([1, 3, 9]).sha256}) == 3
    assert images.subset(some.rows).sha256 == some.sha256
    assert some.subset([0, 2]).rows.tolist() == [1, 8]
    assert images.drawn(0) is images.drawn(10) is images.subset(range(10)) is images
    some = images.drawn(4).rows
    assert len(some) == 4
    assert (np.diff(some) > 0).all()
    assert some.tolist() == images.drawn(4).rows.tolist()


# Pictures


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_pictures_in_class_folders(tmp_path, kind):
    colors = pixels(6, 8, 3)[:, :, :5]
    files = {
        f"{name}/{n}.png": png(colors[3 * label + n]) for label, name in enumerate(("cat", "dog")) for n in range(3)
    }
    path = tmp_path / ("pets" if kind == "folder" else f"pets.{kind}")
    if kind == "folder":
        write_tree(path, files)
    else:
        path.write_bytes({"zip": zip_bytes, "tar": tar_bytes}[kind](files))
    events = []
    images = find(path, report=events.append)
    assert np.array_equal(everything(images), colors.transpose(0, 3, 1, 2))
    assert images.shape == (3, 8, 5)
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.name == str(path)
    assert images.features_stem == tmp_path / "pets-train"
    assert Progress(task="check images", done=6, total=6, unit="images") in events


def test_the_identity_of_pictures_is_their_content_and_classes(tmp_path):
    files = {f"{name}/{n}.png": image_bytes((n, 9, 0)) for name in ("a", "b") for n in range(2)}
    images = find(write_tree(tmp_path / "x", files))
    (tmp_path / "y.zip").write_bytes(zip_bytes({f"around/{name}": data for name, data in files.items()}))
    assert find(tmp_path / "y.zip").sha256 == images.sha256
    changed = [
        files | {"a/0.png": image_bytes((0, 8, 0))},
        files | {"b/2.png": image_bytes(RED)},
        {name.replace("b/", "c/"): data for name, data in files.items()},
        {name.replace("/", ""): data for name, data in files.items()},
    ]
    others = [find(write_tree(tmp_path / str(number), other)) for number, other in enumerate(changed)]
    prepared = find(tmp_path / "x", size=8)
    assert prepared.features_stem == tmp_path / "x-train-8px"
    assert len({images.sha256, prepared.sha256, *(other.sha256 for other in others)}) == 6
    assert others[-1].class_names == ()
    assert others[-1].labels.tolist() == [-1] * 4


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_without_colors_are_grey(tmp_path, mode):
    grey = pixels(4, 6, 1)
    files = {f"{n}.png": png(grey[n] if mode == "L" else repeated(grey)[n]) for n in range(4)}
    images = find(write_tree(tmp_path, files))
    assert images.shape == (1, 6, 6)
    assert np.array_equal(everything(images), grey[:, None])
    write_tree(tmp_path, {"5.png": image_bytes((1, 1, 2), size=(6, 6))})
    colored = find(tmp_path)
    assert colored.shape == (3, 6, 6)
    assert np.array_equal(everything(colored)[:4], np.repeat(grey[:, None], 3, axis=1))


def test_pictures_of_several_sizes_need_one(tmp_path):
    large, small = pixels(2, 12, 3), pixels(2, 8, 3)
    files = {"0.png": png(large[0]), "1.png": png(small[0]), "2.png": png(large[1][:, 2:10])}
    write_tree(tmp_path / "photos", files)
    with pytest.raises(InputError, match=r"0\.png 12 x 12 pixels, .*1\.png 8 x 8") as refused:
        find(tmp_path / "photos")
    assert "--size N" in refused.value.hint
    images = everything(find(tmp_path / "photos", size=8))
    assert np.array_equal(images[1], small[0].transpose(2, 0, 1))
    assert np.array_equal(images[2], large[1][2:10, 2:10].transpose(2, 0, 1))


def test_splits_of_a_folder(tmp_path):
    names = [(split, name, n) for split in ("train", "val") for name in "ab" for n in (1, 2)]
    files = {f"{split}/{name}/{n}.png": image_bytes((n, 0, len(split))) for split, name, n in names}
    root = write_tree(tmp_path / "photos", files)
    with pytest.raises(UsageError, match="train, val"):
        find(root)
    with pytest.raises(UsageError, match="no split 'test'"):
        find(f"{root}:test")
    images = find(f"{root}:val")
    assert images.name == f"{root}:val"
    assert images.features_stem == tmp_path / "photos-val"
    assert everything(images)[:, 2, 0, 0].tolist() == [3] * 4
    assert find(f"{root}:train").sha256 != images.sha256
    root.rename(f"{root}:val")  # what is there is a path
    with pytest.raises(UsageError, match="several splits"):
        find(f"{root}:val")


def test_pictures_that_cannot_be_used_are_named(tmp_path):
    good = {f"{n}.png": image_bytes(RED) for n in range(3)}
    with pytest.raises(InputError, match=r"a/2\.png is broken") as refused:
        find(write_tree(tmp_path / "a", good | {"2.png": image_bytes(RED)[:40]}))
    assert "--on-error" not in refused.value.hint
    with pytest.raises(InputError, match="no images"):
        find(write_tree(tmp_path / "b", {"notes.txt": b"x"}))
    with pytest.raises(InputError, match="1 image; a distribution needs at least 2"):
        find(write_tree(tmp_path / "c", {"0.png": image_bytes(RED)}))
    images = find(write_tree(tmp_path / "d", good))
    write_tree(tmp_path / "d", {"1.png": image_bytes(RED, size=(9, 9))})
    with pytest.raises(InputError, match=r"1\.png has changed"):
        everything(images)
    with pytest.raises(MissingDataError, match="no-such"):
        find(tmp_path / "no-such")


def test_a_folder_is_found_from_inside(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "v1.5", {f"{n}.png": image_bytes(RED) for n in range(3)})
    monkeypatch.chdir(root)
    assert find(".").features_stem == tmp_path / "v1.5-train"


# Datasets


def test_splits_of_datasets_are_prepared_like_what_they_are_compared_with(tmp_path):
    test, _ = write_mnist(tmp_path, train=12, test=7)["t10k"]
    images = find("mnist:test", size=28, data_root=tmp_path)
    assert np.array_equal(everything(images), test[:, None])
    assert (images.name, images.class_names[3]) == ("mnist:test", "3")
    assert images.labels.tolist() == list(range(7))
    assert str(images.features_stem) == "runs/mnist/test-28px"
    assert find("mnist:train", data_root=tmp_path).shape == (1, 32, 32)
    like = made_of(np.zeros((2, 3, 20, 20), np.uint8))
    colored = find("mnist:test", like=like, data_root=tmp_path)
    assert colored.shape == like.shape
    assert np.array_equal(everything(colored)[:, 0], everything(colored)[:, 2])
    assert len({images.sha256, colored.sha256, find("mnist:train", 28, data_root=tmp_path).sha256}) == 3


def test_a_dataset_is_named_with_its_split(here):
    with pytest.raises(UsageError) as refused:
        find("mnist")
    assert "mnist:train, mnist:test" in refused.value.hint
    with pytest.raises(UsageError, match="mnist has no split 'tset'") as refused:
        find("mnist:tset")
    assert "'test'" in refused.value.hint
    with pytest.raises(UsageError, match="needs a folder"):
        find("folder:val")
    write_tree(here / "mnist", {f"{n}.png": image_bytes(BLUE) for n in range(2)})
    assert len(find("mnist")) == 2


# Token caches


def test_rows_of_a_token_cache_are_decoded(pipeline):
    cache = TokenCache("cache/digits.zarr")
    images = find("cache/digits.zarr")
    assert images.name == "cache/digits.zarr:test"
    assert images.shape == (1, 16, 16)
    assert str(images.features_stem) == "cache/digits-test"
    tokens = cache.read_split("test")
    assert images.labels.tolist() == tokens.labels.tolist()
    assert images.class_names == cache.description.class_names
    model = load_its_vqgan(cache.description, EncoderOptions(device="cpu"))
    some = images.subset([0, 5, 100, 101, 363])
    expected = decode_codes(model, tokens.codes[some.rows, 0], "fp32")
    assert np.abs(everything(some, 5).astype(int) - expected).max() <= 1  # passes of other sizes round otherwise
    train = find("cache/digits.zarr:train")
    assert (len(train), len(images)) == (cache.rows("train"), 364)
    samples = find("runs/digits/samples.zarr")
    assert samples.name == "runs/digits/samples.zarr"
    assert str(samples.features_stem) == "runs/digits/samples-samples"
    assert len(everything(samples)) == 20
    assert len({images.sha256, train.sha256, samples.sha256, some.sha256}) == 4
    made_comparable(samples, find("digits:test", like=samples))
    with pytest.raises(UsageError, match="no split 'val'"):
        find("cache/digits.zarr:val")


def test_batches_cross_shards(here, finished_pipeline):
    """Whatever batches are asked for, and wherever shards end, the rows are decoded from their own codes."""
    shutil.copytree(finished_pipeline / "runs", "runs")
    made = TokenCache(finished_pipeline / "cache/digits.zarr").description
    splits = (Split(name="train", rows=70),)
    write_cache(here / "x.zarr", replace(made, shard_rows=32, splits=splits, class_names=("a", "b")))
    images = find("x.zarr")
    whole = everything(images, 70)
    chosen = images.subset([0, 30, 31, 32, 33, 63, 64, 69])
    assert np.abs(everything(chosen, 3).astype(int) - whole[chosen.rows]).max() <= 1
    assert (whole[:32] != whole[32:64]).any(axis=(1, 2, 3)).mean() > 0.9


def test_a_cache_needs_its_own_vqgan(pipeline):
    assert run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--out", "other.pt").code == 0
    with pytest.raises(InputError, match="made with another VQ-GAN"):
        find("cache/digits.zarr", checkpoint_vae=pipeline / "other.pt")
    (pipeline / "runs/digits/vqgan.pt").unlink()
    with pytest.raises(MissingDataError, match=r"vqgan\.pt"):
        find("cache/digits.zarr")


def test_caches_that_show_no_images(here):
    write_cache(here / "a.zarr", description(tokenizer_sha256="unknown"))
    with pytest.raises(InputError, match="imported without their VQ-GAN"):
        find("a.zarr:train")
    write_cache(here / "b.zarr", description(image_channels=5))
    with pytest.raises(InputError, match="5 channels"):
        find("b.zarr")
    (here / "c.zarr").mkdir()
    with pytest.raises(InputError, match="not a token cache"):
        find("c.zarr")
    with pytest.raises(MissingDataError, match="no token cache d.zarr"):
        find("d.zarr:train")


# What sets are compared with


def test_the_images_that_a_cache_is_judged_by(pipeline):
    samples, encoded = TokenCache("runs/digits/samples.zarr"), TokenCache("cache/digits.zarr")
    found = references_of(samples, HERE, silent, encoded)
    assert (found.training.name, len(found.training)) == ("digits:train", 1433)
    assert (found.held_out.name, len(found.held_out)) == ("digits:test", 364)
    assert found.held_out.sha256 == find("digits:test").sha256
    assert np.array_equal(everything(found.held_out, 100), everything(find("digits:test"), 364))
    write_cache(pipeline / "other.zarr", description())
    with pytest.raises(InputError, match=r"are not those that .*other\.zarr was encoded from"):
        references_of(samples, HERE, silent, TokenCache("other.zarr"))
    write_cache(pipeline / "unknown.zarr", description(dataset="paintings"))
    with pytest.raises(InputError, match="of 'paintings'"):
        references_of(TokenCache("unknown.zarr"), HERE, silent)


def test_held_out_images_of_a_folder_are_those_of_its_cache(here, finished_pipeline):
    files = {f"{name}/{n}.png": image_bytes(10 * n, mode="L", size=(20, 16)) for name in "ab" for n in range(10)}
    root = write_tree(here / "photos", files)
    vqgan = ["--checkpoint-vae", finished_pipeline / "runs/digits/vqgan.pt"]
    options = ["--dataset", "folder", "--data-root", root, "--val-split", "0.3", "--fit", "stretch", "--limit", "4"]
    outcome = run_here("tokenize", *options, *vqgan)
    assert outcome.code == 0, outcome.err
    cache = TokenCache("cache/folder.zarr")
    found = references_of(cache, SourceOptions(data_root=root, device="cpu"), silent, cache)
    assert (len(found.training), len(found.held_out)) == (14, 6)
    assert found.training.shape == (1, 16, 16)
    assert found.training.class_names == ("a", "b")
    with pytest.raises(UsageError, match="needs a folder"):
        references_of(cache, HERE, silent)
    (root / "a/3.png").write_bytes(image_bytes(99, mode="L", size=(20, 16)))
    with pytest.raises(InputError, match="are not those that"):
        references_of(cache, SourceOptions(data_root=root, device="cpu"), silent, cache)


def test_sets_that_cannot_be_compared():
    grey, colored, large = (made_of(np.zeros((2, *shape), np.uint8)) for shape in ((1, 8, 6), (3, 8, 6), (1, 9, 9)))
    made_comparable(grey, grey)
    with pytest.raises(InputError, match="made is grey and made is RGB"):
        made_comparable(grey, colored)
    with pytest.raises(InputError, match="images of 6 x 8 pixels, made of 9 x 9") as refused:
        made_comparable(grey, large)
    assert "--size N" in refused.value.hint
