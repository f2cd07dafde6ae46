"""`vqgpt report`: what a run's page says looks wrong, what it holds, and what happens without parts of the run."""

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import OTHER_VQGAN, assert_refused, files_of, run_here
from vqgpt.api.options import EncoderOptions
from vqgpt.api.render import load_its_vqgan
from vqgpt.report.charts import MOST_POINTS, Chart, Series, svg
from vqgpt.report.diagnosis import findings
from vqgpt.report.facts import Codebook, RunFacts, Sheet, Stage
from vqgpt.report.gather import curves
from vqgpt.report.page import page
from vqgpt.report.sheets import Decoder, samples_by_class
from vqgpt.tokens import TokenCache

LARGEST_PAGE = 5_000_000  # bytes


def facts(**changed) -> RunFacts:
    """A run with which nothing is wrong."""
    losses = tuple({"epoch": epoch, "step": epoch, "held_out_bits_per_token": 3 / epoch} for epoch in range(1, 9))
    sound = RunFacts(
        name="digits",
        folder=Path("runs/digits"),
        stages={"train": Stage(configuration={"lr": 0.1}, curves=losses)},
        evaluations={},
        codebook=Codebook(counts=np.full(16, 50), rank=3.0, unverified=()),
        goes_together=(),
        environment={"torch": "2"},
        sheets=(),
        missing=(),
    )
    return replace(sound, **changed)


def evaluated(distance: float, of_reconstructions: float, **samples):
    figure = {"value": distance, "low": distance - 1, "high": distance + 1}
    features = {"weights": "abc"}
    return {
        "samples": {"figures": {"MIND": figure}, "features": features, "findings": [], **samples},
        "tokenizer": {"splits": {}, "held_out_MIND": of_reconstructions, "features": features},
    }


def with_losses(*losses: float) -> RunFacts:
    lines = tuple({"epoch": 5 * n, "step": n, "held_out_bits_per_token": loss} for n, loss in enumerate(losses, 1))
    return facts(stages={"train": Stage(curves=lines)})


DEAD = Codebook(counts=np.array([50] * 12 + [0] * 4), rank=3.0, unverified=())
BY_CLASS = {"samples": {"images": 50, "share": 0.8, "by_class": {"cat": 0.95, "dog": 0.2}}}
FEW_BY_CLASS = {"samples": {"images": 5, "share": 0.8, "by_class": {"cat": 0.95, "dog": 0.2}}}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (facts(), None),
        (facts(codebook=DEAD), "4 of 16 codes are dead"),
        (facts(codebook=replace(DEAD, counts=np.full(16, 9), rank=1.02)), "lie on a line"),
        (
            facts(codebook=replace(DEAD, counts=np.full(16, 9), unverified=("labels",))),
            "nothing vouches for its labels",
        ),
        (with_losses(2.0, 1.5, 1.1, 1.2, 1.9), "overfits since epoch 15"),
        (with_losses(2.0, 1.5, 1.1, 1.105), None),
        (with_losses(2.0), None),
        (facts(evaluations=evaluated(20, 18)), "the tokenizer limits the samples"),
        (facts(evaluations=evaluated(20, 4)), "the GPT limits the samples"),
        (facts(evaluations=evaluated(20, 11)), None),
        (facts(evaluations=evaluated(20, 11, class_consistency=BY_CLASS)), "dog (20%)"),
        (facts(evaluations=evaluated(20, 11, class_consistency=FEW_BY_CLASS)), None),
        (facts(evaluations=evaluated(20, 11, findings=["5 samples match a training image"])), "match a training image"),
        (facts(goes_together=("vqgan.pt is not the VQ-GAN",)), "is not the VQ-GAN"),
    ],
)
def test_what_looks_wrong_is_said_in_words_and_stands_on_the_page(run, said):
    found = findings(run)
    assert found == [] if said is None else said in " ".join(found)
    text = html.unescape(page([run]))
    assert all(finding in text for finding in found)
    assert ("None of the tests fired" in text) == (said is None)


def test_figures_in_other_features_are_not_compared():
    entries = evaluated(20, 18)
    entries["tokenizer"]["features"] = {"weights": "other"}
    assert findings(facts(evaluations=entries)) == []
    limited = evaluated(20, 18, findings=["the tokenizer limits the samples: MIND"])
    assert len(findings(facts(evaluations=limited))) == 1


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)
def test_a_curve_has_its_values_at_its_points_and_ends_where_it_ends(values, name):
    series = Series(name=name, x=tuple(range(len(values))), y=tuple(values))
    thinned = series.thinned(MOST_POINTS)
    assert len(thinned.x) <= MOST_POINTS
    assert (thinned.x[-1], thinned.y[-1]) == (len(values) - 1, values[-1])
    assert len(values) > MOST_POINTS or thinned == series


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=30), st.booleans())
def test_every_point_is_drawn(values, logarithmic):
    values = [abs(value) + 1e-30 for value in values] if logarithmic else values
    series = Series(name="a", x=tuple(range(len(values))), y=tuple(values))
    drawn = svg(Chart(title="t", x_title="x", unit="u", series=(series,), logarithmic=logarithmic))
    assert drawn.count("data-value") == len(values)


def test_large_images_are_made_smaller(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 3, 256, 256), dtype=np.uint8)
    sheet = Sheet(title="t", text="", images=images, captions=("",) * 96, columns=8)
    assert len(page([facts(sheets=(sheet,) * 2)])) < LARGEST_PAGE


def test_numbers_that_are_none_are_left_out_of_curves(tmp_path):
    lines = [
        '{"checkpoint": "gpt.pt", "step": 1, "epoch": 1, "loss": NaN}',
        '{"checkpoint": "gpt.pt", "step": 2, "epoch": 2, "loss": 3}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = facts(stages={"train": Stage(curves=tuple(curves(tmp_path / "metrics.jsonl", "gpt.pt")))})
    assert found.curve("train", "loss") == ([2.0], [3.0])


def test_charts_are_the_same_bytes_and_take_their_colours_from_the_page():
    series = (Series(name="a <b>", x=(1, 2, 3), y=(1.0, 10.0, 100.0)), Series(name="$c", x=(1, 3), y=(2.0, 3.0)))
    chart = Chart(title="Loss", x_title="epoch", unit="nats & more", series=series, logarithmic=True)
    drawn = svg(chart)
    assert drawn == svg(chart)
    assert re.findall(r'data-value="([^"]*)"', drawn) == [
        "a &lt;b&gt;, epoch 1: 1",
        "a &lt;b&gt;, epoch 2: 10",
        "a &lt;b&gt;, epoch 3: 100",
        "$c, epoch 1: 2",
        "$c, epoch 3: 3",
    ]
    assert drawn.count('tabindex="0"') == 2
    assert "var(--series-1)" in drawn
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) <= {"#ffffff"}
    assert "nats &amp; more" in drawn


def test_names_are_escaped():
    text = page([facts(name="<script>alert(1)</script>", missing=("<img src=x>",))])
    assert "<script>alert" not in text
    assert "<img src=x>" not in text


def test_the_page_of_a_run_is_one_file_with_all_that_is_there(pipeline):
    assert run_here("evaluate", "gpt", "--dataset", "digits").code == 0
    assert run_here("evaluate", "tokenizer", "--dataset", "digits", "--features", "classifier").code == 0
    before = files_of(pipeline)
    outcome = run_here("report", "runs/digits", "--json")
    assert outcome.code == 0, outcome.err
    written = Path("runs/digits/report.html")
    assert outcome.json["page"] == str(written)
    assert {name: data for name, data in files_of(pipeline).items() if name in before} == before
    text = written.read_text()
    assert len(text) < LARGEST_PAGE
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "http://" not in text.replace("http://www.w3.org/", "")
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(pictures) == 6
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width > 64
    for said in (
        "vqgpt vqgan train",
        "vqgpt train --",
        "vqgpt sample",
        "test: bits per token",
        "held-out PSNR",
        "test: psnr_db",
        "of perturbed codes",
    ):
        assert said in html.unescape(text), said
    assert run_here("report", "runs/digits").code == 0  # a page of ours is written anew
    written.write_text("<p>mine</p>")
    assert_refused(run_here("report", "runs/digits"), 2, "report.html", "--overwrite")
    assert run_here("report", "runs/digits", "--overwrite").code == 0


def test_what_is_gone_is_told_and_the_rest_is_shown(pipeline):
    shutil.rmtree("cache")
    Path("runs/digits/evaluation.json").unlink(missing_ok=True)
    with open("runs/digits/metrics.jsonl", "a") as file:
        file.write('{"half a li\n[1]\n{"checkpoint": "gpt.pt", "step": "no number"}\n')
    outcome = run_here("report", "runs/digits", "--json")
    assert outcome.code == 0, outcome.err
    text = html.unescape(Path("runs/digits/report.html").read_text())
    for said in ("the codes: ", "vqgpt tokenize", "vqgpt evaluate samples", "GPT: loss"):
        assert said in text, said


def test_samples_stand_by_class_and_gaps_are_white(pipeline):
    assert run_here("sample", "--dataset", "digits", "--num-samples", "12", "--overwrite").code == 0
    samples = TokenCache("runs/digits/samples.zarr")
    model = load_its_vqgan(samples.description, EncoderOptions(checkpoint_vae=Path("runs/digits/vqgan.pt")))
    sheet = samples_by_class(samples, Decoder(model=model))
    assert (len(sheet.images), sheet.columns) == (20, 2)
    assert sheet.captions == (
        "0",
        "0",
        "1",
        "1",
        "2",
        "",
        "3",
        "",
        "4",
        "",
        "5",
        "",
        "6",
        "",
        "7",
        "",
        "8",
        "",
        "9",
        "",
    )
    white = (sheet.images == 255).all(axis=(1, 2, 3))
    assert white.tolist() == [caption == "" for caption in sheet.captions]


def test_figures_of_other_samples_are_not_shown(pipeline):
    assert run_here("evaluate", "samples", "runs/digits/samples.zarr", "--features", "classifier").code == 0
    assert run_here("report", "runs/digits").code == 0
    page_before = html.unescape(Path("runs/digits/report.html").read_text())
    assert "FD-classifier" in page_before
    assert run_here("sample", "--dataset", "digits", "--num-samples", "12", "--seed", "5", "--overwrite").code == 0
    outcome = run_here("report", "runs/digits", "--json")
    text = html.unescape(Path("runs/digits/report.html").read_text())
    assert "FD-classifier" not in text
    assert "how good the samples are: what was measured was another one" in text
    assert not any("few" in finding for finding in outcome.json["findings"])


def test_samples_of_other_codes_are_not_shown(pipeline):
    run = ("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--n-embed", "8", "--overwrite")
    assert run_here(*run).code == 0
    assert run_here("tokenize", "--dataset", "digits", "--overwrite").code == 0
    outcome = run_here("report", "runs/digits", "--json")
    assert outcome.code == 0, outcome.err
    text = html.unescape(Path("runs/digits/report.html").read_text())
    assert "samples by class: tokenizer_sha256" in text
    assert "completions: runs/digits/gpt.pt was trained with codes 16" in text
    assert any("the GPT was trained on tokens of another VQ-GAN" in finding for finding in outcome.json["findings"])


def test_a_run_of_a_vqgan_alone(pipeline):
    for name in ("gpt.pt", "gpt.best.pt"):
        Path("runs/digits", name).unlink()
    shutil.rmtree("runs/digits/samples.zarr")
    Path("runs/digits").rename("runs/mine")
    outcome = run_here("report", "runs/mine", "--json")
    assert outcome.code == 0, outcome.err
    text = html.unescape(Path("runs/mine/report.html").read_text())
    assert "vqgpt evaluate tokenizer --dataset digits" in text
    assert "Reconstructions, the worst first" in text


def test_a_vqgan_of_another_run_is_noticed(pipeline):
    assert run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--overwrite").code == 0
    outcome = run_here("report", "runs/digits", "--json")
    assert outcome.code == 0, outcome.err
    assert any("the tokens were made with another VQ-GAN" in finding for finding in outcome.json["findings"])


def test_runs_side_by_side(pipeline):
    shutil.copytree("runs/digits", "runs/other")
    lines = [json.loads(line) for line in Path("runs/other/metrics.jsonl").read_text().splitlines()]
    Path("runs/other/metrics.jsonl").write_text("".join(f"{json.dumps({**line, 'loss': 7.5})}\n" for line in lines))
    outcome = run_here("report", "--compare", "runs/digits", "runs/other", "--json")
    assert outcome.code == 0, outcome.err
    text = html.unescape(Path("runs/comparison.html").read_text())
    assert "digits: training, epoch" in text
    assert "other: training, epoch 2: 7.5" in text
    assert text.index("Samples: digits") < text.index("Samples: other") < text.index("Completions: digits")


def test_wrong_words(here):
    assert_refused(run_here("report", "runs/none"), 4, "no run in runs/none", "vqgpt run")
    assert_refused(run_here("report", "a", "b"), 2, "2 runs", "--compare")
    assert_refused(run_here("report", "--compare", "a"), 2, "--compare", "two runs")
    assert_refused(run_here("report", "a", "--out", "page.txt"), 2, "page.txt", ".html")
    assert files_of(here) == {}
