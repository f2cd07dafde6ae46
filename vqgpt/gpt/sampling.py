"""Sampling from the GPT.

    labels (N,) or (N, L), seed -> codes (N, h, w) int64, log_prob (N,) float32 in nats

Image i is a function of (seed, i) and of the settings: each token is drawn by inverting its cumulative distribution at
a uniform number that depends on (seed, i, position) alone, and products always have the same number of rows and run in
one thread, so that not even rounding depends on how many images were asked for, or on the cores. `decoding.c`, where it
can be used, computes each row on its own. Knows nothing of images, the VQ-GAN and token caches.
"""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from vqgpt.gpt.decoding import CompiledWeights, DecoderWeights, compiled_decoding
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, SamplingOptions
from vqgpt.gpt.order import grid_to_sequence, scan_order, sequence_to_grid
from vqgpt.gpt.sampling_pass import SamplingPass
from vqgpt.runtime.device import new_workers

MOST_GROUPS_PER_PASS = 4  # on a CPU
MOST_IMAGES_AT_ONCE = 256  # a power of 2, as every such number is
IMAGES_ON_CPU = 32
WIDE_IMAGES_ON_CPU = 8  # where a step is reading the weights
WIDE = 256  # width of the network
GPU_CACHE_BYTES = 8 * 2**30  # of keys and values in a pass, at most
GPU_CACHE_SHARE = 1 / 4  # of the device's memory


class Sampler:
    """A GPT ready to be sampled from with the same options, request after request; used from one thread at a time.

    With `completes`, images have codes that are given and not drawn. On a CPU a pass is several groups of
    `images_at_once` where many images are asked for, as long operations wait less for Python's lock.
    """

    def __init__(self, model: GPT, options: SamplingOptions, precision: str, completes: bool = False) -> None:
        self.model, self.options, self.completes = model, options, completes
        self.device, self.guided = next(model.parameters()).device, options.cfg_scale != 1
        self.at_once = images_at_once(model.config, self.device, precision, self.guided)
        library = compiled_decoding(model, precision)
        self.step = 1 if library else self.at_once  # of the number of images of a pass
        self.weights: CompiledWeights | DecoderWeights
        if library:
            self.weights = CompiledWeights(model, library)
        else:
            rows_of_pass = 2 * self.at_once if self.guided else self.at_once
            self.weights = DecoderWeights(model, precision, self.at_once if self.device.type == "cpu" else rows_of_pass)
        self.passes: list[SamplingPass] = []

    def codes(
        self, labels: Tensor, first_image: int, seed: int, kept: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw image `first_image + i` for `labels[i]`, as `GPT.start` takes them; `kept` (N, h, w) are not drawn.

        -1 in `kept` is a code to draw. Yields codes (n, h, w) int64 and their log-probabilities (n,) on the CPU, pass
        by pass, in order; `first_image` is a multiple of `images_at_once`.
        """
        config = self.model.config
        assert first_image % self.at_once == 0
        assert (kept is not None) == self.completes
        scan = scan_order(config.options.order, config.grid)
        given = None if kept is None else grid_to_sequence(kept, scan)
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
                return mine.run(labels[here], uniforms, None if given is None else given[here], ended)
            finally:
                free.put(mine)

        with new_workers(threads) as workers:
            try:
                for tokens, log_prob in workers.map(run, range(0, len(labels), images)):
                    yield sequence_to_grid(tokens, scan, config.grid), log_prob
            finally:
                ended.set()

    def division(self, wanted: int) -> tuple[int, int]:
        """How many threads draw so many images, and how many of them in a pass."""
        if self.device.type != "cpu":
            return 1, self.at_once
        threads = min(torch.get_num_threads(), -(-wanted // self.step))
        return threads, min(self.at_once * MOST_GROUPS_PER_PASS, -(-wanted // (threads * self.step)) * self.step)

    def passes_of(self, threads: int, images: int) -> list[SamplingPass]:
        """One per thread: those of the request before, if they suit."""
        if len(self.passes) != threads or self.passes[0].images != images:
            rows = 2 * images if self.guided else images
            self.passes = [
                SamplingPass(self.model, self.weights.new_decoder(rows), images, self.options, self.completes)
                for _ in range(threads)
            ]
        return self.passes


def sample_codes(
    model: GPT, labels: Tensor, seed: int, options: SamplingOptions, precision: str, kept: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images of a seed, in one request: see `Sampler.codes`."""
    return Sampler(model, options, precision, kept is not None).codes(labels, 0, seed, kept)


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
