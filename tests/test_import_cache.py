"""`vqgpt cache import`: code folders of LlamaGen and files of RAR become caches, unverified and marked so."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY_GPT, assert_refused, files_of, run_here
from vqgpt.data.images import prepare
from vqgpt.data.options import Preprocessing, PreprocessingOptions
from vqgpt.runtime.process import import_torchvision
from vqgpt.tokens import TokenCache
from vqgpt.tokens.third_party import VIEWS

DIGITS = Path("cache/digits.zarr")
FOLDER = Path("codes/imagenet256_codes")
LABELS = Path("codes/imagenet256_labels")
FILE = Path("pretokenized.jsonl")


def made_up(rows=5, views=2, tokens=16, codes=100):
    generator = np.random.default_rng(0)
    return generator.integers(0, codes, (rows, views, tokens)), generator.integers(0, 10, rows)


def write_llamagen(codes, labels, folder=FOLDER):
    """As LlamaGen's extraction leaves them: a pair of int64 files per image."""
    labels_folder = folder.with_name(folder.name.replace("_codes", "_labels"))
    for place in (folder, labels_folder):
        place.mkdir(parents=True)
    for row in range(len(codes)):
        np.save(folder / f"{row}.npy", codes[row : row + 1].astype(np.int64))
        np.save(labels_folder / f"{row}.npy", labels[row : row + 1].astype(np.int64))


def write_rar(codes, labels):
    """As RAR's pretokenization leaves them: a line per view."""
    lines = [
        json.dumps({"class_id": int(label), "tokens": view.tolist()}) + "\n"
        for image, label in zip(codes, labels, strict=True)
        for view in image
    ]
    FILE.write_text("".join(lines))


def imported(*arguments):
    outcome = run_here("cache", "import", *map(str, arguments), "--json")
    assert outcome.code == 0, outcome.err
    assert run_here("cache", "verify", outcome.json["cache"]).code == 0
    return TokenCache(Path(outcome.json["cache"]))


@pytest.mark.parametrize("views", [1, 2, 10])
def test_a_code_folder_of_llamagen(here, views):
    codes, labels = made_up(views=views)
    write_llamagen(codes, labels)
    cache = imported(FOLDER)
    assert cache.path == Path("cache/imagenet.zarr")
    tokens = cache.read_split("train")
    np.testing.assert_array_equal(tokens.codes.reshape(codes.shape), codes)
    np.testing.assert_array_equal(tokens.labels, labels)
    np.testing.assert_array_equal(tokens.source_index, np.arange(5))
    what = cache.description
    assert (what.dataset, what.image_size, what.grid) == ("imagenet", (256, 256), (4, 4))
    assert (what.codebook_size, len(what.class_names), what.tokenizer_sha256) == (16384, 1000, "unknown")
    assert what.views == VIEWS[views]
    assert {"tokenizer_sha256", "codebook", "views", "image_size"} <= set(what.unverified)
    assert run_here("cache", "info", str(cache.path), "--json").json["unverified"] == list(what.unverified)


def test_a_file_of_rar_line_by_line_and_ten_by_ten(here):
    codes, labels = made_up(rows=3, views=10)
    write_rar(codes, labels)
    cache = imported(FILE, "--cache", "a.zarr", "--grid", "2", "8", "--size", "64", "--num-classes", "10")
    tokens = cache.read_split("train")
    np.testing.assert_array_equal(tokens.codes.reshape(30, 16), codes.reshape(30, 16))
    np.testing.assert_array_equal(tokens.labels, labels.repeat(10))
    assert set(tokens.source_index) == {-1}
    assert (cache.description.grid, cache.description.image_size) == ((2, 8), (64, 64))
    assert (cache.description.codebook_size, len(cache.description.class_names)) == (1024, 10)
    cache = imported(FILE, "--cache", "b.zarr", "--views-per-image", "10")
    np.testing.assert_array_equal(cache.read_split("train").codes.reshape(3, 10, 16), codes)
    np.testing.assert_array_equal(cache.read_split("train").labels, labels)


def test_the_ten_views_are_those_of_torchvision():
    transforms = import_torchvision("transforms")
    image = torch.randint(0, 256, (3, 44, 44), dtype=torch.uint8)
    pil = transforms.ToPILImage()(image)
    ours = prepare(pil, Preprocessing(size=40, channels=3, options=PreprocessingOptions(), views=VIEWS[10]))
    for view, expected in zip(ours, transforms.TenCrop(40)(image), strict=True):
        np.testing.assert_array_equal(view, expected.numpy())


def test_a_held_out_split_makes_it_trainable_and_says_that_it_was_imported(here):
    codes, labels = made_up(rows=40)
    write_llamagen(codes, labels)
    cache = imported(FOLDER, "--val-split", "0.25", "--codebook-size", "100")
    assert [cache.rows(split) for split in ("train", "val")] == [30, 10]
    both = [cache.read_split(split) for split in ("train", "val")]
    index = np.concatenate([tokens.source_index for tokens in both])
    np.testing.assert_array_equal(np.sort(index), np.arange(40))
    np.testing.assert_array_equal(np.concatenate([tokens.codes for tokens in both]).reshape(40, 2, 16), codes[index])
    outcome = run_here("train", *TINY_GPT, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "codes were imported without their VQ-GAN (--checkpoint-vae), so nothing can check them" in outcome.err


def test_codes_that_all_came_without_their_vqgan_are_put_together_with_a_notice(here):
    write_llamagen(*made_up(rows=40))
    imported(FOLDER, "--val-split", "0.25", "--codebook-size", "100")
    assert run_here("train", *TINY_GPT).code == 0
    same = "vqgpt cannot tell whether it was the same one"
    assert same in run_here("score", "cache/imagenet.zarr").err
    for prompt in (["--prompt", "cache:train/3", "--keep", "2"], ["--cache", "cache/imagenet.zarr"], []):
        outcome = run_here("sample", *prompt, "--num-samples", "2", "--tokens-only", "--overwrite")
        assert outcome.code == 0, outcome.err
        assert (same in outcome.err) == bool(prompt)
    Path("runs/imagenet/vqgan.pt").write_bytes(b"some VQ-GAN")
    outcome = run_here("sample", "--num-samples", "2", "--out", "s.zarr")
    assert outcome.code == 0, outcome.err
    assert "no picture: the GPT learned tokens that were imported without their VQ-GAN" in outcome.err
    assert "vqgpt render" not in outcome.err


def write_digits_as_llamagen(folder, change=lambda codes: codes):
    """Our codes of the first 50 digits, in the order of the dataset's own files."""
    both = [TokenCache(DIGITS).read_split(split) for split in ("train", "test")]
    first = np.argsort(np.concatenate([tokens.source_index for tokens in both]))[:50]
    codes = np.concatenate([tokens.codes for tokens in both])[first].reshape(50, 1, -1)
    write_llamagen(change(codes), np.concatenate([tokens.labels for tokens in both])[first], folder)


def one_token_in_eight_changed(codes):
    changed = codes.copy()
    changed[..., ::8] = (codes[..., ::8] + 1) % 16
    return changed


def test_preview_judges_imported_codes(pipeline):
    vqgan = ["--checkpoint-vae", "runs/digits/vqgan.pt"]
    write_digits_as_llamagen(Path("digits16_codes"))
    cache = imported("digits16_codes", *vqgan, "--cache", "right.zarr")
    ours = TokenCache(DIGITS)
    assert cache.description.tokenizer_sha256 == ours.description.tokenizer_sha256
    assert cache.description.class_names == ours.description.class_names
    np.testing.assert_array_equal(cache.codebook(), ours.codebook())
    assert "codebook" not in cache.description.unverified
    outcome = run_here("cache", "preview", "right.zarr", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["compared"]
    assert outcome.json["equal_codes"] == 1
    write_digits_as_llamagen(Path("near/digits16_codes"), one_token_in_eight_changed)
    imported("near/digits16_codes", *vqgan, "--cache", "near.zarr")
    outcome = run_here("cache", "preview", "near.zarr", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["equal_codes"] == 0.875
    assert "87.5% of the codes" in outcome.err
    write_digits_as_llamagen(Path("wrong/digits16_codes"), lambda codes: 15 - codes)
    imported("wrong/digits16_codes", *vqgan, "--cache", "wrong.zarr")
    assert_refused(run_here("cache", "preview", "wrong.zarr", "-q"), 3, "wrong.zarr: only", "do not train")


def test_rows_of_rar_and_codes_without_a_vqgan_are_told_apart(pipeline):
    codes, labels = made_up(views=1, tokens=64, codes=16)
    write_rar(codes, labels)
    words = ["--dataset", "digits", "--size", "16"]
    imported(FILE, *words, "--cache", "known.zarr", "--checkpoint-vae", "runs/digits/vqgan.pt")
    outcome = run_here("cache", "preview", "known.zarr", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["compared"] is False
    assert "does not say which image is which" in outcome.err
    imported(FILE, *words, "--cache", "unknown.zarr", "--codebook-size", "16")
    for command in (["cache", "preview"], ["render"]):
        assert_refused(run_here(*command, "unknown.zarr", "-q"), 3, "without their VQ-GAN", "--checkpoint-vae")
    mismatch = ["--codebook-size", "17", "--checkpoint-vae", "runs/digits/vqgan.pt"]
    assert_refused(run_here("cache", "import", str(FILE), *mismatch, "-q"), 3, "vqgan.pt has 16 codes")


def test_an_imported_cache_is_not_repaired_from_images(here):
    write_llamagen(*made_up())
    cache = imported(FOLDER)
    (cache.path / "train/codes/c/0/0/0/0").write_bytes(b"x")
    same_command = "vqgpt cache import --dataset imagenet --cache cache/imagenet.zarr"
    assert_refused(run_here("cache", "verify", "--repair", str(cache.path)), 3, "was imported", same_command)
    assert_refused(run_here("cache", "verify", str(cache.path)), 3, "c/0/0/0/0", same_command)
    assert run_here("cache", "import", str(FOLDER)).code == 0
    assert run_here("cache", "verify", str(cache.path)).code == 0


def test_nothing_is_replaced_unless_asked_for(here):
    write_llamagen(*made_up())
    assert imported(FOLDER).rows("train") == 5
    before = files_of(here)
    assert run_here("cache", "import", str(FOLDER)).code == 0
    assert run_here("cache", "import", str(FOLDER), "--cache", "new.zarr", "--dry-run").code == 0
    assert_refused(run_here("cache", "import", str(FOLDER), "--size", "64", "-q"), 3, "image_size", "--overwrite")
    assert files_of(here) == before
    assert run_here("cache", "import", str(FOLDER), "--size", "64", "--overwrite").code == 0
    assert TokenCache(Path("cache/imagenet.zarr")).description.image_size == (64, 64)


def header_that_claims(rows):
    data = Path(FOLDER / "0.npy").read_bytes()
    return data.replace(b"(1, 2, 16)", b"(%d, 2, 16)" % rows)


DAMAGES = {
    "too large": (lambda: np.save(FOLDER / "3.npy", np.full((1, 2, 16), 16384)), "3.npy holds codes 16384 to 16384"),
    "negative": (lambda: np.save(FOLDER / "3.npy", np.full((1, 2, 16), -1)), "3.npy holds codes -1 to -1"),
    "fractions": (
        lambda: np.save(FOLDER / "3.npy", np.zeros((1, 2, 16))),
        "3.npy is not an .npy file of whole numbers",
    ),
    "another shape": (lambda: np.save(FOLDER / "3.npy", np.zeros((1, 2, 15), int)), "3.npy has shape (1, 2, 15)"),
    "other views": (lambda: np.save(FOLDER / "0.npy", np.zeros((1, 3, 16), int)), "0.npy has shape (1, 3, 16)"),
    "columns first": (
        lambda: np.save(FOLDER / "3.npy", np.zeros((1, 2, 16), int, order="F")),
        "3.npy is not an .npy file",
    ),
    "pickle": (lambda: (FOLDER / "3.npy").write_bytes(pickle.dumps([1])), "3.npy is not an .npy file"),
    "objects": (lambda: np.save(FOLDER / "3.npy", np.array([{}]), allow_pickle=True), "3.npy is not an .npy file"),
    "a bomb": (lambda: (FOLDER / "3.npy").write_bytes(header_that_claims(10**9)), "3.npy is not an .npy file"),
    "cut off": (
        lambda: (FOLDER / "3.npy").write_bytes((FOLDER / "3.npy").read_bytes()[:-1]),
        "3.npy is not an .npy file",
    ),
    "a bracket": (lambda: (LABELS / "3.npy").write_bytes(b"\x93NUMPY\1\0\1\0("), "3.npy is not an .npy file"),
    "empty": (lambda: (FOLDER / "3.npy").write_bytes(b""), "3.npy is not an .npy file"),
    "a gap": (lambda: (FOLDER / "3.npy").rename(FOLDER / "7.npy"), "has no 3.npy, but 7.npy"),
    "a label too few": (lambda: (LABELS / "4.npy").unlink(), "does not hold a label for each of the 5 files"),
    "no class": (lambda: np.save(LABELS / "3.npy", np.array([-1])), "imagenet256_labels/3.npy holds no class"),
    "a class too many": (lambda: np.save(LABELS / "3.npy", np.array([1000])), "imagenet has 1000 classes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_in_a_code_folder_is_named(here, name):
    write_llamagen(*made_up())
    damage, message = DAMAGES[name]
    damage()
    assert_refused(run_here("cache", "import", str(FOLDER), "-q"), 3, message)
    assert not Path("cache").exists()


LINES = {
    "": "has 0 lines",
    "{": "line 1 of",
    "[" * 10000: "line 1 of",
    '{"class_id": 1}': "line 1 of",
    '{"class_id": true, "tokens": [1]}': "line 1 of",
    '{"class_id": -1, "tokens": [1]}': "line 1 of",
    '{"class_id": 99999999999, "tokens": [1]}': "line 1 of",
    '{"class_id": 1, "tokens": [[1]]}': "line 1 of",
    '{"class_id": 1, "tokens": [1.0]}': "line 1 of",
    '{"class_id": 1, "tokens": ["1"]}': "line 1 of",
    '{"class_id": 1, "tokens": []}': "line 1 of",
    '{"class_id": 1, "tokens": [true, 5]}': "line 1 of",
    '{"class_id": 1, "tokens": "12"}': "line 1 of",
    '{"class_id": 1, "tokens": [1' + "0" * 5000 + "]}": "line 1 of",
    '{"class_id": 1, "tokens": [1024]}': "line 1 of pretokenized.jsonl holds codes 1024 to 1024",
    '{"class_id": 1, "tokens": [1]}\n{"class_id": 1, "tokens": [1, 2]}': "line 2 of pretokenized.jsonl has 2 tokens",
    '{"class_id": 1, "tokens": [1, 2]}': "2 tokens do not make up a grid of 1 x 1",
    " " * 2**20 + "{}": "more than",
}


@pytest.mark.parametrize("number", range(len(LINES)))
def test_damage_in_a_file_of_lines_is_named(here, number):
    text, message = list(LINES.items())[number]
    FILE.write_text(text)
    assert_refused(run_here("cache", "import", str(FILE), "-q"), 3, message)
    assert not Path("cache").exists()


def test_mistakes_are_named(here):
    codes, labels = made_up(rows=10, views=1)
    write_rar(codes, labels)
    assert_refused(run_here("cache", "import", str(FILE), "--views-per-image", "10", "-q"), 3, "lines 1 to 10")
    assert_refused(run_here("cache", "import", "nothing"), 4, "there is no nothing")
    Path("folder").mkdir()
    assert_refused(run_here("cache", "import", "folder", "-q"), 3, "folder is not a folder NAME_codes")
    write_llamagen(codes, labels)
    assert_refused(run_here("cache", "import", str(FOLDER), "--views-per-image", "10"), 2, "--views-per-image")
    for words in (["--dataset", "../x"], ["--views-per-image", "3"], ["--codebook-size", "0"], ["--cache", "x"]):
        assert_refused(run_here("cache", "import", str(FILE), *words), 2, words[0][2:].replace("-", "_"))


def test_no_memory_is_taken_for_files_that_are_smaller_than_the_first(here):
    codes, labels = made_up(rows=400, tokens=4)
    write_llamagen(codes, labels)
    np.save(FOLDER / "0.npy", np.zeros((1, 2, 60_000), np.int64))
    assert_refused(run_here("cache", "import", str(FOLDER)), 3, str(FOLDER), "too few for 400 files like 0.npy")
