"""Generating images token by token: the loop over positions, for as many images as are asked for.

    images to draw: labels (N,) or (N, L), seeds, numbers, settings -> codes (N, h, w) int64, log_prob (N,) in nats

Image i of a seed is a function of (seed, i) and of its settings: each token is drawn by inverse-CDF sampling from a
uniform number derived only from (seed, i, place), and passes of the network always have the same number of rows and run
in one thread: not even rounding depends on what other images were asked for, or on the cores. `decoding.c`, where it
can be used, computes each row on its own.
A `SamplingPass` draws the images of a batch at once. What a token needs lies in buffers on the device, and nothing
waits for it: on a CUDA device all steps but the first, draws included, are replays of CUDA graphs. With guidance, the
decoder has a second row for each image, without its label.
Letters: N images, B images of a pass, R rows of the decoder, T positions, L bits.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from vqgpt.gpt.decoding import Decoder, NetworkDecoder, decoders
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, SamplingOptions
from vqgpt.gpt.order import grid_to_sequence, known_first, scan_order, sequence_to_grid
from vqgpt.gpt.sampling import Settings, draw, guide, is_guided
from vqgpt.options.codec import one_line
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Images to draw: each with a label as `GPT.start` takes it, a seed and its number of that seed, and settings.

    `known` (N, h, w) are codes that are not drawn, -1 where they are; None where all are drawn.
    """

    labels: Tensor
    seeds: Sequence[int]
    numbers: Sequence[int]
    settings: Sequence[SamplingOptions]
    known: Tensor | None = None

    __repr__ = one_line

    @classmethod
    def of_one_seed(
        cls, labels: Tensor, seed: int, settings: SamplingOptions, known: Tensor | None = None, first: int = 0
    ) -> "Asked":
        """Image `first + i` of a seed for `labels[i]`."""
        count = len(labels)
        numbers = range(first, first + count)
        return cls(labels=labels, seeds=[seed] * count, numbers=numbers, settings=[settings] * count, known=known)


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
    """Draws up to B images at a time, as often as asked, with settings of a kind. Used from one thread at a time.

    With `completes`, some tokens are given and not drawn.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, decoder: Decoder, images: int, settings: Settings, completes: bool) -> None:
        self.model, self.decoder, self.images = model, decoder, images
        self.device, self.positions = next(model.parameters()).device, model.config.block_size
        self.settings = settings.on(self.device, images)
        shape = (self.positions, images)
        rows = images if settings.scales is None else 2 * images
        self.token = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.cells = model.cells.repeat(rows, 1) if model.config.options.any_order else model.cells
        self.uniforms = torch.zeros(shape, device=self.device)
        self.given = torch.zeros(shape, dtype=torch.int64, device=self.device) if completes else None
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.log_prob = torch.zeros(images, 1, device=self.device)
        self.graphs: GraphedSteps | None = None
        if self.device.type == "cuda":
            self.graphs = GraphedSteps(self.step_in_graph, self.positions, self.device)

    @torch.inference_mode()
    def run(
        self,
        labels: Tensor,
        uniforms: Tensor,
        settings: Settings,
        cells: Tensor,
        given: Tensor | None,
        ended: threading.Event,
        canvas: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Labels (n, ...) as `GPT.start` takes them, uniforms (n, T) -> tokens (n, T), log_prob (n,), on the CPU.

        `settings` are of the kind of this pass. `cells` are the order of the images: (T,), the network's own, or (n, T)
        for one for any order. `given` (n, T) are tokens that are not drawn, -1 where they are. Once it has `ended`,
        nobody waits for a result. `canvas` (n, T), in raster order, gets the codes: on a CPU each once it is drawn,
        elsewhere all in the end.
        """
        self.settings.copy_(settings.on(self.device, self.images))
        no_label = 0 if labels.ndim == 2 else -1
        start, added = self.model.start(_padded(labels, len(self.token), no_label).to(self.device))
        self.token.copy_(start[:, 0])
        if self.model.config.options.any_order:
            self.cells.view(-1, self.images, self.positions)[:, : len(labels)] = cells.to(self.device)
        self.uniforms.copy_(_padded(uniforms, self.images, 0).t())
        if self.given is not None and given is not None:
            self.given.copy_(_padded(given, self.images, -1).t())
        self.log_prob.zero_()
        self.draw(self.decoder.step(self.token, self.cells, 0, added), 0)
        if self.graphs:
            self.graphs.start(1)
        for position in range(1, self.positions):
            if ended.is_set():
                break
            if canvas is not None and self.device.type == "cpu":
                where = cells.expand(len(canvas), -1)[:, position - 1 : position]
                canvas.scatter_(1, where, self.tokens[position - 1, : len(canvas), None])
            if self.graphs:
                self.graphs.replay(position)
            else:
                self.draw(self.decoder.step(self.token, self.cells, position), position)
        tokens = self.tokens.t()[: len(labels)].to("cpu", copy=True)
        if canvas is not None and not ended.is_set():
            canvas.copy_(sequence_to_grid(tokens, cells, self.model.config.grid).flatten(1))
        return tokens, self.log_prob[: len(labels), 0].clamp(max=0).cpu()

    def step_in_graph(self, position: Tensor, seen: int) -> None:
        """The step of a position (1,) on the device, below `seen`, from buffers to buffers."""
        assert isinstance(self.decoder, NetworkDecoder)
        self.draw(self.decoder.step(self.token, self.cells, position, seen=seen), position)

    def draw(self, logits: Tensor, position: int | Tensor) -> None:
        """Logits (R, K) -> the images' tokens at a position, a number or (1,); the next step reads them."""
        own = logits[: self.images]
        if self.settings.scales is not None:
            logits = guide(own, logits[self.images :], self.settings.scales[:, position].view(-1, 1))
        token = draw(logits, self.uniforms[position].flatten(), self.settings)
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
    """A GPT ready to be sampled from, request after request; used from one thread at a time.

    Sets eval mode. Where it is `guided`, each image has two rows. With `completes`, images have codes that are given
    and not drawn. By C code a pass is several groups of `images_at_once` where many images are asked for, as long
    operations wait less for Python's lock.
    """

    def __init__(self, model: GPT, precision: str, guided: bool = False, completes: bool = False) -> None:
        self.model, self.guided, self.completes = model.eval(), guided, completes
        self.device = next(model.parameters()).device
        self.at_once = images_at_once(model.config, self.device, precision, self.guided)
        self.new_decoder, self.takes_any_number = decoders(model, precision)
        self.passes: list[SamplingPass] = []

    def codes(
        self, asked: Asked, canvas: Tensor | None = None, ended: threading.Event | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw images; yields codes (n, h, w) int64 and log-probabilities (n,) on the CPU, pass by pass, in order.

        Codes are put into `canvas` (N, T), in raster order, for another thread to see, on a CPU as they are drawn. Once
        another thread sets `ended`, nobody waits for codes, and what comes is none.
        """
        config, count = self.model.config, len(asked.labels)
        assert self.guided == is_guided(asked.settings)
        assert (asked.known is not None) == self.completes
        cells = orders(asked, self.model)
        given = None if asked.known is None else grid_to_sequence(asked.known, cells)
        settings = Settings.of(asked.settings, config.codebook_size, config.block_size)
        threads, images = self.division(count)
        free: SimpleQueue[SamplingPass] = SimpleQueue()
        for of_thread in self.passes_of(threads, images, settings):
            free.put(of_thread)
        ended = ended or threading.Event()

        def run(start: int) -> tuple[Tensor, Tensor]:
            mine, here = free.get(), slice(start, start + images)
            try:
                uniforms = uniform_numbers(asked.seeds[here], asked.numbers[here], config.block_size)
                order = cells if cells.ndim == 1 else cells[here]
                of_them, shown = (None if values is None else values[here] for values in (given, canvas))
                tokens, log_prob = mine.run(
                    asked.labels[here], uniforms, settings.rows(here), order, of_them, ended, shown
                )
                return sequence_to_grid(tokens, order, config.grid), log_prob
            finally:
                free.put(mine)

        with new_workers(threads) as workers:
            try:
                yield from workers.map(run, range(0, count, images))
            except BaseException:  # GeneratorExit too: whoever asked has left
                ended.set()
                raise

    def division(self, wanted: int) -> tuple[int, int]:
        """How many threads draw so many images, and how many of them in a pass."""
        if self.device.type != "cpu":
            return 1, self.at_once
        if not self.takes_any_number:
            return min(torch.get_num_threads(), -(-wanted // self.at_once)), self.at_once
        threads = min(torch.get_num_threads(), wanted)
        return threads, min(self.at_once * MOST_GROUPS_PER_PASS, -(-wanted // threads))

    def passes_of(self, threads: int, images: int, settings: Settings) -> list[SamplingPass]:
        """One per thread: those of the request before, if they suit."""
        kept = [each for each in self.passes if each.images == images and each.settings.kind == settings.kind]
        rows = 2 * images if self.guided else images
        self.passes = kept[:threads]  # what does not suit is gone before there are others
        self.passes += [
            SamplingPass(self.model, self.new_decoder(rows), images, settings.rows(slice(1)), self.completes)
            for _ in range(threads - len(kept))
        ]
        return self.passes


def sample_codes(model: GPT, asked: Asked, precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in one request: see `Sampler.codes`."""
    return Sampler(model, precision, is_guided(asked.settings), asked.known is not None).codes(asked)


def orders(asked: Asked, model: GPT) -> Tensor:
    """The cells in the order in which images are drawn: (T,), or (N, T) of a network for any order."""
    config = model.config
    if not config.options.any_order:
        return model.cells.cpu()
    names = [settings.draw_order or config.options.own_order for settings in asked.settings]
    seeds = {seed: derived_seed(seed, "orders") for seed in asked.seeds}
    random = uniform_numbers([seeds[seed] for seed in asked.seeds], asked.numbers, config.block_size).argsort(dim=1)
    fixed = {name: scan_order(name, config.grid) for name in names if name != "random"}
    cells = torch.stack([random[row] if name == "random" else fixed[name] for row, name in enumerate(names)])
    return cells if asked.known is None else known_first(asked.known >= 0, cells)


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


def uniform_numbers(seeds: Sequence[int], images: Sequence[int], positions: int) -> Tensor:
    """(n, positions) float32 in [0, 1): row r is a function of (seeds[r], images[r]), by the counter-based Philox."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, image], dtype=np.uint64))).random(
            positions, dtype=np.float32
        )
        for seed, image in zip(seeds, images, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))
