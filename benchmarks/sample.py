"""How fast the GPT samples, beside two libraries and beside what the machine allows.

    python benchmarks/sample.py [--shape default large] [--rounds 3] [--device cpu] [--precision fp32]

Random weights, temperature 1, no filter, tokens only. `transformers` GPT-2 (`generate`, cached) and x-transformers
(`generate`, cached; of the extra 'dev') have the same shapes. Medians of interleaved rounds, images per second. The
limit is the larger of two times: that of the arithmetic at the speed of a large matrix product, and that of reading the
weights once per step and the keys and values of each image once per token at the speed of a large copy; both speeds are
measured in the same rounds. On a GPU the same script prints the same table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from peers import peers
from torch import nn

from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import Condition, GPTConfig, GPTOptions, SamplingOptions
from vqgpt.runtime.device import autocast, select_device
from vqgpt.runtime.process import keep_memory_pages

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**32}


class Shape(NamedTuple):
    """What is sampled: the network, and how many images are asked for at a time."""

    layers: int
    heads: int
    width: int
    side: int
    codes: int
    batches: tuple[int, ...]
    guidance: float = 1.0


SHAPES = {
    "default": Shape(6, 8, 64, 8, 128, (1, 16, 256)),
    "large": Shape(6, 8, 512, 16, 1024, (16,)),
    "gpt-b": Shape(12, 12, 768, 16, 1024, (16, 256), guidance=2.0),
}


def new_model(shape: Shape, device: torch.device) -> GPT:
    """Our network; with classes where guidance is on."""
    torch.manual_seed(0)
    condition: Condition = "none" if shape.guidance == 1 else "class"
    options = GPTOptions(n_layer=shape.layers, n_head=shape.heads, embed_dim_t=shape.width, condition=condition)
    classes = 0 if shape.guidance == 1 else 10
    config = GPTConfig(options=options, codebook_size=shape.codes, grid=(shape.side, shape.side), num_classes=classes)
    return GPT(config).to(device).eval()


def ours(model: GPT, images: int, guidance: float, precision: str) -> None:
    """As `vqgpt sample` does it, but for the files."""
    labels = torch.full((images,), -1 if guidance == 1 else 0)
    options = SamplingOptions(num_samples=images, cfg_scale=guidance)
    drawn = sum(len(codes) for codes, _ in sample_codes(model, Asked.of_one_seed(labels, 0, options), precision))
    assert drawn == images


def generators(shape: Shape, device: torch.device) -> dict[str, nn.Module]:
    """The libraries' networks, without guidance, ready for `generate`."""
    from x_transformers import AutoregressiveWrapper

    models = peers(*shape[:5])
    models["x-transformers"] = AutoregressiveWrapper(models["x-transformers"])
    return {name: model.to(device).eval() for name, model in models.items()}


@torch.inference_mode()
def theirs(name: str, model: nn.Module, shape: Shape, images: int, device: torch.device, precision: str) -> None:
    """The library's own cached generation of all tokens."""
    start, tokens = torch.full((images, 1), shape.codes, device=device), shape.side**2
    with autocast(device, precision):
        if name == "x-transformers":
            model.generate(start, tokens, filter_logits_fn=lambda logits: logits)  # type: ignore[operator]
        else:
            mask = torch.ones_like(start)
            limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None}
            model.generate(start, attention_mask=mask, do_sample=True, top_k=0, pad_token_id=0, **limits)  # type: ignore[operator]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, on the device too."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def least_seconds(shape: Shape, images: int, model: GPT, rates: dict[str, float], element: int) -> float:
    """What the arithmetic or the reading of memory takes at the speeds measured, FLOP/s and bytes/s."""
    positions, rows = shape.side**2, images * (1 if shape.guidance == 1 else 2)
    per_token = 12 * shape.width**2 * shape.layers + shape.width * shape.codes
    attention = positions * shape.width * shape.layers  # half of the positions on average, keys and values
    flop = 2 * rows * positions * (per_token + attention)
    cache_bytes = rows * positions * positions * shape.width * shape.layers * element
    weight_bytes = positions * per_token * element
    return max(flop / rates["matrix"], (weight_bytes + cache_bytes) / rates["copy"])


def measure(name: str, precision: str, rounds: int, device: torch.device) -> None:
    """Print the table of one shape in one precision."""
    shape = SHAPES[name]
    model, others = new_model(shape, device), generators(shape, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, size = MATRIX_SIDE[device.type], COPIED_BYTES[device.type]
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: dict[tuple[str, int], Callable[[], object]] = {
        ("matrix", 0): partial(torch.mm, matrix, matrix),
        ("copy", 0): partial(target.copy_, source),
    }
    for images in shape.batches:
        calls["ours", images] = partial(ours, model, images, shape.guidance, precision)
        for label, other in others.items():
            calls[label, images] = partial(theirs, label, other, shape, images, device, precision)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()  # to warm up
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(seconds(call, device))
    middle = {key: statistics.median(values) for key, values in times.items()}
    rates = {"matrix": 2 * side**3 / middle["matrix", 0], "copy": 2 * size / middle["copy", 0]}
    print(f"{name}, {precision}: matrix {rates['matrix'] / 1e9:.0f} GFLOP/s, memory {rates['copy'] / 1e9:.1f} GB/s")
    print(
        f"{'images/s':20} {'at once':>8} {'ours':>9} "
        + " ".join(f"{label:>20}" for label in others)
        + "   ratio  limit"
    )
    for images in shape.batches:
        rate = {label: images / middle[label, images] for label in ("ours", *others)}
        limit = images / least_seconds(shape, images, model, rates, 2 if precision == "bf16" else 4)
        cells = " ".join(f"{rate[label]:20.2f}" for label in others)
        best = max(rate[label] for label in others)
        print(f"{'':20} {images:8} {rate['ours']:9.2f} {cells} {rate['ours'] / best:7.2f} {limit:6.0f}", flush=True)


def main() -> None:
    """A table per shape and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["default", "large"], choices=SHAPES)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_memory_pages()
    device = select_device(arguments.device)
    for shape in arguments.shape:
        for precision in arguments.precision:
            measure(shape, precision, arguments.rounds, device)


if __name__ == "__main__":
    main()
