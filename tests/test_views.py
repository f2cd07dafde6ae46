"""Views that turn images, and a GPT that is told which one it sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY_GPT, TINY_VQGAN, assert_refused, description, run_here, write_cache
from tests.test_gpt import tiny_gpt
from tests.test_sampling import both_decoders, new_decoder
from vqgpt.data.images import prepare
from vqgpt.data.options import Preprocessing, PreprocessingOptions
from vqgpt.gpt.checkpoint import load_gpt
from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.model import GPT, with_one_view
from vqgpt.gpt.options import SamplingOptions
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.tokens import TokenCache

CPU = torch.device("cpu")
IDENTITY = "6f1010d1c965c8e79e9405184b818f760108daf04b01b2ffe94217cdcb43849d"
TURNED = ("identity", "rot90", "rot180", "rot270", "transpose")


def gpt_of_views(num_views=3, **changes):
    shape = tiny_gpt(**changes).config
    options = replace(shape.options, condition_view=True)
    model = GPT(replace(shape, options=options, num_views=num_views))
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def test_turned_views_are_those_of_numpy():
    pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    how = Preprocessing(size=8, channels=3, options=PreprocessingOptions(), views=TURNED)
    views = prepare(Image.fromarray(pixels), how).transpose(0, 2, 3, 1)
    expected = [*(np.rot90(pixels, turns) for turns in range(4)), pixels.transpose(1, 0, 2)]
    for view, turned in zip(views, expected, strict=True):
        assert (view == turned).all()


@both_decoders
@pytest.mark.parametrize("condition", ["none", "class", "bits"])
@torch.no_grad()
def test_the_view_is_told_with_the_start(condition, compiled):
    model, cells = gpt_of_views(condition=condition), tiny_gpt().cells
    codes, views = torch.randint(16, (3, 12)), torch.arange(3)
    labels = torch.tensor([[1, -1, 0]] * 3) if condition == "bits" else torch.tensor([-1, 2, 0])
    logits = model.predictions(codes, labels, cells, views)
    plain = model.predictions(codes, labels, cells)
    torch.testing.assert_close(plain[0], logits[0])
    assert not torch.allclose(plain[1:], logits[1:], atol=0.1)
    start, added = model.start(labels, views)
    decoder = new_decoder(model, 3, compiled)
    tokens = torch.cat([start, codes], dim=1)
    steps = [decoder.step(tokens[:, t], cells, t, None if t else added).clone() for t in range(12)]
    torch.testing.assert_close(torch.stack(steps, dim=1), logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_network_of_one_view_computes_what_the_plain_view_does():
    model = gpt_of_views(condition="class")
    weights, config = with_one_view(model.state_dict(), model.config)
    folded = GPT(config)
    folded.load_state_dict(weights)
    codes, labels = torch.randint(16, (3, 12)), torch.tensor([-1, 2, 0])
    expected = model.predictions(codes, labels, model.cells)
    torch.testing.assert_close(folded.eval().predictions(codes, labels, model.cells), expected, atol=1e-5, rtol=1e-5)


def test_samples_are_drawn_in_the_plain_view():
    model = gpt_of_views(condition="class")
    weights, config = with_one_view(model.state_dict(), model.config)
    folded = GPT(config)
    folded.load_state_dict(weights)
    labels = torch.tensor([0, 1, 2, -1])
    for options in (SamplingOptions(), SamplingOptions(cfg_scale=2.0)):
        ((codes, _),) = sample_codes(model, Asked.of_one_seed(labels, 0, options), "fp32")
        ((expected, _),) = sample_codes(folded.eval(), Asked.of_one_seed(labels, 0, options), "fp32")
        assert torch.equal(codes, expected)


def test_an_identity_without_views_is_as_it_was():
    """That of the first release, of weights that are all the same."""
    model = tiny_gpt()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    assert weights_sha256(model, model.config.identity) == IDENTITY
    assert gpt_of_views().config.identity["num_views"] == 3


def test_turned_views_are_encoded_trained_on_and_verified(here):
    assert run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN).code == 0
    outcome = run_here("tokenize", "--dataset", "digits", "--views", ",".join(TURNED), "--limit", "40")
    assert outcome.code == 0, outcome.err
    assert "--condition-view" in outcome.err
    assert TokenCache(Path("cache/digits.zarr")).description.views == TURNED
    assert run_here("cache", "verify", "cache/digits.zarr").code == 0
    outcome = run_here("train", *TINY_GPT, "--condition-view", "--condition", "class", "--out", "gpt.pt")
    assert outcome.code == 0, outcome.err
    model = load_gpt(Path("gpt.pt"), CPU).model
    assert model.config.num_views == len(TURNED)
    outcome = run_here("sample", "--checkpoint-gpt", "gpt.pt", "--out", "x.zarr", "--tokens-only")
    assert outcome.code == 0, outcome.err
    assert TokenCache(Path("x.zarr")).description.views == ("identity",)
    assert run_here("score", "cache/digits.zarr", "--checkpoint-gpt", "gpt.pt").code == 0


@pytest.mark.parametrize("views", [("identity",), ("rot90", "identity")])
def test_views_that_the_cache_does_not_hold(here, views):
    write_cache(Path("a.zarr"), description(views=views))
    outcome = run_here("train", "--cache", "a.zarr", *TINY_GPT, "--condition-view", "--out", "x.pt")
    assert_refused(outcome, 2, "a.zarr", *views, "--views identity,rot90", "--condition-view")


def test_a_file_whose_views_are_not_those_of_its_cache_is_refused(here):
    write_cache(Path("a.zarr"), description(views=("identity", "rot90")))
    command = ["train", "--cache", "a.zarr", *TINY_GPT, "--max-steps", "1"]
    assert run_here(*command, "--condition-view", "--out", "x.pt").code == 0
    content = torch.load("x.pt", weights_only=True)
    content["cache_description"]["views"] = ["identity"]
    torch.save(content, "x.pt")
    assert_refused(run_here("sample", "--checkpoint-gpt", "x.pt", "--tokens-only"), 3, "x.pt", "views")
    wrong = ["--condition-view", "--checkpoint-gpt", "y.pt", "--out", "z.pt"]
    assert run_here(*command, "--out", "y.pt").code == 0
    assert_refused(run_here(*command, *wrong), 3, "y.pt", "another architecture")
