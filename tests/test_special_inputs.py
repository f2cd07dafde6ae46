"""FIFOs and endless devices in place of what a user gives, or has been given: a line that names them, and no wait."""

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import assert_refused, description, run_here, write_cache
from tests.dataset_files import celeba_files, cifar_files, imagenet_archives, write_mnist, write_tree
from tests.test_data import read
from tests.test_published_layouts import LAYOUTS
from tests.test_special_files import PUT, put_fifo
from tests.test_training_run import TRAININGS
from vqgpt.errors import InputError, MissingDataError
from vqgpt.storage.files import SpecialFileError, read_regular, write_atomically
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.options import VQGANOptions
from vqgpt.vqgan.yaml_beside import with_yaml

pytestmark = pytest.mark.timeout(60)
SPECIAL = "is a pipe, a device or a socket"
SAMPLE = ["sample", "--num-samples", "1", "--out", "s.zarr"]
TOKENIZE = ["tokenize", "--checkpoint-vae", "runs/digits/vqgan.pt", "--cache", "t.zarr", "--dataset"]
GIVEN = {
    "a recipe": [*TOKENIZE, "digits", "--recipe", "x.toml"],
    "a prompt": [*SAMPLE, "--prompt", "x.png"],
    "a mask": [*SAMPLE, "--prompt", "cache:train/1", "--keep", "x.png"],
    "a list of codes": [*TOKENIZE, "digits", "--remap", "x.npy"],
    "a VQ-GAN": ["vqgan", "info", "x.pt"],
    "a safetensors file": ["vqgan", "info", "x.safetensors"],
    "a GPT": [*SAMPLE, "--checkpoint-gpt", "x.pt"],
    "images": [*TOKENIZE, "folder", "--data-root", "x.zip"],
    "a data root": [*TOKENIZE, "mnist", "--data-root", "x.data"],
    "codes of RAR": ["cache", "import", "x.jsonl", "--dataset", "digits", "--cache", "t.zarr"],
}


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_in_place_of_what_a_user_gives(pipeline, put):
    for words in GIVEN.values():
        name = next(word for word in words if word.startswith("x."))
        put(Path(name))
        assert_refused(run_here(*words, "-q"), 3, f"{name} {SPECIAL}")
        Path(name).unlink()


def test_a_folder_in_place_of_what_a_user_gives(pipeline):
    for words in GIVEN.values():
        name = next(word for word in words if word.startswith("x."))
        if name != "x.data":
            Path(name).mkdir(exist_ok=True)
            outcome = run_here(*words, "-q")
            assert_refused(outcome, outcome.code, name)
            assert outcome.code in (3, 4)


@pytest.mark.parametrize("name", ["x.unfinished.pt", "metrics.jsonl"])
@pytest.mark.parametrize("kind", TRAININGS)
def test_beside_the_result_of_a_training(here, kind, name):
    write_cache(Path("a.zarr"), description())
    Path("s").mkdir()
    put_fifo(Path("s", name))
    assert_refused(run_here(*TRAININGS[kind], "--out", "s/x.pt", "-q"), 3, f"s/{name} {SPECIAL}")
    assert [path.name for path in Path("s").iterdir() if "unfinished" not in path.name] in ([], [name])


DATASETS = {
    **{name: files for name, (files, _) in LAYOUTS.items()},
    "celeba": celeba_files()[0],
    "cifar10": cifar_files("cifar10")[0],
    "imagenet": imagenet_archives(),
    "svhn": {"train_32x32.mat": b"", "test_32x32.mat": b""},
    "pneumoniamnist": {"pneumoniamnist.npz": b""},
}


NOT_NEEDED = {"words.txt", "n01_boxes.txt", "n02_boxes.txt", "test_0.JPEG"}  # of Tiny ImageNet


def reads_with_a_fifo_at(path, name, root):
    """Whether a dataset can be read all the same."""
    path.unlink()
    put_fifo(path)
    try:
        read(name, root)
    except (InputError, MissingDataError):
        return False
    return True


@pytest.mark.parametrize("name", DATASETS)
def test_in_place_of_any_file_of_a_published_dataset(tmp_path, name):
    whole = write_tree(tmp_path / "whole", DATASETS[name])
    for number, file in enumerate(DATASETS[name]):
        root = tmp_path / f"{number}"
        shutil.copytree(whole, root)
        assert reads_with_a_fifo_at(root / file, name, root) == (Path(file).name in NOT_NEEDED), file


def test_in_place_of_a_file_of_mnist(tmp_path):
    for packed in (False, True):
        root = tmp_path / f"{packed}"
        write_mnist(root, packed=packed)
        assert not reads_with_a_fifo_at(next(root.rglob("t10k-labels*")), "mnist", root)


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_in_place_of_the_lists_of_celeba(tmp_path, put):
    write_tree(tmp_path, celeba_files()[0])
    (tmp_path / "list_attr_celeba.txt").unlink()
    put(tmp_path / "list_attr_celeba.txt")
    with pytest.raises(SpecialFileError, match="list_attr_celeba"):
        read("celeba", tmp_path)


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_in_place_of_a_file_that_is_not_yet_whole(tmp_path, put):
    put(tmp_path / ".x.partial")
    write_atomically(tmp_path / "x", b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_no_file_is_written_through_a_link_at_its_partial_name(tmp_path):
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / ".x.partial").symlink_to("other")
    write_atomically(tmp_path / "x", b"abc")
    assert (tmp_path / "other").read_bytes() == b"kept"
    assert not (tmp_path / "x").is_symlink()


def test_a_file_is_read_up_to_a_bound(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert read_regular(tmp_path / "x", 3) == b"abc"
    os.truncate(tmp_path / "x", 2**40)
    with pytest.raises(InputError, match=r"x has 1,099,511,627,776 bytes, and may have at most 3"):
        read_regular(tmp_path / "x", 3)


MERGES = ["a0: &a0 {k: v}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(MERGES),
        "a: !!int x",
        "a: !!bool x",
        "a: 2001-99-99",
        f"a: {'9' * 5000}",
        "[" * 5000,
        "? [a]\n: 1",
        "\xff",
        "a: \0",
    ],
)
def test_yaml_that_is_made_to_harm(tmp_path, text):
    (tmp_path / "x.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.yaml"):
        with_yaml(VQGANConfig.of(VQGANOptions(), image_channels=1, size=32), tmp_path / "x.yaml")
