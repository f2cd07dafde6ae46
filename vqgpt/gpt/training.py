"""Training of the GPT, from token grids.

    codes (N, V, h, w) uint8 or int16, on the device -> a trained model in place, and its held-out loss

A batch is a gather of grids on the device, and one of their codes in the order in which they are read.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from vqgpt.gpt.draws import draw_for_step
from vqgpt.gpt.model import GPT, with_one_order
from vqgpt.gpt.optimizer import Optimizer
from vqgpt.gpt.options import GPTConfig, GPTTrainingOptions
from vqgpt.gpt.order import grid_to_sequence, scan_order
from vqgpt.gpt.token_grids import TokenGrids, TrainingRows
from vqgpt.kernels.attention import Masks
from vqgpt.runtime.device import (
    autocast,
    cut_short_when_alone,
    fewest_rows,
    local_rows,
    local_share,
    new_workers,
    one_thread,
    rank,
    sum_gradients,
    sum_over_ranks,
)
from vqgpt.training.schedule import Schedule, Step
from vqgpt.training.weights import (
    add_gradients,
    check_alike,
    load_whole,
    move_average,
    shard,
    sum_at_next_backward,
    whole,
)

LOWEST_LR = 1e-6
IMAGES_PER_PASS = 256  # in validation
TOKENS_PER_CPU_PASS = 2048  # in training: a compromise between the cache and the launches of operations
WIDE = 256  # width of a network from which on it is not small
STEPS_BETWEEN_READS = 16  # on a GPU, which works ahead


class GPTTraining:
    """A GPT in training; the model, the batches and the held-out set are on one device.

    `result_config`, where given, is that of the network for one order which a model for any order ends as.
    """

    def __init__(
        self,
        model: GPT,
        train: TrainingRows,
        held_out: TokenGrids,
        options: GPTTrainingOptions,
        schedule: Schedule,
        precision: str,
        result_config: GPTConfig | None = None,
    ) -> None:
        self.model, self.train, self.held_out = model, train, held_out
        self.options, self.schedule, self.precision = options, schedule, precision
        self.result_config = result_config or model.config
        self.device = next(model.parameters()).device
        self.cells = scan_order(self.result_config.options.own_order, model.config.grid)
        self.averaged = copy.deepcopy(model) if options.ema else None
        on_cpu = self.device.type == "cpu"
        compiled = options.compile == "on" or (options.compile == "auto" and pays_to_compile(self.device))
        self.loss = torch.compile(model.loss, mode=self.compile_mode) if compiled and not options.shard else model.loss
        if options.shard:
            for network in (model, self.averaged) if self.averaged else (model,):
                blocks = cast(nn.ModuleList, network.transformer["h"])
                if compiled:  # one by one, since what FSDP does between them cannot be compiled
                    for block in blocks:
                        block.compile()
                shard(network, blocks)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.draws_masks = on_cpu and not compiled and model.config.options.dropout_t > 0
        self.images_per_pass = math.ceil(TOKENS_PER_CPU_PASS / model.config.block_size) if on_cpu else None
        threads = torch.get_num_threads() if on_cpu and not compiled and not options.shard else 1
        self.workers = new_workers(threads) if threads > 1 else None
        self.compute = self.workers.map if self.workers else map
        self.optimizer = Optimizer(model, options, self.compute)
        self.read_every = STEPS_BETWEEN_READS if self.device.type == "cuda" else 1
        self.start_epoch_clock()

    def start_epoch_clock(self) -> None:
        """Begin to count the tokens and the seconds of waiting for data anew."""
        self.tokens, self.waited = 0, 0.0
        self.started: float | None = None  # by the first step, since there may be a validation before it

    @property
    def compile_mode(self) -> str | None:
        """On a GPU, CUDA graphs for a network whose kernels are over before the next is started.

        A graph overwrites its gradients when it runs again: there is to be one pass to a step.
        """
        graphs = self.device.type == "cuda" and self.is_small and self.options.grad_accum == 1
        return "reduce-overhead" if graphs else None

    @property
    def is_small(self) -> bool:
        """Whether a single operation is too short to be worth waiting for: for a kernel's start, or another thread."""
        return self.model.config.options.embed_dim_t < WIDE

    @property
    def result(self) -> GPT:
        """The model to validate, sample and keep: the moving average where there is one."""
        return self.averaged or self.model

    def take_step(self, step: Step) -> dict[str, float | Tensor]:
        """One batch: predict each token from those before it. Every rank takes its share of the rows.

        The figures may still be on the device. If one is not finite, neither this step nor a later one has moved the
        weights.
        """
        self.model.train()
        rate = learning_rate(step.index, self.schedule, self.options)
        start = time.perf_counter()
        self.started = self.started or start
        configs = self.model.config, self.result_config
        draws = draw_for_step(step, self.schedule, self.train.num_views, self.options, *configs)
        mine = local_rows(torch.arange(len(step.rows)))  # places in the batch
        grids, labels = self.train.batch(step.epoch, step.rows[mine], draws.views[mine])
        cells = self.model.cells if draws.cells is None else draws.cells[mine].to(self.device, non_blocking=True)
        codes, views = grid_to_sequence(grids, cells), draws.views[mine].to(self.device, non_blocking=True)
        unconditional = draws.unconditional[mine].to(self.device, non_blocking=True)
        labels = labels.masked_fill(unconditional.view(-1, *[1] * (labels.ndim - 1)), 0 if labels.ndim == 2 else -1)
        shown = codes
        if draws.shown_as is not None:
            noise = draws.shown_as[mine].to(self.device, non_blocking=True)
            shown = torch.where(noise < 0, codes, noise)
        self.waited += time.perf_counter() - start
        self.tokens += len(step.rows) * self.model.config.block_size

        share = local_share(step.rows)

        def loss_of(part: slice) -> Tensor:
            """What some images add to the loss of the step."""
            masks = self.masks(step.index, int(mine[0]) + part.start, int(mine[0]) + part.stop)
            with autocast(self.device, self.precision):
                orders = cells if cells.ndim == 1 else cells[part]
                part_loss = self.loss(codes[part], labels[part], orders, views[part], shown[part], masks)
            return part_loss * (share * (part.stop - part.start) / len(mine))

        self.optimizer.zero_grad()
        backward = self._backward_of_parts if self.options.shard else self._backward
        loss = sum_over_ranks(backward(loss_of, self.passes(len(mine), fewest_rows(step.rows))))
        with one_thread() if self.is_small else nullcontext():
            norm = self.optimizer.step(rate, loss, self.scaler)
            if self.averaged:
                move_average(self.averaged, self.model, self.options.ema, step.index)
        return {"loss": loss, "gradient_norm": norm, "learning_rate": rate}

    def _backward(self, loss_of: Callable[[slice], Tensor], passes: list[slice]) -> Tensor:
        """Leave every rank with the gradients of the whole batch; returns the loss of this rank's passes."""
        parameters = self.optimizer.parameters

        def gradients_of(part: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
            part_loss = loss_of(part)
            return part_loss.detach(), torch.autograd.grad(self.scaler.scale(part_loss), parameters)

        loss = torch.zeros((), device=self.device)
        with cut_short_when_alone():
            for part_loss, gradients in self.compute(gradients_of, passes):  # in order, whoever is first
                loss += part_loss
                add_gradients(parameters, gradients)
        sum_gradients(parameters)
        return loss

    def _backward_of_parts(self, loss_of: Callable[[slice], Tensor], passes: list[slice]) -> Tensor:
        """The same where the network is cut: every rank ends with its part of the gradients, summed over the ranks."""
        loss = torch.zeros((), device=self.device)
        for part in passes:
            sum_at_next_backward(self.model, part is passes[-1])
            part_loss = loss_of(part)
            self.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        return loss

    def passes(self, images: int, fewest: int) -> list[slice]:
        """How the images of a step are cut into passes, whose gradients are summed.

        Their number follows from the rank with the `fewest` images, for it must be the same on all.
        """
        size = math.ceil(fewest / self.options.grad_accum)
        if self.images_per_pass:
            size = min(size, self.images_per_pass)
        count = math.ceil(fewest / size)
        return [slice(images * number // count, images * (number + 1) // count) for number in range(count)]

    def masks(self, step: int, first: int, end: int) -> Masks | None:
        """The dropout of the images at places `first` to `end` of a step's batch, where torch's own is not used."""
        if not self.draws_masks:
            return None
        rate, count = self.model.config.options.dropout_t, self.model.masks_per_image
        return Masks(rate, self.schedule.seed, step, range(first, end), count)

    def epoch_figures(self) -> dict[str, float]:
        """Tokens per second, over all processes, and the seconds in which the device waited for its data."""
        assert self.started is not None
        seconds = time.perf_counter() - self.started
        figures = {"tokens_per_second": self.tokens / seconds, "waiting_seconds": self.waited}
        self.start_epoch_clock()
        return figures

    def validate(self) -> dict[str, float]:
        """Held-out loss in nats and bits per token."""
        return held_out_figures(self.result, self.held_out, self.precision, self.cells)

    def result_weights(self) -> dict[str, Tensor]:
        """The weights of the result. Where they are cut, all processes call together, and the main one has them."""
        weights = cast(dict[str, Tensor], whole(self.result.state_dict()))
        return weights if self.result_config == self.model.config or rank() else with_one_order(weights, self.cells)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, the scale of fp16, and the moving average; whole, as `result_weights` are."""
        return cast(dict[str, Any], whole({**self._besides_optimizer(), "optimizer": self.optimizer.state_dict()}))

    def _besides_optimizer(self) -> dict[str, Any]:
        averaged = {"averaged": self.averaged.state_dict()} if self.averaged else {}
        return {"model": self.model.state_dict(), "scaler": self.scaler.state_dict(), **averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, of any number of processes. Raises StateMisfitError for that of another."""
        besides = {name: part for name, part in state.items() if name != "optimizer"}
        check_alike(besides, self._besides_optimizer(), "its state")
        self.optimizer.load_state_dict(state.get("optimizer"))
        load_whole(self.model, state["model"])
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged:
            load_whole(self.averaged, state["averaged"])


def pays_to_compile(device: torch.device) -> bool:
    """Whether the device is one of CUDA, with all that torch needs to compile for it: Triton, and a C compiler."""
    tools = find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
    return device.type == "cuda" and bool(tools)


def learning_rate(step: int, schedule: Schedule, options: GPTTrainingOptions) -> float:
    """One cycle: linear from 1e-6 to `lr` over the warm-up epochs, then half a cosine back to 1e-6."""
    warmup_steps = min(options.warmup * schedule.steps_per_epoch, schedule.num_steps)
    if step < warmup_steps:
        return LOWEST_LR + (options.lr - LOWEST_LR) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, schedule.num_steps - 1 - warmup_steps)
    return LOWEST_LR + (options.lr - LOWEST_LR) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def held_out_figures(model: GPT, held_out: TokenGrids, precision: str, cells: Tensor | None = None) -> dict[str, float]:
    """Cross-entropy of the first view of every row given its label, in nats and in bits per token. Sets eval mode.

    Rows are read in the order `cells` (T,), or in the model's own.
    """
    model.eval()
    cells = model.cells if cells is None else cells.to(model.cells.device)
    total = 0.0
    for rows in torch.arange(len(held_out)).split(IMAGES_PER_PASS):
        grids, labels = held_out.batch(0, rows, torch.zeros_like(rows))
        with autocast(grids.device, precision):
            loss = model.loss(grid_to_sequence(grids, cells), labels, cells)
        total += loss.item() * len(rows)
    nats = total / len(held_out)
    return {"held_out_nats_per_token": nats, "held_out_bits_per_token": nats / math.log(2)}
