"""`vqgpt export`: transformers computes what our GPT computes, and safetensors files are as good as checkpoints."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.conftest import TINY_GPT, TINY_VQGAN, assert_refused, description, files_of, run_here, write_cache
from tests.peer_checkpoints import taming_state
from vqgpt.gpt.checkpoint import KIND, gpt_content, load_gpt
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.options.codec import to_json
from vqgpt.runtime.process import import_torchvision
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.tokens import TokenCache
from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_sha256

os.environ["HF_HUB_OFFLINE"] = "1"
TRAIN = ["--condition", "class", *TINY_GPT, "--out", "more.pt"]
CPU = torch.device("cpu")


@pytest.fixture
def transformers():
    """The library; it imports torchvision, whose operators may not load."""
    import_torchvision("models")
    import transformers

    return transformers


def save_gpt(path: Path, views: int = 0, **options) -> GPT:
    """A GPT with weights far from their start."""
    torch.manual_seed(0)
    what = description(views=("identity", "rot90")[: views or 1])
    classes = 2 if options.get("condition", "none") != "none" else 0
    config = GPTConfig(
        options=GPTOptions(n_layer=2, n_head=2, embed_dim_t=16, condition_view=views > 0, **options),
        codebook_size=16,
        grid=(4, 3),
        num_classes=classes,
        num_views=views,
    )
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    content = gpt_content(
        config, model.state_dict(), to_json(what), "d" * 64, torch.zeros(16, 2), {}, {"loss": 1.0}, []
    )
    save_checkpoint(path, KIND, content)
    return model.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("condition", ["none", "class"])
@pytest.mark.parametrize("views", [0, 2])
def test_transformers_computes_the_same_logits(here, transformers, bias, condition, views):
    model = save_gpt(Path("g.pt"), views, bias=bias, condition=condition)
    assert run_here("export", "hf", "--checkpoint-gpt", "g.pt").code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("hf")
    labels = torch.tensor([-1, -1]) if condition == "none" else torch.tensor([-1, 1])
    codes = torch.randint(16, (2, 12))
    tokens = torch.cat([model.start(labels)[0], codes[:, :-1]], dim=1)
    with torch.no_grad():
        expected, found = model.predictions(codes, labels, model.cells), theirs(tokens).logits
    torch.testing.assert_close(found[..., :16], expected, atol=1e-5, rtol=1e-5)
    assert found.shape[-1] == model.config.vocabulary_size - views


def test_transformers_generates_whole_grids_of_codes(here, transformers):
    model = save_gpt(Path("g.pt"), condition="class")
    model.transformer["wte"].weight.data[16:] *= 30  # start tokens would be likely
    content = torch.load("g.pt", weights_only=True)
    kept = {name: value for name, value in content.items() if name not in ("format", "version", "kind")}
    save_checkpoint(Path("g.pt"), KIND, {**kept, "model": model.state_dict()})
    assert run_here("export", "hf", "--checkpoint-gpt", "g.pt").code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("hf")
    start = torch.full((50, 1), 17)
    with torch.no_grad():
        assert theirs(start).logits[:, -1].argmax() % 19 >= 16  # and so they are
    drawn = theirs.generate(start)
    assert drawn.shape == (50, 13)
    assert drawn[:, 1:].max() < 16
    greedy = theirs.generate(start[:1], do_sample=False)[0, 1:]
    token, position = start[:1], []
    for _ in range(12):
        position.append(int(model(token, model.cells)[0, -1].argmax()))
        token = torch.cat([token, torch.tensor([[position[-1]]])], dim=1)
    assert greedy.tolist() == position


def test_the_lines_of_the_model_card_draw_grids(pipeline, transformers, monkeypatch):
    outcome = run_here("export", "hf", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["files"] == sorted(path.name for path in Path("hf").iterdir())
    monkeypatch.chdir("hf")
    card = Path("README.md").read_text()
    namespace: dict = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], namespace)
    grids, drawn, facts = namespace["grids"], namespace["drawn"], json.loads(Path("vqgpt.json").read_text())
    assert grids.shape == (4, 8, 8)
    assert torch.equal(grids.flatten(1)[:, facts["scan"]], drawn)
    model = load_vqgan(Path("../runs/digits/vqgan.pt"), "digits", CPU)
    assert facts["tokenizer_sha256"] == tokenizer_sha256(model)
    assert facts["tokenizer_sha256"] in card
    assert facts["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"arch": "llama"}, ["llama", "--to safetensors"]), ({"condition": "bits"}, ["bits", "--to safetensors"])],
)
def test_what_transformers_cannot_hold_is_refused_with_the_reason(here, options, words):
    save_gpt(Path("g.pt"), **options)
    assert_refused(run_here("export", "hf", "--checkpoint-gpt", "g.pt", "-q"), 2, *words)
    assert not Path("hf").exists()


def test_equal_exports_are_equal_and_nothing_is_replaced_unless_asked_for(pipeline):
    assert run_here("export", "hf").code == 0
    before = files_of(pipeline)
    assert_refused(run_here("export", "hf", "-q"), 2, "hf exists", "--overwrite")
    assert run_here("export", "hf", "--overwrite").code == 0
    assert run_here("export", "nowhere", "--dry-run").code == 0
    assert files_of(pipeline) == before
    Path("hf/mine.txt").write_text("mine")
    assert_refused(run_here("export", "hf", "--overwrite", "-q"), 3, "mine.txt")
    save_gpt(Path("g.pt"))
    Path("file").write_text("mine")
    assert_refused(run_here("export", "file", "--checkpoint-gpt", "g.pt", "--overwrite", "-q"), 2, "file is a file")


def test_a_folder_is_replaced_as_a_whole(pipeline):
    assert run_here("export", "hf").code == 0
    save_gpt(Path("g.pt"))
    assert run_here("export", "hf", "--checkpoint-gpt", "g.pt", "--overwrite").code == 0
    assert json.loads(Path("hf/config.json").read_text())["n_layer"] == 2
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("options", [{}, {"arch": "llama", "condition": "bits", "order": "hilbert"}])
def test_a_gpt_as_safetensors_is_the_same_gpt(here, options):
    model = save_gpt(Path("g.pt"), **options)
    for name in ("g.safetensors", "again.safetensors"):
        words = ["export", name, "--to", "safetensors", "--checkpoint-gpt", "g.pt"]
        assert run_here(*words).code == 0
    assert Path("g.safetensors").read_bytes() == Path("again.safetensors").read_bytes()
    ours, theirs = (load_gpt(Path(name), CPU, 8) for name in ("g.pt", "g.safetensors"))
    assert theirs.model.config == ours.model.config == model.config
    assert theirs.description == ours.description
    assert torch.equal(theirs.codebook, ours.codebook)
    states = (loaded.model.state_dict() for loaded in (ours, theirs))
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    assert "transformer.wte.weight" in safetensors.torch.load_file("g.safetensors")


def test_the_pipeline_runs_on_safetensors(pipeline):
    for words in (
        ["export", "gpt.safetensors", "--to", "safetensors"],
        ["export", "vae.safetensors", "--to", "safetensors", "--checkpoint-vae", "runs/digits/vqgan.pt"],
        ["tokenize", "--dataset", "digits", "--checkpoint-vae", "vae.safetensors", "--cache", "again.zarr"],
        ["sample", "--checkpoint-gpt", "gpt.safetensors", "--checkpoint-vae", "vae.safetensors", "--out", "s.zarr"],
        ["train", "--cache", "again.zarr", "--checkpoint-gpt", "gpt.safetensors", *TRAIN],
    ):
        outcome = run_here(*words)
        assert outcome.code == 0, outcome.err
    assert TokenCache(Path("again.zarr")).digest == TokenCache(Path("cache/digits.zarr")).digest
    samples = [
        TokenCache(Path(name)).read_split("samples").codes[:16] for name in ("s.zarr", "runs/digits/samples.zarr")
    ]
    np.testing.assert_array_equal(*samples)
    info, ours = (
        run_here("vqgan", "info", name, "--json").json for name in ("vae.safetensors", "runs/digits/vqgan.pt")
    )
    assert {**info, "file": "", "bytes": 0} == {**ours, "file": "", "bytes": 0}


def test_someone_elses_vqgan_becomes_safetensors(here):
    torch.save({"state_dict": taming_state()}, "theirs.ckpt")
    words = ["export", "ours.safetensors", "--to", "safetensors", "--checkpoint-vae", "theirs.ckpt"]
    assert run_here(*words).code == 0
    theirs, ours = (load_vqgan(Path(name), "x", CPU) for name in ("theirs.ckpt", "ours.safetensors"))
    assert tokenizer_sha256(ours) == tokenizer_sha256(theirs)


def test_damage_is_found(here):
    save_gpt(Path("g.pt"))
    assert run_here("export", "g.safetensors", "--to", "safetensors", "--checkpoint-gpt", "g.pt").code == 0
    write_cache(Path("c.zarr"), description())
    whole = Path("g.safetensors").read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    lied = whole.replace(b'n_head\\": 2', b'n_head\\": 4')
    assert lied != whole
    for damaged in (flipped, lied, whole[:-8], whole[: len(whole) // 2], whole[:20], b""):
        Path("g.safetensors").write_bytes(damaged)
        words = ["sample", "--checkpoint-gpt", "g.safetensors", "--tokens-only", "--out", "s.zarr", "-q"]
        assert_refused(run_here(*words), 3, "g.safetensors")


def test_mistakes_are_named(pipeline):
    assert_refused(run_here("export", "x.bin", "--to", "safetensors", "-q"), 2, "out", ".safetensors")
    assert_refused(run_here("export", "x.safetensors", "-q"), 2, "out", "--to safetensors")
    vae = ["--checkpoint-vae", "runs/digits/vqgan.pt"]
    assert_refused(run_here("export", "x", *vae, "-q"), 2, "to", "VQ-GAN")
    both = ["export", "x.safetensors", "--to", "safetensors", "--dataset", "digits", *vae, "-q"]
    assert_refused(run_here(*both), 2, "checkpoint_vae", "--checkpoint-gpt")
    as_gpt = ["--checkpoint-gpt", "runs/digits/vqgan.pt"]
    assert_refused(run_here("export", "x", *as_gpt, "-q"), 3, "vqgan.pt", "not of a gpt")
    assert_refused(run_here("export", "x", "--checkpoint-gpt", "none.pt", "-q"), 4, "none.pt")
    assert_refused(
        run_here("export", "x.safetensors", "--to", "safetensors", "--checkpoint-vae", "no.pt", "-q"), 4, "no"
    )
    assert not Path("x").exists()
    assert not Path("x.safetensors").exists()


def test_a_vqgan_as_safetensors_is_no_gpt(pipeline):
    words = ["export", "v.safetensors", "--to", "safetensors", "--checkpoint-vae", "runs/digits/vqgan.pt"]
    assert run_here(*words).code == 0
    assert_refused(run_here("sample", "--checkpoint-gpt", "v.safetensors", "--out", "s.zarr", "-q"), 3, "not of a gpt")
    assert run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--out", "o.pt", "--dry-run").code == 0
