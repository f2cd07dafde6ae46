"""The smallest there is: a batch of one image, a split of one, a grid of one code, one class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY_GPT, assert_refused, description, files_of, run_here, write_cache
from vqgpt.tokens import TokenCache, read_manifest
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions

NETWORK = ["--channels", "32", "--z-channels", "4", "--embed-dim", "2", "--n-embed", "4", "--num-res-blocks", "1"]
NETWORK += ["--attn-resolutions", "1", "--n-epochs", "2", "--sample-and-save-freq", "1", "--lr", "1e-3"]
FOLDER = ["--dataset", "folder"]
IMAGES = [*FOLDER, "--data-root", "images"]


def write_images(side: int, train: int) -> None:
    """Images of one class, `train` of them to train on and one held out."""
    noise = np.random.default_rng(0)
    for split, count in (("train", train), ("val", 1)):
        Path("images", split, "all").mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"images/{split}/all/{number}.png")


def run(*arguments):
    outcome = run_here(*arguments)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("train", [1, 3])
def test_a_grid_of_one_code_goes_through_the_whole_pipeline(here, train):
    write_images(side=4, train=train)
    run("vqgan", "train", *IMAGES, *NETWORK, "--size", "4", "--ch-mult", "1", "1", "1", "--batch-size", "2")
    run("vqgan", "reconstruct", *IMAGES, "--num-images", "1")
    for batch_size in ("1", "2"):  # of 2, the last batch has one
        encode = ["tokenize", *IMAGES, "--views", "identity", "--batch-size", batch_size]
        run(*encode, "--cache", f"cache/by{batch_size}.zarr")
    assert files_of(Path("cache/by1.zarr")) == files_of(Path("cache/by2.zarr"))
    description = read_manifest(Path("cache/by1.zarr")).description
    assert (description.grid, [split.rows for split in description.splits]) == ((1, 1), [train, 1])
    run("train", "--cache", "cache/by1.zarr", "--condition", "class", "--batch-size", "1", *TINY_GPT)
    run("sample", *FOLDER, "--num-samples", "1")
    prompt = run_here("sample", *FOLDER, "--prompt", "cache:by1:train/0", "--out", "p.zarr", "-q")
    assert_refused(prompt, 2, "one code", "leave --prompt out")
    assert Path("runs/folder/samples.png").exists()
    run("render", "cache/by1.zarr", "--limit", "1")
    run("cache", "preview", "cache/by1.zarr", "--num-images", "1", "--data-root", "images")
    run("score", "cache/by1.zarr")


@pytest.mark.parametrize("side", [6, 8])  # pixels; the discriminator takes no less than 6
def test_the_discriminator_is_trained_on_one_image(here, side):
    write_images(side, train=1)
    grid_of_two = [] if side == 6 else ["1", "1"]
    early = ["--disc-start", "0", "--warmup", "0"]
    run("vqgan", "train", *IMAGES, *NETWORK, *early, "--size", str(side), "--ch-mult", "1", "1", *grid_of_two)


def test_an_image_of_one_code_is_encoded_and_decoded_as_in_a_batch():
    torch.manual_seed(0)
    options = VQGANOptions(channels=32, z_channels=4, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=16, embed_dim=4)
    model = VQGAN(VQGANConfig.of(options, image_channels=1, size=4)).eval()
    images = 2 * torch.rand(2, 1, 4, 4) - 1
    with torch.no_grad():
        latents, codes = model.latents(images), model.encode(images)
        decoded = model.decode(codes)
        for number in range(2):
            alone = slice(number, number + 1)
            torch.testing.assert_close(model.latents(images[alone]), latents[alone], rtol=0, atol=1e-6)
            assert torch.equal(model.encode(images[alone]), codes[alone])
            torch.testing.assert_close(model.decode(codes[alone]), decoded[alone], rtol=0, atol=2e-5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("codebook_size", [1, 2])
def test_a_gpt_of_few_codes_and_one_class(here, grid, codebook_size):
    size = (4 * grid[0], 4 * grid[1])
    what = description((1, 1), grid=grid, codebook_size=codebook_size, image_size=size, class_names=("a",))
    write_cache(Path("c.zarr"), what)
    gpt = ["train", "--cache", "c.zarr", "--out", "g.pt", *TINY_GPT]
    run(*gpt, "--condition", "class", "--order", "hilbert", "--batch-size", "1")
    run("sample", "--checkpoint-gpt", "g.pt", "--num-samples", "1", "--top-p", "0.9", "--out", "s.zarr")
    codes = TokenCache(Path("s.zarr")).read_split("samples").codes
    assert codes.shape == (1, 1, *grid)
    assert codes.max() < codebook_size
    run("score", "c.zarr", "--checkpoint-gpt", "g.pt")
