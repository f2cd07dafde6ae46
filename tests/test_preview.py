"""`vqgpt cache preview`: right codes agree with their images, wrong ones are found, what is not at hand is told."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import OTHER_VQGAN, assert_refused, files_of, run_here
from vqgpt.commands.cache_preview import LEAST_BEYOND_CHANCE, Comparison, compare
from vqgpt.data.reading import read_digits
from vqgpt.progress import silent
from vqgpt.tokens import CacheWriter, TokenCache
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import decode_in_passes, psnr

DIGITS = Path("cache/digits.zarr")
PICTURE = Path("cache/digits-preview.png")


def preview(*arguments):
    outcome = run_here("cache", "preview", *map(str, arguments), "--json")
    assert outcome.code == 0, outcome.err
    return outcome


def images_of_digits(tokens):
    """The images of rows of the split test, (n, 1, 16, 16), by PIL alone."""
    source = read_digits()["test"].source
    images = [source.image(int(index)).resize((16, 16), Image.Resampling.BILINEAR) for index in tokens.source_index]
    return np.stack([np.asarray(image) for image in images])[:, None]


def rewrite(target, change):
    """A cache with the description of that of the digits, and other rows."""
    cache = TokenCache(DIGITS)
    writer = CacheWriter.create_or_resume(target, cache.description, cache.codebook(), {"vqgpt": "test"})
    for shard in writer.missing():
        writer.write(shard, *change(cache.read_split(shard.split, [shard.index])))
    return target


def shifted(tokens):
    """The codes of each image with the label and place of the next one: what a bug in the order of files makes."""
    return np.roll(tokens.codes, 1, axis=0), tokens.labels, tokens.source_index


def transposed(tokens):
    return tokens.codes.swapaxes(2, 3), tokens.labels, tokens.source_index


@pytest.mark.parametrize("split", ["train", "test"])
def test_right_codes_agree_exactly_with_their_images(pipeline, split):
    before = files_of(pipeline)
    outcome = preview(DIGITS, "--split", split, "--num-images", "9")
    result = outcome.json
    assert result["compared"]
    assert result["rows"] == result["equal_rows"] == 9
    assert result["equal_codes"] == 1
    assert result["psnr_db"] == result["psnr_db_of_codes_encoded_now"]
    assert {name for name in files_of(pipeline) if name not in before} == {str(PICTURE)}
    with Image.open(PICTURE) as picture:
        about = json.loads(picture.text["vqgpt"])
        assert picture.height > 4 * 64  # two rows of pairs
    cache = TokenCache(DIGITS)
    assert about["cache_digest"] == cache.digest
    assert len(set(about["source_index"])) == 9
    assert set(about["source_index"]) <= set(cache.read_split(split).source_index.tolist())


def test_psnr_is_that_of_the_decoded_rows(pipeline):
    count = TokenCache(DIGITS).rows("test")
    result = preview(DIGITS, "--split", "test", "--num-images", "100000").json
    assert result["rows"] == count
    tokens = TokenCache(DIGITS).read_split("test")
    model = load_vqgan(Path("runs/digits/vqgan.pt"), "digits", torch.device("cpu"))
    decoded = decode_in_passes(model, tokens.codes[:, 0], "fp32", silent)
    expected = psnr(torch.from_numpy(images_of_digits(tokens)), torch.from_numpy(decoded)).mean()
    assert result["psnr_db"] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("agreement", "db_lost", "wrong", "wrong_if_imported"),
    [(0.95, 3.0, False, False), (0.5, 0.5, True, False), (0.5, 1.5, True, True), (0.21, 0.1, True, True)],
)
def test_imported_codes_are_wrong_if_they_lose_much_or_agree_as_if_by_chance(
    agreement, db_lost, wrong, wrong_if_imported
):
    best = np.full(4, 20.0)
    comparison = Comparison(psnr=best - db_lost, best_psnr=best, agreement=np.full(4, agreement), chance=0.2)
    assert comparison.shows_wrong_codes(imported=False) == wrong
    assert comparison.shows_wrong_codes(imported=True) == wrong_if_imported


def test_agreement_beyond_chance_tells_codes_of_the_images_from_others(pipeline):
    tokens = TokenCache(DIGITS).read_split("test")
    model = load_vqgan(Path("runs/digits/vqgan.pt"), "digits", torch.device("cpu"))
    decoded = decode_in_passes(model, tokens.codes[:, 0], "fp32", silent)
    images = images_of_digits(tokens)[:, None]

    def beyond_chance(codes):
        return compare(model, images, codes.astype(np.uint8), decoded, "fp32", silent).beyond_chance

    one_in_eight = tokens.codes.copy()
    one_in_eight[..., ::8] ^= 1
    assert beyond_chance(tokens.codes) == 1
    assert 0.7 < beyond_chance(one_in_eight) < 1
    for codes in (15 - tokens.codes, np.full_like(tokens.codes, 3)):
        assert beyond_chance(codes) == pytest.approx(0, abs=0.2)
        assert beyond_chance(codes) < LEAST_BEYOND_CHANCE


@pytest.mark.parametrize("change", [shifted, transposed])
def test_wrong_codes_are_found_and_shown(pipeline, change):
    rewrite(Path("wrong.zarr"), change)
    assert run_here("cache", "verify", "wrong.zarr").code == 0
    outcome = run_here("cache", "preview", "wrong.zarr", "-q")
    assert_refused(outcome, 3, "wrong.zarr: only", "% of the codes", "wrong-preview.png", "do not train")
    assert Path("wrong-preview.png").exists()


def test_the_choice_of_rows_is_the_seeds(pipeline):
    def chosen(name, *more):
        preview(DIGITS, "--out", name, *more)
        with Image.open(name) as picture:
            return json.loads(picture.text["vqgpt"])["source_index"]

    assert chosen("a.png") == chosen("b.png")
    assert chosen("a.png", "--overwrite") != chosen("c.png", "--seed", "1")
    assert len(chosen("d.png", "--num-images", "3")) == 3


def test_views_are_compared_too(pipeline):
    words = ["--views", "identity,hflip", "--limit", "20", "--cache", "views.zarr"]
    assert run_here("tokenize", "--dataset", "digits", *words).code == 0
    assert preview("views.zarr").json["equal_codes"] == 1


def test_sampled_tokens_are_shown_alone(pipeline):
    outcome = preview("runs/digits/samples.zarr", "--out", "s.png")
    assert outcome.json == {"picture": "s.png", "split": "samples", "rows": 16, "compared": False}
    assert "no images to compare with" in outcome.err
    assert Path("s.png").exists()


def test_images_that_are_not_at_hand_are_told(pipeline):
    cache = TokenCache(DIGITS)
    elsewhere = replace(cache.description, dataset="mnist")
    writer = CacheWriter.create_or_resume(Path("m.zarr"), elsewhere, cache.codebook(), {"vqgpt": "test"})
    for shard in writer.missing():
        tokens = cache.read_split(shard.split, [shard.index])
        writer.write(shard, tokens.codes, tokens.labels, tokens.source_index)
    outcome = preview("m.zarr", "--checkpoint-vae", "runs/digits/vqgan.pt", "--data-root", "nowhere")
    assert outcome.json["compared"] is False
    assert "images of mnist are not in nowhere" in outcome.err
    assert not Path("nowhere").exists()


def test_other_images_and_other_vqgans_are_refused(pipeline):
    cache = TokenCache(DIGITS)
    other = replace(cache.description, source_sha256="0" * 64)
    writer = CacheWriter.create_or_resume(Path("o.zarr"), other, cache.codebook(), {"vqgpt": "test"})
    for shard in writer.missing():
        tokens = cache.read_split(shard.split, [shard.index])
        writer.write(shard, tokens.codes, tokens.labels, tokens.source_index)
    assert_refused(run_here("cache", "preview", "o.zarr", "-q"), 3, "000000000000", "vqgpt render o.zarr")
    assert run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--out", "o.pt").code == 0
    words = ["cache", "preview", str(DIGITS), "--checkpoint-vae", "o.pt", "-q"]
    assert_refused(run_here(*words), 3, "another VQ-GAN")
    assert not PICTURE.exists()


def test_mistakes_are_named_and_nothing_is_replaced(pipeline):
    assert_refused(run_here("cache", "preview", str(DIGITS), "--split", "val"), 3, "no split 'val'")
    assert_refused(run_here("cache", "preview", str(DIGITS), "--num-images", "0"), 2, "num_images")
    assert_refused(run_here("cache", "preview", str(DIGITS), "--out", "x.jpg"), 2, "out", ".png")
    PICTURE.write_bytes(b"mine")
    assert_refused(run_here("cache", "preview", str(DIGITS), "-q"), 2, f"{PICTURE} exists", "--overwrite")
    assert preview(DIGITS, "--overwrite", "--dry-run").json["rows"] == 16
    assert PICTURE.read_bytes() == b"mine"
    Path("runs/digits/vqgan.pt").unlink()
    assert_refused(run_here("cache", "preview", str(DIGITS), "--overwrite"), 4, "runs/digits/vqgan.pt")
