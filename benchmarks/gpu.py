"""How fast the GPT trains on a GPU: three shapes, in bfloat16, eager, compiled, and compiled with CUDA graphs.

    python benchmarks/gpu.py [--shape default large gpt-b] [--rounds 5] [--steps 20] [--device cuda]

Per shape: the loop of `vqgpt train` as it is (`--compile auto`), and forward, backward and optimiser on one fixed batch
without compilation, with torch.compile, and with its mode "reduce-overhead", which records CUDA graphs. Each with
tokens/s, TFLOP/s, and the share of what a large bfloat16 matrix product reaches in the same rounds. Medians of
interleaved rounds. Random tokens, dropout 0.1, fused AdamW. `--device cpu --rounds 1 --steps 1` shows that it runs.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from train_step import SHAPES, flops_per_token, loop, new_training, seconds

from vqgpt.gpt.order import grid_to_sequence
from vqgpt.runtime.device import autocast, select_device

PRECISION = "bf16"
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
MODES = {"eager": None, "compiled": "default", "compiled, CUDA graphs": "reduce-overhead"}


def fixed_batch(shape_name: str, mode: str | None, steps: int, device: torch.device) -> Callable[[], None]:
    """Steps on one batch: the simplest training of our network that there is."""
    shape = SHAPES[shape_name]
    training = new_training(shape, shape.batch, 1, device, PRECISION)
    grids, labels = training.train.batch(0, torch.arange(shape.batch), torch.zeros(shape.batch, dtype=torch.int64))
    model = training.model.train()
    codes = grid_to_sequence(grids, model.cells)
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compile(model.loss, mode=mode) if mode else model.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def take_steps() -> None:
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            with autocast(device, PRECISION):
                loss = loss_of(codes, labels, model.cells)
            loss.backward()
            optimizer.step()

    return take_steps


def main() -> None:
    """A table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["default", "large", "gpt-b"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps in a round")
    parser.add_argument("--device", default="cuda", choices=MATRIX_SIDE)
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    side = MATRIX_SIDE[device.type]
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else device, torch.__version__, flush=True)
    with TemporaryDirectory() as folder:
        for name in arguments.shape:
            shape = SHAPES[name]
            matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
            training = new_training(shape, shape.batch * arguments.steps, arguments.steps, device, PRECISION)
            calls: dict[str, Callable[[], object]] = {
                "matrix": partial(torch.mm, matrix, matrix),
                "loop": partial(loop, training, Path(folder)),
                **{label: fixed_batch(name, mode, arguments.steps, device) for label, mode in MODES.items()},
            }
            for call in calls.values():
                call()  # compiles
            times: dict[str, list[float]] = {label: [] for label in calls}
            for _ in range(arguments.rounds):
                for label, call in calls.items():
                    times[label].append(seconds(call, device))
            middle = {label: statistics.median(values) for label, values in times.items()}
            peak = 2 * side**3 / middle.pop("matrix")
            print(f"{name}: matrix product {peak / 1e12:.0f} TFLOP/s")
            print(f"{'':24} {'tokens/s':>12} {'TFLOP/s':>8} {'of the matrix product':>22}")
            for label, value in middle.items():
                rate = arguments.steps * shape.batch * shape.side**2 / value
                reached = rate * flops_per_token(shape)
                print(f"{label:24} {rate:12.0f} {reached / 1e12:8.1f} {reached / peak:22.2f}", flush=True)


if __name__ == "__main__":
    main()
