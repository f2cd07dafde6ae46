"""Generating images token by token: the loop over positions, for as many images as are asked for.

    labels (N,) or (N, L), seed -> codes (N, h, w) int64, log_prob (N,) float32 in nats

Image i is a function of (seed, i) and of the settings: each token is drawn by inverse-CDF sampling from a uniform
number derived only from (seed, i, place), and passes of the network always have the same number of rows and run in one
thread: not even rounding depends on how many images were asked for, or on the cores. `decoding.c`, where it can be
used, computes each row on its own.
A `SamplingPass` draws the images of a batch at once. What a token needs lies in buffers on the device, and nothing
waits for it: on a CUDA device all steps but the first, draws included, are replays of CUDA graphs. With guidance, the
decoder has a second row for each image, without its label.
Letters: N images, B images of a pass, R rows of the decoder, T positions, L bits.
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from vqgpt.gpt.decoding import Decoder, NetworkDecoder, decoders
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, SamplingOptions
from vqgpt.gpt.order import grid_to_sequence, known_first, scan_order, sequence_to_grid
from vqgpt.gpt.sampling import draw, guidance_scale, guide
from vqgpt.runtime.device import derived_seed, new_workers

MOST_GROUPS_PER_PASS = 4  # on a CPU
MOST_IMAGES_AT_ONCE = 256  # a power of 2, as every such number is
IMAGES_ON_CPU = 32
WIDE_IMAGES_ON_CPU = 8  # where a step is reading the weights
WIDE = 256  # width of the network
GPU_CACHE_BYTES = 8 * 2**30  # of keys and values in a pass, at most
GPU_CACHE_SHARE = 1 / 4  # of the device's memory
STRIDE = 64  # positions per CUDA graph: a smaller one reads less that is masked, and captures more graphs
WARM_UPS = 3  # so that libraries are loaded, and have chosen and allocated what they need, before a capture


class GraphedSteps:
    """CUDA graphs of `step(position (1,) int64, seen)`, so that a GPU does not wait for Python between its kernels.

    A graph repeats kernels on the same memory, and reads a fixed number of cached positions: there is one for every
    `STRIDE` positions. `step` reads and writes static memory on `device`, allocates as it likes, and must not wait for
    it. It is called before each capture, so that what it wrote must be set anew afterwards. Written by PyTorch's notes
    on CUDA graphs.
    """

    def __init__(self, step: Callable[[torch.Tensor, int], None], positions: int, device: torch.device) -> None:
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            for first in range(0, positions, STRIDE):
                seen = min(first + STRIDE, positions)
                self.position.fill_(first)
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(WARM_UPS):
                        step(self.position, seen)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                # thread_local: a thread that reads ahead for a training may allocate meanwhile
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    step(self.position, seen)
                    self.position += 1
                self.graphs.append(graph)

    def start(self, position: int) -> None:
        """The next replay is of this position; each goes to the one after it."""
        self.position.fill_(position)

    def replay(self, position: int) -> None:
        """Queue the step of a position, which follows the last one replayed; does not wait for it."""
        self.graphs[position // STRIDE].replay()


class SamplingPass:
    """Draws up to B images at a time, as often as asked. Used from one thread at a time.

    With `completes`, some tokens are given and not drawn.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, decoder: Decoder, images: int, options: SamplingOptions, completes: bool) -> None:
        self.model, self.decoder, self.images, self.options = model, decoder, images, options
        self.device, self.positions = next(model.parameters()).device, model.config.block_size
        shape = (self.positions, images)
        self.guided = options.cfg_scale != 1
        rows = 2 * images if self.guided else images
        self.token = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.cells = model.cells.repeat(rows, 1) if model.config.options.any_order else model.cells
        self.uniforms = torch.zeros(shape, device=self.device)
        self.given = torch.zeros(shape, dtype=torch.int64, device=self.device) if completes else None
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.log_prob = torch.zeros(images, 1, device=self.device)
        scales = [guidance_scale(position, self.positions, options) for position in range(self.positions)]
        self.scales = torch.tensor(scales, device=self.device)
        self.graphs: GraphedSteps | None = None
        if self.device.type == "cuda":
            self.graphs = GraphedSteps(self.step_in_graph, self.positions, self.device)

    @torch.inference_mode()
    def run(
        self,
        labels: Tensor,
        uniforms: Tensor,
        cells: Tensor,
        given: Tensor | None,
        ended: threading.Event,
    ) -> tuple[Tensor, Tensor]:
        """Labels (n, ...) as `GPT.start` takes them, uniforms (B, T) -> tokens (n, T), log_prob (n,), on the CPU.

        `cells` are the order of the images: (T,), the network's own, or (n, T) for one for any order. `given` (n, T)
        are tokens that are not drawn, -1 where they are. Once it has `ended`, nobody waits for a result.
        """
        no_label = 0 if labels.ndim == 2 else -1
        start, added = self.model.start(_padded(labels, len(self.token), no_label).to(self.device))
        self.token.copy_(start[:, 0])
        if self.model.config.options.any_order:
            self.cells.view(-1, self.images, self.positions)[:, : len(labels)] = cells.to(self.device)
        self.uniforms.copy_(uniforms.t())
        if self.given is not None and given is not None:
            self.given.copy_(_padded(given, self.images, -1).t())
        self.log_prob.zero_()
        self.draw(self.decoder.step(self.token, self.cells, 0, added), 0)
        if self.graphs:
            self.graphs.start(1)
        for position in range(1, self.positions):
            if ended.is_set():
                break
            if self.graphs:
                self.graphs.replay(position)
            else:
                self.draw(self.decoder.step(self.token, self.cells, position), position)
        tokens, log_prob = self.tokens.t()[: len(labels)], self.log_prob[: len(labels), 0].clamp(max=0)
        return tokens.to("cpu", copy=True), log_prob.cpu()

    def step_in_graph(self, position: Tensor, seen: int) -> None:
        """The step of a position (1,) on the device, below `seen`, from buffers to buffers."""
        assert isinstance(self.decoder, NetworkDecoder)
        self.draw(self.decoder.step(self.token, self.cells, position, seen=seen), position)

    def draw(self, logits: Tensor, position: int | Tensor) -> None:
        """Logits (R, K) -> the images' tokens at a position, a number or (1,); the next step reads them."""
        own = logits[: self.images]
        if self.guided:
            logits = guide(own, logits[self.images :], self.scales[position])
        token = draw(logits, self.uniforms[position].flatten(), self.options)
        if self.given is not None:
            given = self.given[position].flatten()
            token = torch.where(given < 0, token, given)
        self.tokens[position] = token
        self.log_prob += own.log_softmax(dim=-1).gather(1, token[:, None])
        self.token.view(-1, self.images)[:] = token


def _padded(values: Tensor, rows: int, filler: int) -> Tensor:
    """Rows (n, ...) filled up to as many with what says nothing: the unconditional half of guidance, and spare rows."""
    return torch.cat([values, values.new_full((rows - len(values), *values.shape[1:]), filler)])


class Sampler:
    """A GPT ready to be sampled from with the same options, request after request; used from one thread at a time.

    Sets eval mode. With `completes`, images have codes that are given and not drawn. By C code a pass is several groups
    of `images_at_once` where many images are asked for, as long operations wait less for Python's lock.
    """

    def __init__(self, model: GPT, options: SamplingOptions, precision: str, completes: bool = False) -> None:
        self.model, self.options, self.completes = model.eval(), options, completes
        self.device, self.guided = next(model.parameters()).device, options.cfg_scale != 1
        self.at_once = images_at_once(model.config, self.device, precision, self.guided)
        self.new_decoder, self.takes_any_number = decoders(model, precision)
        self.passes: list[SamplingPass] = []

    def codes(
        self,
        labels: Tensor,
        first_image: int,
        seed: int,
        known: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw image `first_image + i` for `labels[i]`, as `GPT.start` takes them; `known` (N, h, w) are not drawn.

        -1 in `known` is a code to draw. Yields codes (n, h, w) int64 and their log-probabilities (n,) on the CPU, pass
        by pass, in order; `first_image` is a multiple of `images_at_once`.
        """
        config = self.model.config
        assert first_image % self.at_once == 0
        assert (known is not None) == self.completes
        cells = self.orders(len(labels), first_image, seed, known)
        given = None if known is None else grid_to_sequence(known, cells)
        threads, images = self.division(len(labels))
        free: SimpleQueue[SamplingPass] = SimpleQueue()
        for of_thread in self.passes_of(threads, images):
            free.put(of_thread)
        ended = threading.Event()

        def run(start: int) -> tuple[Tensor, Tensor]:
            mine = free.get()
            try:
                uniforms = uniform_numbers(seed, first_image + start, images, config.block_size)
                here = slice(start, start + images)
                order = cells if cells.ndim == 1 else cells[here]
                of_them = None if given is None else given[here]
                tokens, log_prob = mine.run(labels[here], uniforms, order, of_them, ended)
                return sequence_to_grid(tokens, order, config.grid), log_prob
            finally:
                free.put(mine)

        with new_workers(threads) as workers:
            try:
                yield from workers.map(run, range(0, len(labels), images))
            finally:
                ended.set()

    def orders(self, images: int, first_image: int, seed: int, known: Tensor | None) -> Tensor:
        """The cells in the order in which they are drawn: (T,), or (N, T) of a network for any order."""
        config, own = self.model.config, self.model.cells.cpu()
        if not config.options.any_order:
            return own
        order = self.options.draw_order or config.options.own_order
        if order == "random":
            seed_of_orders = derived_seed(seed, "orders")
            cells = uniform_numbers(seed_of_orders, first_image, images, config.block_size).argsort(dim=1)
        else:
            cells = scan_order(order, config.grid).expand(images, -1)
        return cells if known is None else known_first(known >= 0, cells)

    def division(self, wanted: int) -> tuple[int, int]:
        """How many threads draw so many images, and how many of them in a pass."""
        if self.device.type != "cpu":
            return 1, self.at_once
        if not self.takes_any_number:
            return min(torch.get_num_threads(), -(-wanted // self.at_once)), self.at_once
        threads = min(torch.get_num_threads(), wanted)
        return threads, min(self.at_once * MOST_GROUPS_PER_PASS, -(-wanted // threads))

    def passes_of(self, threads: int, images: int) -> list[SamplingPass]:
        """One per thread: those of the request before, if they suit."""
        if len(self.passes) != threads or self.passes[0].images != images:
            rows = 2 * images if self.guided else images
            self.passes = [
                SamplingPass(self.model, self.new_decoder(rows), images, self.options, self.completes)
                for _ in range(threads)
            ]
        return self.passes


def sample_codes(
    model: GPT,
    labels: Tensor,
    seed: int,
    options: SamplingOptions,
    precision: str,
    known: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images of a seed, in one request: see `Sampler.codes`."""
    return Sampler(model, options, precision, known is not None).codes(labels, 0, seed, known)


def images_at_once(config: GPTConfig, device: torch.device, precision: str, guided: bool) -> int:
    """How many images a product has: a function of the network and the kind of device, of nothing else.

    On a GPU as many as their keys and values leave room for. On a CPU few, so that those stay in a core's cache, and
    so that a request for a few images does not pay for many.
    """
    if device.type == "cpu":
        return IMAGES_ON_CPU if config.options.embed_dim_t < WIDE else WIDE_IMAGES_ON_CPU
    options = config.options
    bytes_per_image = options.n_layer * 2 * config.block_size * options.embed_dim_t * (2 if precision == "bf16" else 4)
    room = min(GPU_CACHE_BYTES, int(GPU_CACHE_SHARE * memory_bytes(device)))
    images = max(1, room // (bytes_per_image * (1 + guided)))
    return min(MOST_IMAGES_AT_ONCE, 2 ** (images.bit_length() - 1))


def memory_bytes(device: torch.device) -> int:
    """All the memory of a GPU, whoever has it at the moment."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return int(torch.cuda.get_device_properties(device).total_memory)


def uniform_numbers(seed: int, first: int, images: int, positions: int) -> Tensor:
    """(images, positions) float32 in [0, 1): row r is a function of (seed, first + r), by the counter-based Philox."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, first + row], dtype=np.uint64))).random(
            positions, dtype=np.float32
        )
        for row in range(images)
    ]
    return torch.from_numpy(np.stack(rows))
