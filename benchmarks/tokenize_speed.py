"""Does the encoder ever wait for images? Tokenizing beside the bare encoder, from memory and from JPEG files.

    python benchmarks/tokenize_speed.py [--images 768] [--rounds 3] [--workers 0 1 2]

Random images in the two genuine forms: a MedMNIST file (28 pixels, fed at 32) and a folder of JPEG photographs
(500 x 375, fed at 128), with the default VQ-GAN, untrained. Per form and number of threads: images/s of `vqgpt
tokenize` from its first batch to its last, of the bare encoder on a fixed batch, and their ratio; then how many
images/s the threads alone prepare. Medians of interleaved rounds. Where the encoder runs on the same cores as the
threads, the ratio that is possible is 1 / (1 + encoder's speed / threads' speed).
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqgpt.api import tokenize
from vqgpt.api.options import TokenizeConfig
from vqgpt.data.images import prepared_batches, row_batches
from vqgpt.data.options import Preprocessing
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.options.definition import resolve
from vqgpt.progress import Event, Progress, silent
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import KIND, vqgan_content
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions

PHOTO = (375, 500)
BATCH = 64
FORMS = {"bloodmnist": 32, "folder": 128}


def write_images(root: Path, count: int) -> None:
    """A MedMNIST file, and a folder of photographs: smooth random colors with noise, as hard to decode as real ones."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, images in (("train", count), ("val", BATCH), ("test", BATCH)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (images, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.zeros((images, 1), dtype=np.uint8)
    np.savez(root / "bloodmnist.npz", allow_pickle=False, **arrays)
    (root / "photos/one").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PHOTO[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (smooth + generator.integers(-12, 13, (*PHOTO, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"photos/one/{number:05d}.jpg", quality=90)


def config_for(form: str, root: Path, workers: int) -> TokenizeConfig:
    """`vqgpt tokenize` of one form."""
    return resolve(
        TokenizeConfig,
        {
            "dataset": form,
            "data_root": root / ("photos" if form == "folder" else ""),
            "size": FORMS[form],
            "checkpoint_vae": root / "vqgan.pt",
            "cache": root / "cache.zarr",
            "views": ("identity",),
            "num_workers": workers,
            "batch_size": BATCH,
        },
    )


def tokenize_images_per_second(config: TokenizeConfig) -> float:
    """The rate at which a cache is filled, from the first batch to the end."""
    events: list[tuple[float, int]] = []

    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.task == "tokenize":
            events.append((time.perf_counter(), event.done))

    tokenize.run(config, True, False, report)
    (start, first), (end, last) = events[0], events[-1]
    return (last - first) / (end - start)


def encoder_images_per_second(model: VQGAN, size: int) -> float:
    """The bare encoder on one fixed batch, for about as long."""
    images = torch.rand(BATCH, 3, size, size) * 2 - 1
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(3):
            model.encode(images)
    return 3 * BATCH / (time.perf_counter() - start)


def prepared_images_per_second(config: TokenizeConfig) -> float:
    """Reading, decoding and resizing alone."""
    dataset = find_dataset(config.images.dataset)
    split = read_dataset(dataset, config.images, FORMS[dataset.name], silent).splits["train"]
    how = Preprocessing(size=FORMS[dataset.name], channels=3, options=config.images.preprocessing)
    start = time.perf_counter()
    for _ in prepared_batches(split, row_batches(0, len(split), BATCH), how, config.images.workers):
        pass
    return len(split) / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    keep_memory_pages()
    print(f"{'images':12} {'threads':>7} {'tokenize':>9} {'encoder':>9} {'ratio':>6} {'prepared':>9}  (images/s)")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, arguments.images)
        for form, size in FORMS.items():
            torch.manual_seed(0)
            model = VQGAN(VQGANConfig.of(VQGANOptions(), 3, size)).eval()
            save_checkpoint(root / "vqgan.pt", KIND, vqgan_content(model, model.state_dict(), "", {}, {}))
            encoder_images_per_second(model, size)  # to warm up
            for workers in arguments.workers:
                config = config_for(form, root, workers)
                rounds = [
                    (
                        tokenize_images_per_second(config),
                        encoder_images_per_second(model, size),
                        prepared_images_per_second(config),
                    )
                    for _ in range(arguments.rounds)
                ]
                whole, bare, prepared = (statistics.median(column) for column in zip(*rounds, strict=True))
                print(f"{form:12} {workers:7} {whole:9.1f} {bare:9.1f} {whole / bare:6.2f} {prepared:9.1f}")


if __name__ == "__main__":
    main()
