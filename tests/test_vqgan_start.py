"""A VQ-GAN trained on from a checkpoint: what it takes from the file, what it refuses, and the decoder alone."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vqgpt
from tests.conftest import assert_refused, files_of, run_here
from tests.forked import fork_command
from tests.peer_checkpoints import gumbel_names, llamagen_names, taming_state
from tests.test_interruption import assert_same_training, lines_of, wait_for
from tests.test_vqgan_training import start_training
from vqgpt.api.image_sets import find_images
from vqgpt.api.options import SourceOptions, VQGANTrainConfig
from vqgpt.options.codec import to_json
from vqgpt.options.definition import resolve
from vqgpt.progress import silent
from vqgpt.tokens import CacheWriter, TokenCache
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import decoder_sha256, load_vqgan, tokenizer_sha256, vqgan_sha256
from vqgpt.vqgan.options import VQGANOptions

VQGAN = "runs/digits/vqgan.pt"
SHORT = ["--limit", "64", "--batch-size", "32", "--n-epochs", "1", "--lr", "1e-3"]
START = ["vqgan", "train", "--dataset", "digits", "--checkpoint-vae", VQGAN, *SHORT, "--out", "x/vqgan.pt"]
DECODER = [*START, "--train", "decoder"]


def load(path):
    return load_vqgan(Path(path), "digits", torch.device("cpu"))


def parts_that_differ(one, other):
    other = other.state_dict()
    return {name.split(".")[0] for name, tensor in one.state_dict().items() if not torch.equal(tensor, other[name])}


def test_weights_codes_and_architecture_come_from_the_file(pipeline):
    """With hardly any learning, the result is the file's network: its codes are not started again."""
    still = ["--lr", "1e-9", "--codebook-decay", "0.99999", "--val-split", "0.3", "--fit", "stretch"]
    outcome = run_here(*START, *still, "--json")
    assert outcome.code == 0, outcome.err
    before, after = load(VQGAN), load("x/vqgan.pt")
    assert after.config == before.config
    assert "decoder" in parts_that_differ(before, after)
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    content = torch.load("x/vqgan.pt", weights_only=True)
    assert content["configuration"]["checkpoint_vae"] == VQGAN
    assert "given" not in content["configuration"]


def test_codes_move_and_unused_ones_are_revived(pipeline):
    content = torch.load(VQGAN, weights_only=True)
    content["model"]["quantize.embedding.weight"][3] = 1e3  # no latent is near it
    torch.save(content, VQGAN)
    outcome = run_here(*START, "--codebook-decay", "0.5", "--revive-below", "0.5", "--n-epochs", "4")
    assert outcome.code == 0, outcome.err
    codes = load("x/vqgan.pt").quantize.vectors()
    assert codes[3].abs().max() < 100
    assert not torch.equal(codes[0], load(VQGAN).quantize.vectors()[0])


def test_another_size_is_the_result_s(here):
    torch.save(taming_state(image_channels=1, attn=()), "model.ckpt")
    words = ["vqgan", "train", "--dataset", "digits", "--checkpoint-vae", "model.ckpt", *SHORT, "--out", "y.pt"]
    outcome = run_here(*words, "--size", "12")
    assert outcome.code == 0, outcome.err
    assert (load("y.pt").config.size, load("model.ckpt").config.size) == (12, None)


@pytest.mark.parametrize("rename", [lambda state: state, llamagen_names])
@pytest.mark.parametrize("what", ["all", "decoder"])
def test_third_party_checkpoints_are_trained_on(here, rename, what):
    torch.save(rename(taming_state(image_channels=1)), "model.ckpt")
    words = ["vqgan", "train", "--dataset", "digits", "--checkpoint-vae", "model.ckpt", *SHORT, "--out", "y.pt"]
    outcome = run_here(*words, "--train", what, "--size", "16")
    assert outcome.code == 0, outcome.err
    before, after = load("model.ckpt"), load("y.pt")
    assert before.config.lookup == after.config.lookup
    moved = {"decoder", "post_quant_conv"}
    assert parts_that_differ(before, after) == (moved if what == "decoder" else {*moved, *before._modules})


@pytest.mark.parametrize("family", ["GumbelVQ", "IBQ"])
def test_codes_found_otherwise_than_by_distance_are_not_trained_and_the_decoder_is(here, family):
    state = taming_state(image_channels=1)
    if family == "GumbelVQ":
        torch.save(gumbel_names(state, 24), "model.pt")
    else:
        torch.save(state, "ibq.ckpt")
        assert run_here("vqgan", "import", "ibq.ckpt", "--lookup", "dot", "--out", "model.pt").code == 0
    words = ["vqgan", "train", "--dataset", "digits", "--checkpoint-vae", "model.pt", *SHORT, "--out", "y.pt"]
    assert_refused(run_here(*words, "-q"), 3, "model.pt", family, "--train decoder")
    outcome = run_here(*words, "--train", "decoder")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--channels", "64"], 3, ["--channels 64 contradicts runs/digits/vqgan.pt", "32"]),  # 64 is the default
        (["--ch-mult", "1", "2", "2"], 3, ["--ch-mult 1 2 2", "has 1 1"]),
        (["--n-embed", "128"], 3, ["--n-embed 128", "16"]),
        (["--l2-codes"], 3, ["--l2-codes on", "off"]),
        (["--attn-resolutions", "16"], 3, ["--attn-resolutions 16", "has 8"]),
        (["--attn-resolutions", "0"], 3, ["--attn-resolutions 0", "has 8"]),
        (["--image-channels", "3"], 3, ["takes images of 1 channels, digits has 3"]),
        (["--size", "15"], 3, ["size = 15"]),
        (["--size", "32"], 3, ["size = 32", "attention"]),
        (["--codebook-start", "kmeans"], 2, ["codebook_start = kmeans", "--checkpoint-vae"]),
        (["--normalise-latents"], 2, ["normalise_latents = True", "--checkpoint-vae"]),
        (["--out", VQGAN, "--overwrite"], 2, [VQGAN, "starts from", "--out"]),
        (["--out", VQGAN], 2, [VQGAN, "--out"]),
        (["--checkpoint-vae", "runs/digits/vqgan.best.pt", "--out", VQGAN, "--overwrite"], 2, ["best", "starts from"]),
        (["--checkpoint-vae", "none.pt"], 4, ["none.pt"]),
        (["--checkpoint-vae", "runs/digits/gpt.pt"], 3, ["runs/digits/gpt.pt", "gpt"]),
        *(
            (["--train", "decoder", f"--{name}", value], 2, [name.replace("-", "_"), "--train decoder"])
            for name, value in [
                ("codebook", "ema"),
                ("codebook-decay", "0.9"),
                ("revive-below", "0"),
                ("codebook-weight", "1.0"),
                ("remap", "used.npy"),
            ]
        ),
    ],
)
def test_what_does_not_go_with_the_checkpoint_is_refused(pipeline, options, code, words):
    before = files_of(pipeline)
    assert_refused(run_here(*START, *options, "-q"), code, *words)
    assert files_of(pipeline) == before


def test_a_recipe_contradicts_as_a_flag_does_and_what_agrees_is_no_contradiction(pipeline):
    Path("a.toml").write_text('[vqgan-train]\nembed_dim = 64\ncheckpoint_vae = "runs/digits/vqgan.pt"\n')
    words = [*START[:4], *SHORT, "--out", "x/vqgan.pt", "--recipe", "a.toml"]
    assert_refused(run_here(*words, "-q"), 3, "--embed-dim 64", "has 4")
    agreeing = [
        "--embed-dim",
        "4",
        "--channels",
        "32",
        "--ch-mult",
        "1",
        "1",
        "--attn-resolutions",
        "8",
        "--no-l2-codes",
    ]
    outcome = run_here(*words, *agreeing)
    assert outcome.code == 0, outcome.err


def test_every_option_of_the_network_is_compared():
    config = VQGANConfig.of(VQGANOptions(), 3, 32)
    other = {"channels": 96, "z_channels": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,)}
    other |= {"double_z": True, "n_embed": 64, "embed_dim": 8, "l2_codes": True, "norm_groups": 32, "patch": 2}
    given = set(to_json(VQGANOptions()))
    contradictions = config.contradictions(VQGANOptions(**other), given, 32)
    assert set(contradictions) == given - {"dropout", "remap"}
    assert contradictions["ch_mult"] == ((1, 2), (1, 2, 2))
    assert config.contradictions(VQGANOptions(**other), {"channels"}, 32) == {"channels": (96, 64)}
    assert config.contradictions(VQGANOptions(), given, 32) == {}


def test_the_decoder_alone_is_trained_and_the_cache_of_before_stays_valid(pipeline):
    adversary = ["--disc-start", "0", "--warmup", "0", "--ema", "0.5", "--dropout", "0.2", "--seed", "1"]
    cache, rendering = files_of(Path("cache")), ["render", "cache/digits.zarr", "--limit", "8"]
    outcome = run_here(*DECODER, *adversary)
    assert outcome.code == 0, outcome.err
    before, after = load(VQGAN), load("x/vqgan.pt")
    assert parts_that_differ(before, after) == {"decoder", "post_quant_conv"}
    assert tokenizer_sha256(after) == tokenizer_sha256(before)
    assert decoder_sha256(after) != decoder_sha256(before)
    assert "codebook_loss" not in lines_of(Path("x/metrics.jsonl"))[-1]
    for vqgan, out in ((VQGAN, "one.npz"), ("x/vqgan.pt", "two.npz")):
        outcome = run_here(*rendering, "--checkpoint-vae", vqgan, "--out", out)
        assert outcome.code == 0, outcome.err
    assert not np.array_equal(np.load("one.npz")["arr_0"], np.load("two.npz")["arr_0"])
    for words in (
        ["cache", "verify", "cache/digits.zarr"],
        ["cache", "verify", "cache/digits.zarr", "--repair", "--checkpoint-vae", "x/vqgan.pt"],
        ["tokenize", "--dataset", "digits", "--checkpoint-vae", "x/vqgan.pt"],
        ["cache", "preview", "cache/digits.zarr", "--checkpoint-vae", "x/vqgan.pt", "--out", "x/p.png"],
        ["sample", "--num-samples", "4", "--checkpoint-vae", "x/vqgan.pt", "--out", "x/samples.zarr"],
    ):
        outcome = run_here(*words)
        assert outcome.code == 0, outcome.err
    assert Path("x/samples.png").exists()
    assert files_of(Path("cache")) == cache
    gpt = vqgpt.load_gpt("runs/digits/gpt.pt")
    assert vqgpt.load_vqgan("x/vqgan.pt", tokens_of=gpt).decoder_sha256 == decoder_sha256(after)


def test_a_folder_of_pictures_is_of_one_decoder(pipeline):
    assert run_here(*DECODER).code == 0
    rendering = ["render", "cache/digits.zarr", "--limit", "2", "--out", "pictures"]
    assert run_here(*rendering).code == 0
    assert run_here(*rendering).code == 0  # complete
    assert_refused(run_here(*rendering, "--checkpoint-vae", "x/vqgan.pt", "-q"), 2, "pictures", "--overwrite")


def test_the_images_of_a_cache_are_those_of_one_decoder(pipeline):
    """Features that were kept for the images of one decoder are not taken for those of another."""
    assert run_here(*DECODER).code == 0
    found = [
        find_images("cache/digits.zarr", None, None, SourceOptions(checkpoint_vae=Path(vqgan)), silent)
        for vqgan in (VQGAN, "x/vqgan.pt", VQGAN)
    ]
    assert found[0].sha256 == found[2].sha256 != found[1].sha256
    assert not np.array_equal(found[0].images([0, 1]), found[1].images([0, 1]))


def test_the_decoder_needs_a_checkpoint(here):
    words = ["vqgan", "train", "--dataset", "digits", "--train", "decoder", "-q"]
    assert_refused(run_here(*words), 2, "--train decoder", "--checkpoint-vae")


def test_a_killed_training_of_the_decoder_continues_bit_for_bit_from_the_same_checkpoint_alone(pipeline):
    long = ["--limit", "32", "--batch-size", "16", "--n-epochs", "4", "--sample-and-save-freq", "1"]
    long += ["--dropout", "0.1", "--disc-start", "2", "--warmup", "1"]
    assert run_here(*DECODER, *long, "--out", "whole/vqgan.pt").code == 0
    command = [*DECODER, *long, "--out", "stopped/vqgan.pt"]
    process = fork_command(*command, cwd=pipeline)
    metrics = Path("stopped/metrics.jsonl")
    wait_for(lambda: metrics.exists() and len(lines_of(metrics)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    shutil.copy(VQGAN, "kept.pt")
    content = torch.load(VQGAN, weights_only=True)
    content["model"]["decoder.conv_out.bias"] += 1
    torch.save(content, VQGAN)
    assert_refused(run_here(*command, "-q"), 3, "stopped/vqgan.unfinished", "other settings (start")
    shutil.copy("kept.pt", VQGAN)
    outcome = run_here(*command)
    assert outcome.code == 0, outcome.err
    assert_same_training(Path("stopped"), Path("whole"), "vqgan.pt")


def test_the_library_and_a_recipe_train_decoders(pipeline):
    options = {"limit": 32, "n_epochs": 1, "lr": 1e-3, "out": "z/vqgan.pt"}
    tokenizer = vqgpt.train_vqgan(dataset="digits", checkpoint_vae=VQGAN, train="decoder", **options)
    assert tokenizer.sha256 == tokenizer_sha256(load(VQGAN))
    Path("b.toml").write_text(
        'dataset = "digits"\n[vqgan-train]\ncheckpoint_vae = "theirs.pt"\ntrain = "decoder"\nlimit = 32\nn_epochs = 1\n'
    )
    Path(VQGAN).rename("theirs.pt")
    words = ["run", "--recipe", "b.toml", "--until", "tokenize", "--json"]
    outcome = run_here(*words, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert tokenizer_sha256(load(VQGAN)) == tokenizer_sha256(load("theirs.pt"))
    again = run_here(*words)
    assert {stage["state"] for stage in again.json["stages"].values()} == {"up to date"}
    content = torch.load("theirs.pt", weights_only=True)
    content["model"]["decoder.conv_out.bias"] += 1
    torch.save(content, "theirs.pt")
    assert_refused(run_here(*words[:-1], "-q"), 2, "the VQ-GAN that it starts from changed", "--overwrite")


def test_a_decoder_s_step_moves_the_decoder_by_its_own_gradient():
    training = start_training(train="decoder", disc_weight=0.8, disc_start=0, warmup=0, grad_clip=0.0)
    model = training.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training.take_step(next(training.schedule.steps(0)))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith(("decoder.", "post_quant_conv."))}
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert training.codebook is None
    assert training.epoch_counts.sum() == 8 * 64


def test_identities_follow_the_part_that_they_are_of():
    model = start_training().model
    first = tokenizer_sha256(model), decoder_sha256(model), vqgan_sha256(model)
    assert len({*first}) == 3
    for name, tensor in model.state_dict().items():
        kept = tensor.clone()
        tensor += 1
        of_decoder = name.startswith(("decoder.", "post_quant_conv."))
        second = tokenizer_sha256(model), decoder_sha256(model), vqgan_sha256(model)
        assert [a == b for a, b in zip(first, second, strict=True)] == [of_decoder, not of_decoder, False], name
        tensor.copy_(kept)
    model.config = replace(model.config, dropout=0.5, size=None, attn_resolutions=None)
    assert (tokenizer_sha256(model), decoder_sha256(model)) == first[:2]
    model.config = replace(model.config, lookup="cosine")
    assert tokenizer_sha256(model) != first[0]


def as_recorded_before(model):
    """Give the cache and the GPT of the pipeline the identity that they had before 29 November 2026."""
    cache = TokenCache(Path("cache/digits.zarr"))
    what = replace(cache.description, tokenizer_sha256=vqgan_sha256(model))
    writer = CacheWriter.create_or_resume(Path("old.zarr"), what, cache.codebook(), {"vqgpt": "test"})
    for shard in list(writer.missing()):
        tokens = cache.read_split(shard.split)
        rows = slice(shard.start, shard.stop)
        writer.write(shard, tokens.codes[rows], tokens.labels[rows], tokens.source_index[rows])
    shutil.rmtree("cache/digits.zarr")
    Path("old.zarr").rename("cache/digits.zarr")
    content = torch.load("runs/digits/gpt.pt", weights_only=True)
    content["cache_description"]["tokenizer_sha256"] = vqgan_sha256(model)
    torch.save(content, "runs/digits/gpt.pt")


def test_caches_and_gpts_that_recorded_the_whole_vqgan_stay_of_use(pipeline):
    as_recorded_before(load(VQGAN))
    before = files_of(Path("cache"))
    damaged = next(file for file in Path("cache/digits.zarr/train/codes/c").rglob("*") if file.is_file())
    damaged.write_bytes(b"damaged")
    for words in (
        ["cache", "verify", "cache/digits.zarr", "--repair"],
        ["tokenize", "--dataset", "digits"],
        ["render", "cache/digits.zarr", "--out", "x.png"],
        ["sample", "--num-samples", "4", "--out", "y/samples.zarr"],
        ["sample", "--num-samples", "4", "--out", "z/samples.zarr", "--prompt", "cache:train/0"],
        ["render", "y/samples.zarr", "--out", "y.png"],
    ):
        outcome = run_here(*words)
        assert outcome.code == 0, outcome.err
    assert files_of(Path("cache")) == before
    assert Path("y/samples.png").exists()
    gpt = vqgpt.load_gpt("runs/digits/gpt.pt")
    assert vqgpt.load_vqgan(VQGAN, tokens_of=gpt)
    assert run_here(*DECODER).code == 0
    other = ["--checkpoint-vae", "x/vqgan.pt", "--out", "z.png", "-q"]  # whose encoder nothing recorded
    assert_refused(run_here("render", "cache/digits.zarr", *other), 3, "another VQ-GAN")


def test_latents_of_codes_that_are_directions_have_no_scale_to_normalise(here):
    command = ["vqgan", "train", "--dataset", "digits", "--l2-codes", "--dry-run", "-q"]
    assert run_here(*command, "--no-normalise-latents").code == run_here(*command).code == 0
    assert_refused(run_here(*command, "--normalise-latents"), 2, "normalise_latents", "--l2-codes")


def test_what_was_given_is_known_and_not_written():
    config = resolve(VQGANTrainConfig, {"channels": 64, "dataset": "digits", "seed": None})
    assert config.given == {"channels", "dataset"}
    assert config == resolve(VQGANTrainConfig, {"dataset": "digits"})
    assert "given" not in to_json(config)
