"""Which GPT learns most in equal time: held-out bits per token of architecture x order x optimiser.

    python benchmarks/gpt_variants.py --mnist-cache MNIST.zarr --cifar10-cache CIFAR10.zarr

A GPT with classes (2 layers, 4 heads, width 80: the architectures differ by 2 % of their parameters) is trained from
a token cache in batches of 32 images, less than an epoch, by one thread. Every variant has the same `--seconds` of CPU
time, not of the clock, since the machine may be shared. What a step of each takes is measured first, interleaved; then
each takes as many steps as fit, its learning rate one cycle over them. The peak rate is chosen for each architecture
and optimiser on the first dataset, with seed 0 and one order, by held-out images that are not in the tables. Results
are appended to the --out file as they come, and what is there is not run again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from vqgpt.api.train import load_token_grids
from vqgpt.data.table import held_out_split
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions
from vqgpt.gpt.order import Order
from vqgpt.gpt.training import GPTTraining, held_out_figures
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.tokens import TokenCache
from vqgpt.training.schedule import Schedule

Record = dict[str, Any]
Kind = tuple[Literal["gpt2", "llama"], Literal["adamw", "muon"]]  # architecture and optimiser

KINDS: list[Kind] = [("gpt2", "adamw"), ("gpt2", "muon"), ("llama", "adamw"), ("llama", "muon")]
LRS = {"adamw": [4e-3, 8e-3, 1.6e-2], "muon": [1.6e-2, 3.2e-2, 6.4e-2]}
ORDERS: list[Order] = ["s-pattern", "raster", "hilbert"]
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "embed_dim_t": 80, "dropout_t": 0.0, "condition": "class"}
BATCH_SIZE = 32
WARMUP = 0.1  # of the steps
JUDGED, CHOSEN_BY = 1000, 500  # held-out images for the table, and for the learning rates
TIMED_ROUNDS, TIMED_STEPS = 8, 3


def new_training(cache: TokenCache, kind: Kind, order: Order, lr: float, seed: int, steps: int) -> GPTTraining:
    """A GPT about to take so many steps; held out are the images of the table, then those that choose the rate."""
    (arch, optimizer), description = kind, cache.description
    config = GPTConfig(
        options=GPTOptions(arch=arch, order=order, **SIZES),
        codebook_size=description.codebook_size,
        grid=description.grid,
        num_classes=len(description.class_names),
    )
    cpu = torch.device("cpu")
    train = load_token_grids(cache, "train", config, cpu)
    test = load_token_grids(cache, held_out_split(cache.split_names, str(cache.path)), config, cpu)
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: JUDGED + CHOSEN_BY]
    schedule = Schedule(seed=seed, num_rows=len(train), batch_size=BATCH_SIZE, n_epochs=steps, max_steps=steps)
    options = GPTTrainingOptions(
        batch_size=BATCH_SIZE, lr=lr, optimizer=optimizer, warmup=WARMUP * steps / schedule.steps_per_epoch
    )
    torch.manual_seed(seed)
    held_out = replace(test, codes=test.codes[rows], labels=test.labels[rows])
    return GPTTraining(GPT(config), train, held_out, options, schedule, "fp32")


def time_steps(cache: TokenCache) -> Record:
    """CPU seconds of a step of each architecture and optimiser: medians of interleaved rounds, the first left out."""
    steps = TIMED_ROUNDS * TIMED_STEPS
    trainings = {kind: new_training(cache, kind, ORDERS[0], 1e-3, 0, steps) for kind in KINDS}
    streams = {kind: training.schedule.steps(0) for kind, training in trainings.items()}
    times: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(TIMED_ROUNDS):
        for kind, training in trainings.items():
            start = time.process_time()
            for _ in range(TIMED_STEPS):
                training.take_step(next(streams[kind]))
            times[kind].append((time.process_time() - start) / TIMED_STEPS)
    return {"seconds_per_step": {"-".join(kind): statistics.median(values[1:]) for kind, values in times.items()}}


def train(cache: TokenCache, kind: Kind, order: Order, lr: float, seed: int, steps: int) -> Record:
    """The figures of one training."""
    training = new_training(cache, kind, order, lr, seed, steps)
    start = time.process_time()
    for step in training.schedule.steps(0):
        training.take_step(step)
    seconds, held_out = time.process_time() - start, training.held_out

    def bits_per_token(rows: slice) -> float:
        part = replace(held_out, codes=held_out.codes[rows], labels=held_out.labels[rows])
        return held_out_figures(training.model, part, "fp32")["held_out_bits_per_token"]

    return {
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "steps": steps,
        "cpu_seconds": seconds,
        "bits_per_token": bits_per_token(slice(JUDGED)),
        "bits_per_token_to_choose_by": bits_per_token(slice(JUDGED, None)),
    }


def once(out: Path, key: Record, measure: Callable[[], Record]) -> Record:
    """The line of a file that has this key; measured and appended if there is none yet."""
    for line in out.read_text().splitlines() if out.exists() else []:
        record = json.loads(line)
        if key.items() <= record.items():
            return record
    record = {**key, **measure()}
    with open(out, "a") as file:
        file.write(json.dumps(record) + "\n")
    return record


class Comparison:
    """The trainings on the tokens of one dataset, each for so many CPU seconds."""

    def __init__(self, name: str, path: Path, seconds: float, out: Path) -> None:
        self.name, self.cache, self.seconds, self.out = name, TokenCache(path), seconds, out
        self.common = {"dataset": name, "cache": self.cache.digest}
        timed = once(out, {**self.common, "what": "step"}, lambda: time_steps(self.cache))
        self.step_seconds: dict[str, float] = timed["seconds_per_step"]

    def run(self, kind: Kind, order: Order, lr: float, seed: int) -> Record:
        """The figures of one training."""
        steps = int(self.seconds / self.step_seconds["-".join(kind)])
        key = {"kind": "-".join(kind), "order": order, "lr": lr, "seed": seed, "seconds": self.seconds}
        return once(self.out, {**self.common, **key}, lambda: train(self.cache, kind, order, lr, seed, steps))

    def choose_rates(self) -> dict[Kind, float]:
        """The best learning rate of each architecture and optimiser; prints what was tried."""
        best = {}
        print(f"| {self.name}, {ORDERS[0]}, seed 0 | bits per token at each learning rate |\n|---|---|")
        for kind in KINDS:
            tried = {lr: self.run(kind, ORDERS[0], lr, 0)["bits_per_token_to_choose_by"] for lr in LRS[kind[1]]}
            best[kind] = min(tried, key=tried.__getitem__)
            print(f"| {', '.join(kind)} |", ", ".join(f"{bits:.3f} at {lr:g}" for lr, bits in tried.items()), "|")
        return best

    def compare(self, rates: dict[Kind, float], seeds: list[int]) -> None:
        """Print the table of all variants: mean (lowest to highest)."""
        results: dict[tuple[Kind, Order], list[Record]] = {}
        for seed, kind, order in product(seeds, KINDS, ORDERS):
            results.setdefault((kind, order), []).append(self.run(kind, order, rates[kind], seed))
        print(f"\n| {self.name} | parameters | lr | steps | CPU s |", *(f"{order} |" for order in ORDERS))
        print("|---|---|---|---|---|" + "---|" * len(ORDERS))
        for kind in KINDS:
            runs = [run for order in ORDERS for run in results[kind, order]]
            cpu_seconds = statistics.mean(run["cpu_seconds"] for run in runs)
            cells = [f"{runs[0]['parameters']:,}", f"{rates[kind]:g}", str(runs[0]["steps"]), f"{cpu_seconds:.1f}"]
            for order in ORDERS:
                bits = [run["bits_per_token"] for run in results[kind, order]]
                cells.append(f"{statistics.mean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f})")
            print(f"| {', '.join(kind)} |", *(f"{cell} |" for cell in cells))


def main() -> None:
    """A table of the learning rates on the first dataset given, and one of the variants for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist-cache", type=Path)
    parser.add_argument("--cifar10-cache", type=Path)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("gpt_variants.jsonl"))
    arguments = parser.parse_args()
    paths = {"MNIST": arguments.mnist_cache, "CIFAR-10": arguments.cifar10_cache}
    given = [(name, path) for name, path in paths.items() if path]
    if not given:
        parser.error("give a token cache")
    keep_memory_pages()
    torch.set_num_threads(1)
    comparisons = [Comparison(name, path, arguments.seconds, arguments.out) for name, path in given]
    rates = comparisons[0].choose_rates()
    for comparison in comparisons:
        comparison.compare(rates, arguments.seeds)


if __name__ == "__main__":
    main()
