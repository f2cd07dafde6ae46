"""The commands as users meet them: flags in both spellings, precedence, files, errors and exit codes."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_GPT, TINY_VQGAN, description, files_of, run_here, write_cache
from vqgpt.cli.commands import COMMANDS, explain
from vqgpt.config.options import options_of
from vqgpt.tokens import TokenCache

DRY_VQGAN = ["vqgan", "train", "--dataset", "digits", "--size", "16", "--dry-run"]


def assert_refused(outcome, code, *words):
    """One line that names the thing, one that says what to do, no traceback, nothing on stdout."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    error = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    remedy = [line for line in outcome.err.splitlines() if line.startswith("  try: ")]
    assert len(error) == len(remedy) == 1, outcome.err
    for word in words:
        assert word in error[0] + remedy[0]


def test_help_needs_no_torch_and_names_every_command():
    code = (
        "import sys; from vqgpt.cli.app import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("tokenize", "train", "sample", "render", "doctor", "vqgan", "cache"):
        assert re.search(rf"^│ {command} ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "command", [["vqgan", "train"], ["tokenize"], ["train"], ["sample"], ["render"], ["cache", "info"]]
)
def test_options_stand_in_named_groups(command):
    out = run_here(*command, "--help").out
    groups = {option.group for option in options_of(COMMANDS["-".join(command)].config) if not option.is_argument}
    for group in {*groups, "Common"}:
        assert f"─ {group} ─" in out


def test_both_spellings_and_lists_are_understood(here):
    flags = ["--ch_mult", "1", "2", "2", "--z_channels=16", "--attn_resolutions", "8", "4", "--num_res_blocks", "1"]
    outcome = run_here(*DRY_VQGAN, *flags, "--double_z")
    assert outcome.code == 0, outcome.err
    assert "ch_mult=1 2 2" in outcome.err
    assert "z_channels=16" in outcome.err
    assert "attn_resolutions=8 4" in outcome.err
    assert "double_z=yes" in outcome.err


def test_betas_take_two_numbers(here):
    write_cache(Path("cache/a.zarr"), description())
    outcome = run_here("train", "--betas", "0.8", "0.99", "--dry-run", *TINY_GPT)
    assert outcome.code == 0, outcome.err
    assert "betas=0.8 0.99" in outcome.err


def test_flag_wins_over_environment_over_recipe_over_default(here, monkeypatch):
    Path("r.toml").write_text('dataset = "digits"\nsize = 16\n[vqgan-train]\nn_embed = 32\nlr = 0.5\nbatch_size = 7\n')
    monkeypatch.setenv("VQGPT_N_EMBED", "64")
    monkeypatch.setenv("VQGPT_LR", "0.25")
    monkeypatch.setenv("VQGPT_CH_MULT", "1 2")
    err = run_here("vqgan", "train", "--recipe", "r.toml", "--lr", "0.125", "--dry-run").err
    for text in ("n_embed=64", "lr=0.125", "batch_size=7", "ch_mult=1 2 ", "n_epochs=100", "dataset=digits"):
        assert text in err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("batchsize = 3", ["batchsize", "batch_size"]),
        ("[train]\nn_layers = 3", ["n_layers", "[train]", "n_layer"]),
        ("[trian]\nn_layer = 3", ["trian", "train"]),
        ("[vqgan-train]\nlr = true", ["lr", "float"]),
        ('[vqgan-train]\nch_mult = "1 2"', ["ch_mult", "a list of int"]),
        ('[vqgan-train]\ncodebook = "emma"', ["emma", "ema"]),
        ("[vqgan-train]\nchannels = 33", ["channels", "multiple of 32"]),
        ("n_layer = = 3", ["r.toml", "TOML"]),
    ],
)
def test_a_recipe_with_a_mistake_names_it(here, recipe, words):
    Path("r.toml").write_text(recipe)
    assert_refused(run_here("vqgan", "train", "--recipe", "r.toml", "--dry-run"), 2, *words)


def test_every_recipe_that_comes_with_vqgpt_fits_every_command(here):
    recipes = sorted((Path(__file__).parent.parent / "pipelines").glob("*.toml"))
    assert len(recipes) >= 13
    for recipe in recipes:
        outcome = run_here("vqgan", "train", "--recipe", recipe.stem, "--dry-run")
        assert outcome.code == 0, outcome.err
        assert f"dataset={recipe.stem}" in outcome.err


def test_a_dry_run_writes_nothing(here):
    assert run_here(*DRY_VQGAN).code == 0
    write_cache(Path("cache/a.zarr"), description())
    before = files_of(here)
    assert run_here("train", "--dry-run").code == 0
    assert files_of(here) == before


def test_a_dry_run_of_each_stage_downloads_and_writes_nothing(pipeline):
    before = files_of(pipeline)
    tokenize = ["tokenize", "--dataset", "mnist", "--checkpoint-vae", "runs/digits/vqgan.pt", "--data-root", "images"]
    for command in (tokenize, ["sample", "--tokens-only"]):
        outcome = run_here(*command, "--dry-run")
        assert outcome.code == 0, outcome.err
    assert files_of(pipeline) == before


def test_json_is_one_object_on_stdout(pipeline):
    for command in (
        ["cache", "info", "cache/digits.zarr"],
        ["cache", "list"],
        ["doctor"],
        ["render", "runs/digits/samples.zarr", "--out", "x.png"],
    ):
        outcome = run_here(*command, "--json")
        assert outcome.code == 0, outcome.err
        assert isinstance(outcome.json, dict)


def test_the_pipeline_leaves_what_it_promises(finished_pipeline):
    run = finished_pipeline / "runs/digits"
    names = {"vqgan.pt", "vqgan.png", "gpt.pt", "metrics.jsonl", "samples.png", "samples.zarr"}
    assert names == {path.name for path in run.iterdir()}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["vqgan", "gpt", "gpt"]
    assert records[0]["psnr_db"] > 5
    assert records[-1]["held_out_bits_per_token"] < 4.1
    gpt = torch.load(run / "gpt.pt", weights_only=True)
    assert gpt["configuration"]["model"]["n_layer"] == 1
    assert gpt["cache_digest"] == TokenCache(finished_pipeline / "cache/digits.zarr").digest
    samples = TokenCache(run / "samples.zarr")
    assert samples.read_split("samples").labels.tolist() == [*range(10), *range(10)]
    assert samples.description.sampling["temperature"] == 1.0


def test_the_same_command_gives_the_same_result(pipeline):
    before = (files_of(Path("runs/digits/samples.zarr")), files_of(Path("cache/digits.zarr")))
    gpt = torch.load("runs/digits/gpt.pt", weights_only=True)["model"]
    for command in (
        ["tokenize", "--dataset", "digits", "--cache", "again.zarr"],
        ["train", "--condition", "class", "--cache", "again.zarr", "--out", "again.pt", *TINY_GPT],
        [
            "sample",
            "--checkpoint-gpt",
            "again.pt",
            "--num-samples",
            "20",
            "--out",
            "again-samples.zarr",
            "--tokens-only",
        ],
    ):
        assert run_here(*command).code == 0
    assert (files_of(Path("again-samples.zarr")), files_of(Path("again.zarr"))) == before
    again = torch.load("again.pt", weights_only=True)["model"]
    assert all(torch.equal(again[name], tensor) for name, tensor in gpt.items())


def test_sampling_by_class(pipeline):
    outcome = run_here("sample", "--class", "3", "7", "none", "--num-samples", "5", "--out", "s.zarr", "--tokens-only")
    assert outcome.code == 0, outcome.err
    assert TokenCache(Path("s.zarr")).read_split("samples").labels.tolist() == [3, 7, -1, 3, 7]
    assert not Path("s.png").exists()
    assert_refused(run_here("sample", "--class", "seven", "--out", "t.zarr"), 2, "seven")
    assert_refused(run_here("sample", "--class", "10", "--out", "t.zarr"), 2, "'10'")


def test_sampling_without_a_vqgan_keeps_the_tokens(pipeline):
    Path("runs/digits/vqgan.pt").unlink()
    outcome = run_here("sample", "--num-samples", "2", "--out", "s.zarr")
    assert outcome.code == 0
    assert "no picture" in outcome.err
    assert TokenCache(Path("s.zarr")).read_split("samples").codes.shape == (2, 1, 8, 8)


def test_render_makes_a_sheet_or_a_folder(pipeline):
    assert run_here("render", "cache/digits.zarr", "--split", "test", "--limit", "3", "--out", "folder").code == 0
    assert sorted(path.name for path in Path("folder").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    assert run_here("render", "runs/digits/samples.zarr", "--out", "sheet.png").code == 0
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    assert_refused(run_here("render", "runs/digits/samples.zarr", "--out", "sheet.png"), 2, "sheet.png", "--overwrite")


def test_reconstruct_shows_figures(pipeline):
    outcome = run_here("vqgan", "reconstruct", "--dataset", "digits", "--out", "r.png", "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) >= {"psnr_db", "used_codes", "perplexity", "picture"}


def test_cache_info_and_list_tell_what_is_there(pipeline):
    info = run_here("cache", "info", "cache/digits.zarr", "--json").json
    assert info["grid"] == [8, 8]
    assert info["train_rows"] + info["test_rows"] == 1797
    assert 0 < info["train_entropy_bits_per_token"] <= 4
    assert "complete" in run_here("cache", "list").out
    assert run_here("cache", "list", "--json").json["digits.zarr"]["rows"] == 1797


class TestBadInput:
    """Each is named, says what to do, has its exit code, and changes nothing."""

    def test_no_vqgan_yet(self, here):
        assert_refused(
            run_here("tokenize", "--dataset", "digits"), 4, "runs/digits/vqgan.pt", "vqgpt vqgan train --dataset digits"
        )

    def test_no_cache_yet(self, here):
        assert_refused(run_here("train"), 4, "cache/", "vqgpt tokenize")
        assert_refused(run_here("train", "--dataset", "svhn"), 4, "cache/svhn.zarr", "vqgpt tokenize --dataset svhn")

    def test_no_gpt_yet(self, here):
        assert_refused(run_here("sample"), 4, "vqgpt train")

    def test_several_caches(self, here):
        write_cache(Path("cache/a.zarr"), description())
        write_cache(Path("cache/b.zarr"), description())
        assert_refused(run_here("train"), 2, "cache/a.zarr, cache/b.zarr", "--cache")

    def test_a_cache_of_another_tokenizer(self, pipeline):
        outcome = run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--seed", "1", "--overwrite")
        assert outcome.code == 0, outcome.err
        before = files_of(pipeline)
        assert_refused(run_here("tokenize", "--dataset", "digits"), 3, "tokenizer_sha256", "--overwrite")
        assert_refused(
            run_here("render", "runs/digits/samples.zarr", "--out", "x.png"), 3, "another VQ-GAN", "--checkpoint-vae"
        )
        assert files_of(pipeline) == before

    @pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
    def test_a_damaged_shard(self, pipeline, damage):
        shard = Path("cache/digits.zarr/train/codes/c/0/0/0/0")
        data = shard.read_bytes()
        if damage == "delete":
            shard.unlink()
        else:
            shard.write_bytes(data[:50] if damage == "truncate" else data[:50] + bytes([data[50] ^ 4]) + data[51:])
        for command in (["train", "--out", "x.pt"], ["cache", "verify", "cache/digits.zarr"]):
            outcome = run_here(*command)
            assert_refused(
                outcome, 3, "train/codes/c/0/0/0/0", "vqgpt tokenize --dataset digits --cache cache/digits.zarr"
            )
        assert run_here("tokenize", "--dataset", "digits", "--cache", "cache/digits.zarr").code == 0
        assert shard.read_bytes() == data
        assert run_here("cache", "verify", "cache/digits.zarr").code == 0

    def test_an_unfinished_cache(self, here):
        write_cache(Path("cache/a.zarr"), description(), only_first=1)
        assert_refused(run_here("train"), 3, "not finished")

    @pytest.mark.parametrize("kind", ["text", "empty", "foreign", "other kind", "truncated", "flipped"])
    def test_a_checkpoint_that_is_not_one(self, pipeline, kind):
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

    def test_a_checkpoint_that_would_run_code(self, here):
        class Hostile:
            def __reduce__(self):
                return (Path.touch, (Path("owned"),))

        torch.save({"format": "vqgpt checkpoint", "payload": Hostile()}, "bad.pt")
        assert_refused(run_here("sample", "--checkpoint-gpt", "bad.pt"), 3, "bad.pt")
        assert not Path("owned").exists()

    def test_a_device_that_is_not_there(self, here):
        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
        assert_refused(
            run_here("vqgan", "train", "--dataset", "digits", "--device", "cuda"), 2, "cuda", "--device auto"
        )
        assert_refused(run_here("vqgan", "train", "--dataset", "digits", "--device", "gpu"), 2, "gpu", "cuda:N")

    def test_a_folder_that_cannot_be_written(self, here):
        Path("file").write_text("not a folder")
        for command in (["vqgan", "train", "--dataset", "digits", *TINY_VQGAN, "--out", "file/vqgan.pt"],):
            assert_refused(run_here(*command), 3, "file")
        assert Path("file").read_text() == "not a folder"

    def test_an_unknown_dataset(self, here):
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
    def test_what_the_command_line_has_wrong_is_named(self, here, command, words):
        assert_refused(run_here(*command), 2, *words)

    @pytest.mark.parametrize("group", [[], ["vqgan"], ["cache"]])
    def test_a_group_without_a_command_shows_its_help(self, group):
        outcome = run_here(*group)
        assert outcome.code == 2
        assert "Commands" in outcome.out

    @pytest.mark.parametrize("flag", ["--no_wandb", "--disc_start", "--warmup", "--num-workers=4"])
    def test_flags_of_generativezoo_that_are_not_here_are_refused_with_the_reason(self, here, flag):
        assert_refused(run_here("vqgan", "train", "--dataset", "digits", flag), 2, flag.split("=")[0].replace("_", "-"))

    def test_results_are_not_overwritten(self, pipeline):
        before = files_of(pipeline)
        assert_refused(run_here("vqgan", "train", "--dataset", "digits", *TINY_VQGAN), 2, "vqgan.pt", "--overwrite")
        assert_refused(run_here("train", *TINY_GPT), 2, "gpt.pt", "--overwrite")
        assert_refused(run_here("sample", "--seed", "5"), 2, "samples.png", "--overwrite")
        assert_refused(run_here("sample", "--seed", "5", "--tokens-only"), 3, "seed: 0 there, 5 here", "--overwrite")
        assert files_of(pipeline) == before

    def test_a_block_size_that_contradicts_the_cache(self, pipeline):
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
    def test_paths_and_numbers_that_cannot_be(self, pipeline, command):
        before = files_of(pipeline)
        assert_refused(run_here(*command), 2, command[-2].strip("-").replace("-", "_"))
        assert files_of(pipeline) == before

    def test_an_unfinished_training_is_no_checkpoint(self, pipeline):
        content = torch.load("runs/digits/gpt.pt", weights_only=True)
        torch.save({**content, "kind": "gpt training"}, "bad.pt")
        assert_refused(run_here("sample", "--checkpoint-gpt", "bad.pt"), 3, "bad.pt is an unfinished training")

    def test_images_of_other_channels(self, pipeline):
        for command in (["tokenize"], ["vqgan", "reconstruct"]):
            flags = ["--dataset", "bloodmnist", "--checkpoint-vae", "runs/digits/vqgan.pt"]
            assert_refused(run_here(*command, *flags), 3, "images of 1 channels, bloodmnist has 3")

    def test_out_of_memory_on_a_cpu(self, here):
        error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
        assert explain(error).exit_code == 5

    def test_metrics_of_others_are_kept(self, pipeline):
        path = Path("runs/digits/metrics.jsonl")
        foreign = '{"a": 1}\n[1]\nnot json\n'
        path.write_text(path.read_text() + foreign)
        before = path.read_text()
        assert run_here("train", *TINY_GPT, "--out", "runs/digits/other.pt").code == 0
        assert path.read_text().startswith(before)

    def test_a_picture_is_not_overwritten_by_sampling(self, pipeline):
        Path("mine.png").write_text("a picture of mine")
        assert_refused(run_here("sample", "--out", "mine.zarr"), 2, "mine.png", "--overwrite")
        assert not Path("mine.zarr").exists()

    @pytest.mark.parametrize(
        "flags", [["--top-k", "0"], ["--temperature", "-1"], ["--num-samples", "0"], ["--precision", "fp8"]]
    )
    def test_values_out_of_range(self, pipeline, flags):
        assert run_here("sample", *flags, "--out", "x.zarr").code == 2
        assert not Path("x.zarr").exists()

    def test_a_start_of_another_architecture(self, pipeline):
        start = ["train", "--checkpoint-gpt", "runs/digits/gpt.pt", "--condition", "class", "--out", "x.pt"]
        assert_refused(run_here(*start, *TINY_GPT, "--n-head", "4"), 3, "n_head: 2 there, 4 here")
        assert run_here(*start, *TINY_GPT, "--dropout-t", "0").code == 0

    def test_classes_where_there_are_none(self, pipeline):
        assert run_here("train", "--out", "plain.pt", *TINY_GPT).code == 0
        assert_refused(run_here("sample", "--checkpoint-gpt", "plain.pt", "--class", "3"), 2, "without classes")
        write_cache(Path("bits.zarr"), description(label_kind="bits"))
        assert_refused(run_here("train", "--cache", "bits.zarr", "--condition", "class"), 2, "no classes")
