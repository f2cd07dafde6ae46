"""How fast the GPT trains, beside the bare step, the machine, and two libraries.

    python benchmarks/train_step.py [--shape default large] [--rounds 3] [--device cpu] [--precision fp32 bf16]

Random tokens, dropout 0.1, AdamW. "loop" is our training as `vqgpt train` runs it (draws, batches from memory,
clipping, optimiser, figures read, its start and its line of metrics), "bare" forward, backward and optimiser on one
fixed batch, in the same passes and with masks as in the loop. `transformers` GPT-2 and x-transformers (of the extra
'dev') have the same shapes and take the plainest step: forward, cross-entropy, backward, fused AdamW. Medians of
interleaved rounds, with a matrix product beside them, and on a CPU a budget of our step. On a GPU the same script
prints the same table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from peers import peers
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions, GPTTrainingOptions
from vqgpt.gpt.order import grid_to_sequence
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining
from vqgpt.options.definition import LoggingOptions
from vqgpt.progress import silent
from vqgpt.runtime.device import autocast, select_device
from vqgpt.runtime.process import StopRequest, keep_memory_pages
from vqgpt.training.loop import Loop
from vqgpt.training.run import Job, TrainingFiles
from vqgpt.training.schedule import Schedule


class Shape(NamedTuple):
    """What is trained."""

    layers: int
    heads: int
    width: int
    side: int
    codes: int
    batch: int
    steps: int  # of ours in one round; the others take one


SHAPES = {
    "default": Shape(6, 8, 64, 8, 128, 256, 4),
    "large": Shape(6, 8, 512, 16, 1024, 32, 1),
    "gpt-b": Shape(12, 12, 768, 16, 1024, 64, 1),
}


def new_training(shape: Shape, rows: int, steps: int, device: torch.device, precision: str) -> GPTTraining:
    """A training on random tokens."""
    torch.manual_seed(0)
    options = GPTOptions(n_layer=shape.layers, n_head=shape.heads, embed_dim_t=shape.width)
    model = GPT(GPTConfig(options=options, codebook_size=shape.codes, grid=(shape.side, shape.side), num_classes=0))
    grids = torch.randint(shape.codes, (rows, 1, shape.side, shape.side), dtype=torch.int16, device=device)
    data = TokenGrids.of(grids, torch.full((rows,), -1, device=device), model.config)
    training = GPTTrainingOptions(batch_size=shape.batch, n_epochs=10_000, max_steps=steps)
    schedule = Schedule(seed=0, num_rows=rows, batch_size=shape.batch, n_epochs=10_000, max_steps=steps)
    held_out = replace(data, codes=data.codes[:1], labels=data.labels[:1])
    return GPTTraining(model.to(device), data, held_out, training, schedule, precision)


class Unkept(Job):
    """A training of which nothing is validated or kept."""

    kind = "gpt"
    judged_by = "held_out_nats_per_token"

    def validate(self) -> dict[str, float]:
        """Nothing."""
        return {"held_out_nats_per_token": 0.0}

    def content(self, figures: dict[str, float]) -> dict[str, Any]:
        """Nothing."""
        return {}


def loop(training: GPTTraining, folder: Path) -> None:
    """`max_steps` steps of `vqgpt train`'s loop; the files that it writes at its end are not timed."""
    job = Unkept(
        training=training,
        result=folder / "gpt.pt",
        pictures=[],
        identity={},
        configuration={},
        logging=LoggingOptions(),
        overwrite=True,
        report=silent,
        every_epochs=10_000,
    )
    files = TrainingFiles(job)
    files.save = files.keep_best = files.finish = lambda _: None  # type: ignore[method-assign,assignment]
    Loop(job, files, StopRequest(), [files.log]).run()


def bare(training: GPTTraining, codes: Tensor, labels: Tensor, steps: int) -> None:
    """Forward, backward and optimiser on one batch that lies ready."""
    training.model.train()
    parameters = training.optimizer.parameters
    for step in range(steps):

        def gradients_of(part: slice, step: int = step) -> tuple[Tensor, ...]:
            masks = training.masks(step, part.start, part.stop)
            with autocast(codes.device, training.precision):
                loss = training.loss(codes[part], labels[part], training.model.cells, None, None, masks)
            return torch.autograd.grad(loss * ((part.stop - part.start) / len(codes)), parameters)

        training.optimizer.zero_grad()
        compute = training.workers.map if training.workers else map
        for gradients in compute(gradients_of, training.passes(len(codes), len(codes))):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        training.optimizer.adamw.step()


def budget(training: GPTTraining, codes: Tensor, labels: Tensor) -> dict[str, float]:
    """Milliseconds of one thread for one pass, by what they are spent on; the optimiser's, for one step."""
    part = training.passes(len(codes), len(codes))[0]
    seconds_of: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training.model.train()

    def one_pass() -> tuple[Tensor, ...]:
        masks = training.masks(0, part.start, part.stop)
        with autocast(codes.device, training.precision):
            loss = training.loss(codes[part], labels[part], training.model.cells, None, None, masks)
        return torch.autograd.grad(loss, training.optimizer.parameters)

    one_pass()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        gradients = one_pass()
        seconds_of["a pass"] = time.perf_counter() - start
    events = {event.key: event for event in profile.key_averages()}

    def profiled(*names: str) -> float:
        return sum(events[name].cpu_time_total for name in names if name in events) / 1e6

    seconds_of["linear layers"] = profiled("aten::mm", "aten::addmm")
    seconds_of["attention"] = profiled("CompiledAttention", "CompiledAttentionBackward")
    seconds_of["activation"] = profiled("aten::gelu", "aten::gelu_backward")
    seconds_of["normalisation"] = profiled("aten::native_layer_norm", "aten::native_layer_norm_backward")
    seconds_of["loss"] = profiled("aten::cross_entropy_loss", "aten::_log_softmax_backward_data")
    seconds_of["drawing masks"] = seconds(lambda: training.masks(0, part.start, part.stop), codes.device)
    seconds_of["everything else"] = seconds_of["a pass"] - sum(list(seconds_of.values())[1:])
    for parameter, gradient in zip(training.optimizer.parameters, gradients, strict=True):
        parameter.grad = gradient
    loss = torch.zeros(())
    seconds_of["optimiser, a step"] = seconds(lambda: training.optimizer.step(0.0, loss, training.scaler), codes.device)
    torch.set_num_threads(threads)
    return {name: 1000 * value for name, value in seconds_of.items()}


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, codes: Tensor, precision: str) -> None:
    """The plainest step of anyone's network."""
    optimizer.zero_grad()
    with autocast(codes.device, precision):
        logits = model(inputs)
        logits = getattr(logits, "logits", logits)
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    loss.backward()
    optimizer.step()


def flops_per_token(shape: Shape) -> float:
    """Multiplications and additions of the matrix products, forward and backward, without recomputation."""
    positions = shape.side**2
    per_layer = 24 * shape.width**2 + 4 * positions * shape.width
    return 3 * (shape.layers * per_layer + 2 * shape.width * shape.codes)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, on the device too."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(name: str, precision: str, rounds: int, device: torch.device, folder: Path) -> None:
    """Print the table of one shape in one precision."""
    shape = SHAPES[name]
    training = new_training(shape, shape.batch * shape.steps, shape.steps, device, precision)
    grids, labels = training.train.batch(0, torch.arange(shape.batch), torch.zeros(shape.batch, dtype=torch.int64))
    codes = grid_to_sequence(grids, training.model.cells)
    start, _ = training.model.start(labels)
    inputs = torch.cat([start, codes[:, :-1]], dim=1)
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    calls: dict[str, Callable[[], object]] = {
        "matrix": partial(torch.mm, matrix, matrix),
        "ours, loop": partial(loop, training, folder),
        "ours, bare": partial(bare, training, codes, labels, shape.steps),
    }
    libraries = peers(*shape[:5])
    for peer, model in libraries.items():
        model.to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        calls[peer] = partial(plain, model, optimizer, inputs, codes, precision)
    times: dict[str, list[float]] = {call: [] for call in calls}
    for call in calls.values():
        call()  # to warm up
    for _ in range(rounds):
        for label, call in calls.items():
            steps = shape.steps if label.startswith("ours") else 1
            times[label].append(seconds(call, device) / steps)
    middle = {label: statistics.median(values) for label, values in times.items()}
    tokens = shape.batch * shape.side**2
    fastest = min(middle[peer] for peer in libraries)
    print(f"{name}, {precision}: matrix product {2 * side**3 / middle.pop('matrix') / 1e9:.0f} GFLOP/s")
    print(f"{'':20} {'tokens/s':>10} {'GFLOP/s':>8} {'of the faster peer':>19}")
    for label, value in middle.items():
        rate = tokens / value
        print(f"{label:20} {rate:10.0f} {rate * flops_per_token(shape) / 1e9:8.0f} {fastest / value:19.2f}")
    print(f"loop / bare: {middle['ours, bare'] / middle['ours, loop']:.3f}")
    if training.draws_masks:
        size = training.passes(shape.batch, shape.batch)[0].stop * shape.side**2
        print(f"milliseconds of one thread, pass of {size} tokens of {tokens}:")
        print(", ".join(f"{part} {value:.1f}" for part, value in budget(training, codes, labels).items()))
    print(flush=True)


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
    with TemporaryDirectory() as folder:
        for shape in arguments.shape:
            for precision in arguments.precision:
                measure(shape, precision, arguments.rounds, device, Path(folder))


if __name__ == "__main__":
    main()
