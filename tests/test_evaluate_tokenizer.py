"""`vqgpt evaluate tokenizer`: its figures against plain references, what it says of faults, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import assert_refused, files_of, run_here
from tests.forked import run_ranks
from vqgpt.evaluation.extractors import is_installed
from vqgpt.evaluation.tokenizer import (
    Reconstruction,
    findings_of_reconstructions,
    lpips_metric,
    nearest_codes_of,
    perturbed_codes,
    pixel_figures,
    pixel_figures_by_class,
)
from vqgpt.vqgan.perceptual import untrained_perceptual_loss

WORDS = ["evaluate", "tokenizer", "--dataset", "digits", "--features", "lite0", "--limit", "20"]
pytestmark = pytest.mark.skipif(not is_installed("lite0"), reason="the package of the lite0 features is absent")


def test_a_perturbed_code_is_near_to_the_one_it_replaces():
    vectors = torch.arange(100.0)[:, None]  # on a line: the nearest two are the neighbours
    neighbours = nearest_codes_of(vectors)
    assert neighbours.shape == (100, 2)
    codes = np.random.default_rng(0).integers(1, 99, (50, 8, 8))
    changed = perturbed_codes(codes, neighbours, 0.5, np.random.default_rng(1))
    assert set(np.unique(np.abs(changed - codes))) == {0, 1}
    assert 0.45 < (changed != codes).mean() < 0.55
    assert (perturbed_codes(codes, neighbours, 1.0, np.random.default_rng(1)) != codes).all()


@settings(max_examples=30, deadline=None)
@given(codes=st.integers(2, 60), dimensions=st.integers(1, 5), seed=st.integers(0, 99))
def test_neighbours_are_those_of_a_plain_search(codes, dimensions, seed):
    vectors = torch.randn(codes, dimensions, generator=torch.Generator().manual_seed(seed)).double()
    found = nearest_codes_of(vectors)
    for code in range(codes):
        distances = (vectors - vectors[code]).square().sum(dim=1)
        distances[code] = torch.inf
        expected = distances.sort().values[: found.shape[1]]
        torch.testing.assert_close(distances[torch.from_numpy(found[code])].sort().values, expected)


def test_lpips_is_the_perceptual_loss_of_bytes():
    loss = untrained_perceptual_loss("lpips")
    images = torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8)
    others = images.flip(3)
    lpips = lpips_metric(loss, torch.device("cpu"))
    assert lpips(images, images).tolist() == [0, 0, 0]
    torch.testing.assert_close(lpips(images, others), loss(images.float() / 127.5 - 1, others.float() / 127.5 - 1))


def test_figures_by_class_and_what_is_said_of_them():
    numbers = {"psnr_db": np.array([10.0, 20.0, 30.0, 40.0]), "lpips": np.array([0.4, 0.3, 0.2, 0.1])}
    found = Reconstruction(numbers=numbers, code_counts=np.array([80, 20, 0, 0]))
    figures = pixel_figures(found, seed=0)
    assert figures["metrics"]["psnr_db"]["value"] == 25
    assert figures["metrics"]["psnr_db"]["worst"] == 10
    assert figures["metrics"]["lpips"]["worst"] == 0.4
    assert (figures["used_codes"], figures["dead_codes"]) == (2, 2)
    assert figures["share_of_the_most_used_code"] == 0.8
    rows = pixel_figures_by_class(found, np.array([0, 0, 1, 1]), ("a", "b", "c"))
    assert rows["a"] == {"images": 2, "psnr_db": 15, "lpips": pytest.approx(0.35)}
    assert rows["c"] == {"images": 0, "psnr_db": None, "lpips": None}
    train = {"metrics": {"psnr_db": {"value": 27.0}}}
    said = "\n".join(findings_of_reconstructions({"train": train, "test": figures}, "test"))
    assert "2 of 4 codes are dead" in said
    assert "one code stands for 80% of all cells" in said
    assert "overfitted: 27.0 dB PSNR on training images, 25.0 on test" in said
    good = {**figures, "dead_codes": 0, "share_of_the_most_used_code": 0.1}
    assert list(findings_of_reconstructions({"test": good}, "test")) == []


def test_a_pipeline_is_measured_by_split_and_class_and_kept(pipeline):
    outcome = run_here(*WORDS, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert list(found["splits"]) == ["train", "test"]
    test = found["splits"]["test"]
    assert test["images"] == 20
    assert sum(row["images"] for row in test["by_class"].values()) == 20
    assert test["used_codes"] + test["dead_codes"] == 16
    assert test["perturbed_codes"]["MIND"]["value"] != test["reconstructions"]["MIND"]["value"]
    assert Path(found["pictures"]["worst"]).stat().st_size > 1000
    record = json.loads(Path("runs/digits/evaluation.json").read_text())
    assert record["tokenizer"][0]["held_out_MIND"] == test["reconstructions"]["MIND"]["value"]
    assert run_here(*WORDS, "--json").json["splits"] == found["splits"]
    shown = run_here(*WORDS).out
    assert "rMIND of test" in shown
    assert "dead codes" in shown


def test_all_images_give_the_figures_that_reconstruct_gives(pipeline):
    for split, count in (("train", 9), ("val", 12)):
        rng = np.random.default_rng(count)
        for number in range(count):
            file = Path("photos", split, "ab"[number % 2], f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(file)
    source = ["--dataset", "folder", "--data-root", "photos", "--checkpoint-vae", "runs/digits/vqgan.pt"]
    reconstructed = run_here("vqgan", "reconstruct", *source, "--json").json
    words = ["evaluate", "tokenizer", *source, "--split", "val", "--worst", "0", "--json"]
    found = run_here(*words, "--features", "lite0").json
    metrics = found["splits"]["val"]["metrics"]
    assert metrics["psnr_db"]["value"] == pytest.approx(reconstructed["psnr_db"], abs=1e-4)
    assert metrics["ssim"]["value"] == pytest.approx(reconstructed["ssim"], abs=1e-5)
    assert found["splits"]["val"]["perplexity"] == pytest.approx(reconstructed["perplexity"])
    assert found["pictures"] == {}
    by_classifier = run_here(*words, "--features", "classifier").json
    assert "FD-classifier" in by_classifier["splits"]["val"]["reconstructions"]


def test_without_perturbed_codes_the_other_figures_are_the_same(pipeline):
    expected = run_here(*WORDS, "--json").json["splits"]
    found = run_here(*WORDS, "--perturb", "0", "--json").json
    assert found["splits"] == {
        name: {key: figure for key, figure in split.items() if key != "perturbed_codes"}
        for name, split in expected.items()
    }
    assert "rMIND" in found["line"]
    assert "pMIND" not in found["line"]
    page = run_here("report", "runs/digits", "--overwrite")
    assert page.code == 0, page.err


def test_two_processes_find_the_same(pipeline):
    words = [*WORDS, "--split", "test", "--json"]
    expected = run_here(*words).json["splits"]
    for file in pipeline.rglob("*-lite0.npz"):
        file.unlink()
    result = run_ranks(2, "-m", "vqgpt", *words)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["splits"] == expected


def test_what_cannot_be_is_refused_and_a_dry_run_writes_nothing(pipeline):
    before = files_of(pipeline)
    assert run_here(*WORDS, "--dry-run").code == 0
    assert files_of(pipeline) == before
    assert_refused(run_here(*WORDS, "--split", "tset"), 2, "'tset'", "'test'")
    assert_refused(run_here(*WORDS, "--perturb", "1.5"), 2, "perturb")
    assert_refused(run_here(*WORDS, "--checkpoint-vae", "none.pt"), 4, "none.pt")
    Path("runs/digits/worst-reconstructions.png").write_bytes(b"mine")
    assert_refused(run_here(*WORDS), 2, "worst-reconstructions.png", "--overwrite")
