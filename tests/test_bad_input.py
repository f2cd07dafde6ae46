"""Bad input: each is named, says what to do, has its exit code, and changes nothing."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import (
    OTHER_VQGAN,
    TINY_GPT,
    TINY_VQGAN,
    assert_refused,
    description,
    files_of,
    rows_of,
    run_here,
    write_cache,
)
from vqgpt.cli.running import explain
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.tokens import CacheWriter


def test_no_vqgan_yet(here):
    assert_refused(
        run_here("tokenize", "--dataset", "digits"), 4, "runs/digits/vqgan.pt", "vqgpt vqgan train --dataset digits"
    )


def test_no_cache_yet(here):
    assert_refused(run_here("train"), 4, "cache/", "vqgpt tokenize")
    assert_refused(run_here("train", "--dataset", "svhn"), 4, "cache/svhn.zarr", "vqgpt tokenize --dataset svhn")


def test_no_gpt_yet(here):
    assert_refused(run_here("sample"), 4, "vqgpt train")


def test_several_caches(here):
    write_cache(Path("cache/a.zarr"), description())
    write_cache(Path("cache/b.zarr"), description())
    assert_refused(run_here("train"), 2, "cache/a.zarr, cache/b.zarr", "--cache")


def test_a_cache_of_another_tokenizer(pipeline):
    outcome = run_here("vqgan", "train", "--dataset", "digits", *OTHER_VQGAN, "--overwrite")
    assert outcome.code == 0, outcome.err
    before = files_of(pipeline)
    assert_refused(run_here("tokenize", "--dataset", "digits"), 3, "tokenizer_sha256", "--overwrite")
    assert_refused(
        run_here("render", "runs/digits/samples.zarr", "--out", "x.png"), 3, "another VQ-GAN", "--checkpoint-vae"
    )
    assert files_of(pipeline) == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_shard(pipeline, damage):
    shard = Path("cache/digits.zarr/train/codes/c/0/0/0/0")
    data = shard.read_bytes()
    if damage == "delete":
        shard.unlink()
    else:
        shard.write_bytes(data[:50] if damage == "truncate" else data[:50] + bytes([data[50] ^ 4]) + data[51:])
    for command in (["train", "--out", "x.pt"], ["cache", "verify", "cache/digits.zarr"]):
        outcome = run_here(*command)
        assert_refused(outcome, 3, "train/codes/c/0/0/0/0", "vqgpt cache verify --repair cache/digits.zarr")
    assert run_here("cache", "verify", "--repair", "cache/digits.zarr").code == 0
    assert shard.read_bytes() == data
    assert run_here("cache", "verify", "cache/digits.zarr").code == 0


def test_an_unfinished_cache(here):
    write_cache(Path("cache/a.zarr"), description(), only_first=1)
    assert_refused(run_here("train"), 3, "not finished")


@pytest.mark.parametrize("kind", ["text", "empty", "foreign", "other kind", "truncated", "flipped"])
def test_a_checkpoint_that_is_not_one(pipeline, kind):
    path = Path("bad.pt")
    good = Path("runs/digits/vqgan.pt").read_bytes()
    if kind == "foreign":
        torch.save({"encoder.conv_in.weight": torch.zeros(3)}, path)
    elif kind == "other kind":
        shutil.copy("runs/digits/gpt.pt", path)
    elif kind == "flipped":
        with zipfile.ZipFile("runs/digits/vqgan.pt") as archive:
            weights = max(archive.infolist(), key=lambda item: item.file_size)
            position = weights.header_offset + 200 + weights.file_size // 2
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "truncated": good[: len(good) // 2]}[kind])
    outcome = run_here("tokenize", "--dataset", "digits", "--checkpoint-vae", "bad.pt", "--cache", "x.zarr")
    assert_refused(outcome, 3, "bad.pt")
    assert not Path("x.zarr").exists()


def test_a_checkpoint_that_would_run_code(here):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (Path("owned"),))

    torch.save({"format": "vqgpt checkpoint", "payload": Hostile()}, "bad.pt")
    assert_refused(run_here("sample", "--checkpoint-gpt", "bad.pt"), 3, "bad.pt")
    assert not Path("owned").exists()


def test_a_device_that_is_not_there(here):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert_refused(run_here("vqgan", "train", "--dataset", "digits", "--device", "cuda"), 2, "cuda", "--device auto")
    assert_refused(run_here("vqgan", "train", "--dataset", "digits", "--device", "gpu"), 2, "gpu", "cuda:N")


def test_a_folder_that_cannot_be_written(here):
    Path("file").write_text("not a folder")
    for command in (["vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--out", "file/vqgan.pt"],):
        assert_refused(run_here(*command), 3, "file")
    assert Path("file").read_text() == "not a folder"


def test_an_unknown_dataset(here):
    assert_refused(run_here("vqgan", "train", "--dataset", "digit"), 2, "digit", "digits")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "--n_layers", "3"], ["--n-layer", "vqgpt train --help"]),
        (["train", "--n-layer", "many"], ["--n-layer", "integer"]),
        (["tran"], ["tran", "vqgpt --help"]),
        (["cache", "inf"], ["inf", "vqgpt cache --help"]),
        (["render"], ["cache", "vqgpt render --help"]),
        (["vqgan", "train", "--codebook", "emma"], ["emma", "'ema'"]),
    ],
)
def test_what_the_command_line_has_wrong_is_named(here, command, words):
    assert_refused(run_here(*command), 2, *words)


@pytest.mark.parametrize("group", [[], ["vqgan"], ["cache"]])
def test_a_group_without_a_command_shows_its_help(group):
    outcome = run_here(*group)
    assert outcome.code == 2
    assert "Commands" in outcome.out


@pytest.mark.parametrize("command", ["tokenize", "vqgan train", "train", ""])
@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--sane_index_shape", "codes are grids"),
        ("--sane-index-shape=1", "codes are grids"),
        ("--colorize_nlabels", "1 or 3 channels"),
        ("--colorize-nlabels=5", "1 or 3 channels"),
    ],
)
def test_flags_of_generativezoo_that_are_not_here_are_refused_with_the_reason(here, command, flag, reason):
    name = flag.split("=")[0].replace("_", "-")
    outcome = run_here(*command.split(), "--dataset", "digits", flag)
    assert_refused(outcome, 2, f"vqgpt {command}".strip(), name, reason)


def test_results_are_not_overwritten(pipeline):
    before = files_of(pipeline)
    assert_refused(run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN), 2, "vqgan.pt", "--overwrite")
    assert_refused(run_here("train", *TINY_GPT), 2, "gpt.pt", "--overwrite")
    assert_refused(run_here("sample", "--seed", "5"), 2, "samples.png", "--overwrite")
    assert_refused(run_here("sample", "--seed", "5", "--tokens-only"), 3, "seed: 0 there, 5 here", "--overwrite")
    assert files_of(pipeline) == before


def test_a_block_size_that_contradicts_the_cache(pipeline):
    assert_refused(run_here("train", "--block_size", "49", "--out", "x.pt"), 2, "49", "8 x 8 = 64")


@pytest.mark.parametrize(
    "command",
    [
        ["vqgan", "train", "--dataset", "digits", "--size", "0"],
        ["vqgan", "train", "--dataset", "digits", "--out", "model"],
        ["tokenize", "--dataset", "digits", "--batch-size", "0"],
        ["tokenize", "--dataset", "digits", "--cache", "tokens"],
        ["render", "cache/digits.zarr", "--limit", "-1"],
        ["render", "cache/digits.zarr", "--out", "sheet.jpg"],
        ["vqgan", "reconstruct", "--dataset", "digits", "--num-images", "0"],
        ["sample", "--seed", "-1"],
        ["sample", "--out", "samples"],
    ],
)
def test_paths_and_numbers_that_cannot_be(pipeline, command):
    before = files_of(pipeline)
    assert_refused(run_here(*command), 2, command[-2].strip("-").replace("-", "_"))
    assert files_of(pipeline) == before


def test_an_unfinished_training_is_no_checkpoint(pipeline):
    content = torch.load("runs/digits/gpt.pt", weights_only=True)
    torch.save({**content, "kind": "gpt training"}, "bad.pt")
    assert_refused(run_here("sample", "--checkpoint-gpt", "bad.pt"), 3, "bad.pt is an unfinished training")


def test_images_of_other_channels(pipeline):
    for command in (["tokenize"], ["vqgan", "reconstruct"]):
        flags = ["--dataset", "bloodmnist", "--checkpoint-vae", "runs/digits/vqgan.pt"]
        assert_refused(run_here(*command, *flags), 3, "images of 1 channels, bloodmnist has 3")


def test_out_of_memory_on_a_cpu(here):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
    assert explain(error).exit_code == 5


def test_metrics_of_others_are_kept(pipeline):
    path = Path("runs/digits/metrics.jsonl")
    foreign = '{"a": 1}\n[1]\nnot json\n'
    path.write_text(path.read_text() + foreign)
    before = path.read_text()
    assert run_here("train", *TINY_GPT, "--out", "runs/digits/other.pt").code == 0
    assert path.read_text().startswith(before)


def test_a_picture_is_not_overwritten_by_sampling(pipeline):
    Path("mine.png").write_text("a picture of mine")
    assert_refused(run_here("sample", "--out", "mine.zarr"), 2, "mine.png", "--overwrite")
    assert not Path("mine.zarr").exists()


@pytest.mark.parametrize(
    "flags", [["--top-k", "0"], ["--temperature", "-1"], ["--num-samples", "0"], ["--precision", "fp8"]]
)
def test_values_out_of_range(pipeline, flags):
    assert run_here("sample", *flags, "--out", "x.zarr").code == 2
    assert not Path("x.zarr").exists()


def test_weights_that_are_not_finite(pipeline):
    content = torch.load("runs/digits/gpt.pt", weights_only=True)
    content["model"]["transformer.wte.weight"][0, 0] = torch.nan
    head = ("format", "version", "kind")
    save_checkpoint(Path("nan.pt"), "gpt", {name: value for name, value in content.items() if name not in head})
    for command in (
        ["sample", "--tokens-only", "--out", "x.zarr"],
        ["score", "cache/digits.zarr"],
        ["export", "x"],
        ["export", "x.safetensors", "--to", "safetensors"],
    ):
        refused = run_here(*command, "--checkpoint-gpt", "nan.pt", "-q")
        assert_refused(refused, 3, "nan.pt", "transformer.wte.weight", "not all finite")


def test_a_start_of_another_architecture(pipeline):
    start = ["train", "--checkpoint-gpt", "runs/digits/gpt.pt", "--condition", "class", "--out", "x.pt"]
    assert_refused(run_here(*start, *TINY_GPT, "--n-head", "4"), 3, "n_head: 2 there, 4 here")
    assert run_here(*start, *TINY_GPT, "--dropout-t", "0").code == 0


def test_a_start_of_another_grid_or_vocabulary(here):
    write_cache(Path("a.zarr"), description())
    assert run_here("train", "--cache", "a.zarr", *TINY_GPT, "--out", "a.pt").code == 0
    write_cache(Path("b.zarr"), description(grid=(3, 4)))
    write_cache(Path("c.zarr"), description(codebook_size=32))
    start = ["train", "--checkpoint-gpt", "a.pt", *TINY_GPT, "--out", "x.pt", "--cache"]
    before = files_of(here)
    assert_refused(run_here(*start, "b.zarr", "-q"), 3, "a.pt", "grid: [4, 3] there, [3, 4] here")
    assert_refused(run_here(*start, "c.zarr", "-q"), 3, "a.pt", "codebook_size: 16 there, 32 here")
    assert files_of(here) == before


def test_labels_outside_the_classes(here):
    what = description()
    writer = CacheWriter.create_or_resume(Path("a.zarr"), what, np.zeros((16, 2), np.float32), {})
    for shard in writer.missing():
        codes, labels, source_index = rows_of(shard, what)
        writer.write(shard, codes, labels + 1, source_index)
    assert_refused(run_here("train", *TINY_GPT, "--cache", "a.zarr", "-q"), 3, "labels outside -1..1", "verify")


@pytest.mark.parametrize(("rows", "split"), [((0, 30), "train"), ((30, 0), "test")])
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_an_empty_split(here, rows, split, stream):
    write_cache(Path("a.zarr"), description(rows=rows))
    command = ["train", "--cache", "a.zarr", *TINY_GPT, "--out", "x/gpt.pt", "-q", *stream]
    assert_refused(run_here(*command), 3, f"a.zarr: split '{split}' is empty", "tokenize")
    assert not Path("x").exists()


def test_classes_where_there_are_none(pipeline):
    assert run_here("train", "--out", "plain.pt", *TINY_GPT).code == 0
    assert_refused(run_here("sample", "--checkpoint-gpt", "plain.pt", "--class", "3"), 2, "without classes")
    write_cache(Path("bits.zarr"), description(label_kind="bits"))
    assert_refused(run_here("train", "--cache", "bits.zarr", "--condition", "class"), 2, "no classes")


def test_a_dataset_that_contradicts_the_cache_or_the_gpt(pipeline):
    assert_refused(run_here("train", "--dataset", "svhn", "--cache", "cache/digits.zarr"), 2, "is of dataset digits")
    gpt = ["--checkpoint-gpt", "runs/digits/gpt.pt"]
    assert_refused(run_here("sample", "--dataset", "svhn", *gpt), 2, "is of dataset digits")


def test_a_picture_is_not_overwritten_by_training(here):
    Path("mine.png").write_text("a picture of mine")
    outcome = run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--out", "mine.pt")
    assert_refused(outcome, 2, "mine.png", "--overwrite")
    assert Path("mine.png").read_text() == "a picture of mine"
