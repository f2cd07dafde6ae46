"""One epoch of GPT training from a token cache, beside one that encodes every batch. The headline of this project.

    python benchmarks/cached_vs_online.py [--images 1024] [--rounds 2] [--device cpu]

Random images in a MedMNIST file (28 pixels, fed at 32), the default VQ-GAN, untrained, and the default GPT with batches
of 256. Both epochs are timed end to end: from the file (images, or tokens with their digests checked) through loading,
batches, and optimiser steps to the epoch's mean loss; both take the same steps on the same codes, so that the losses
are equal. Medians of interleaved rounds, and the time of `vqgpt tokenize`, which is needed once.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqgpt.api import tokenize
from vqgpt.api.options import TokenizeConfig
from vqgpt.api.train import load_token_grids
from vqgpt.data.images import load_tensor
from vqgpt.data.options import Preprocessing
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions
from vqgpt.gpt.token_grids import TokenGrids, TrainingRows
from vqgpt.gpt.training import GPTTraining
from vqgpt.options.definition import resolve
from vqgpt.progress import silent
from vqgpt.runtime.device import resolve_precision, resolve_precision_of_products, select_device
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.tokens import TokenCache
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import KIND, load_vqgan, vqgan_content
from vqgpt.vqgan.coding import encode_images
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions

SIZE = 32
ENCODED_AT_ONCE = 64


class EncodedRows:
    """Batches whose images are encoded when they are asked for: what training without a cache is."""

    num_views = 1

    def __init__(self, images: Tensor, vqgan: VQGAN, architecture: GPTConfig, precision: str) -> None:
        self.images, self.vqgan, self.architecture, self.precision = images, vqgan, architecture, precision
        self.device = next(vqgan.parameters()).device

    def batch(self, epoch: int, rows: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `TokenGrids.batch`."""
        parts = self.images[rows][:, None].numpy()
        batches = [parts[first : first + ENCODED_AT_ONCE] for first in range(0, len(parts), ENCODED_AT_ONCE)]
        codes = np.concatenate([encode_images(self.vqgan, batch, self.precision) for batch in batches])
        nothing = torch.full((len(rows),), -1, device=self.device)
        grids = TokenGrids.of(torch.from_numpy(codes).to(self.device), nothing, self.architecture)
        everything = torch.arange(len(rows))
        return grids.batch(epoch, everything, torch.zeros_like(everything))


def mean_loss_of_an_epoch(
    rows: TrainingRows, count: int, architecture: GPTConfig, precision: str, device: torch.device
) -> float:
    """A new GPT, and one epoch of its training."""
    torch.manual_seed(0)
    options = GPTTrainingOptions(n_epochs=1)
    schedule = Schedule(seed=0, num_rows=count, batch_size=options.batch_size, n_epochs=1)
    nothing = torch.zeros(1, 1, *architecture.grid, dtype=torch.uint8, device=device)
    held_out = TokenGrids.of(nothing, torch.full((1,), -1, device=device), architecture)
    training = GPTTraining(GPT(architecture).to(device), rows, held_out, options, schedule, precision)
    losses = [training.take_step(step)["loss"] for step in schedule.steps(0)]
    return sum(map(float, losses)) / len(losses)


def main() -> None:
    """Print the two times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_memory_pages()
    device = select_device(arguments.device)
    encoding, precision = resolve_precision("auto", device), resolve_precision_of_products("auto", device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random, arrays = np.random.default_rng(0), {}
        for split, count in (("train", arguments.images), ("val", 1), ("test", 1)):
            arrays[f"{split}_images"] = random.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.zeros((count, 1), dtype=np.uint8)
        np.savez(folder / "bloodmnist.npz", allow_pickle=False, **arrays)
        torch.manual_seed(0)
        vqgan = VQGAN(VQGANConfig.of(VQGANOptions(), 3, SIZE))
        save_checkpoint(folder / "vqgan.pt", KIND, vqgan_content(vqgan, vqgan.state_dict(), "", {}, {}))
        paths = {"data_root": folder, "checkpoint_vae": folder / "vqgan.pt", "cache": folder / "cache.zarr"}
        given = {**paths, "dataset": "bloodmnist", "size": SIZE, "views": ("identity",), "device": str(device)}
        config = resolve(TokenizeConfig, {**given, "precision": encoding, "batch_size": ENCODED_AT_ONCE})
        grid = vqgan.config.grid(SIZE)
        architecture = GPTConfig(options=GPTOptions(), codebook_size=vqgan.config.n_embed, grid=grid, num_classes=0)

        def cached() -> float:
            rows = load_token_grids(TokenCache(folder / "cache.zarr"), "train", architecture, device)
            return mean_loss_of_an_epoch(rows, arguments.images, architecture, precision, device)

        def online() -> float:
            split = read_dataset(find_dataset("bloodmnist"), config.images, SIZE, silent).splits["train"]
            preprocessing = Preprocessing(size=SIZE, channels=3, options=config.images.preprocessing)
            images = load_tensor(split, preprocessing, config.images.workers, "train", silent)
            encoder = load_vqgan(folder / "vqgan.pt", "bloodmnist", device)
            rows = EncodedRows(images, encoder, architecture, encoding)
            return mean_loss_of_an_epoch(rows, arguments.images, architecture, precision, device)

        start = time.perf_counter()
        tokenize.run(config, False, False, silent)
        print(f"vqgpt tokenize, once: {time.perf_counter() - start:.1f} s, {arguments.images} images", flush=True)
        times: dict[str, list[float]] = {"cached": [], "online": []}
        for _ in range(arguments.rounds):
            for kind, epoch in (("cached", cached), ("online", online)):
                start = time.perf_counter()
                loss = epoch()
                times[kind].append(time.perf_counter() - start)
                print(f"{kind}: {times[kind][-1]:.1f} s, loss {loss:.5f}", flush=True)
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"an epoch from the cache is {middle['online'] / middle['cached']:.1f} times as fast")


if __name__ == "__main__":
    main()
