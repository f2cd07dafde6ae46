"""Sampling from the GPT.

    labels (N,) or (N, L), seed -> codes (N, h, w) int64, log_prob (N,) float32 in nats

Image i is a function of (seed, i) and of the settings: each token is drawn by inverting its cumulative distribution at
a uniform number that depends on (seed, i, position) alone, and products always have the same number of rows and run in
one thread, so that not even rounding depends on how many images were asked for, or on the cores. `decoding.c`, where it
can be used, computes each row on its own. Knows nothing of images, the VQ-GAN and token caches.
"""

import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from vqgpt.config.gpt import GPTConfig, SamplingOptions
from vqgpt.gpt.compiled_decoding import CompiledDecoder, CompiledWeights, decoding_library
from vqgpt.gpt.decoding import Decoder, DecoderWeights
from vqgpt.gpt.drawing import draw, guidance_scale, guide
from vqgpt.gpt.model import GPT
from vqgpt.gpt.order import grid_to_sequence, scan_order, sequence_to_grid
from vqgpt.gpt.recording import Compute, Recorded
from vqgpt.runtime import new_workers

MOST_GROUPS_PER_PASS = 4  # on a CPU
MOST_IMAGES_AT_ONCE = 256  # a power of 2, as every such number is
IMAGES_ON_CPU = 32
WIDE_IMAGES_ON_CPU = 8  # where a step is reading the weights
WIDE = 256  # width of the network
WORTH_RECORDING = 3  # passes on a GPU: recording takes about as long as a pass by Python
GPU_CACHE_BYTES = 8 * 2**30  # of keys and values in a pass


def sample_codes(
    model: GPT,
    labels: Tensor,
    first_image: int,
    seed: int,
    options: SamplingOptions,
    precision: str,
    kept: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw image `first_image + i` for `labels[i]`, as `GPT.start` takes them; codes `kept` (N, h, w) are not drawn.

    -1 in `kept` is a code to draw. Yields codes (n, h, w) int64 and their log-probabilities (n,) on the CPU, pass by
    pass, in order; `first_image` is a multiple of `images_at_once`. On a CPU a pass is several such groups where many
    images are asked for, as long operations wait less for Python's lock.
    """
    config, device, guided = model.config, next(model.parameters()).device, options.cfg_scale != 1
    at_once, library = images_at_once(config, device, precision, guided), decoding_library(model, precision)
    assert first_image % at_once == 0
    scan = scan_order(config.options.order, config.grid)
    forced = None if kept is None else grid_to_sequence(kept, scan)
    step = 1 if library else at_once  # of the number of images of a pass
    threads = min(torch.get_num_threads(), -(-len(labels) // step)) if device.type == "cpu" else 1
    most = at_once * MOST_GROUPS_PER_PASS if device.type == "cpu" else at_once
    images = min(most, -(-len(labels) // (threads * step)) * step)
    rows = 2 * images if guided else images
    weights: CompiledWeights | DecoderWeights
    if library:
        weights = CompiledWeights(model, library)
    else:
        weights = DecoderWeights(model, precision, at_once if device.type == "cpu" else rows)
    ended = threading.Event()
    idle: SimpleQueue[Compute] = SimpleQueue()
    for _ in range(threads):
        drawn_by = partial(draw_tokens, weights.new_decoder(rows), options, ended)
        idle.put(Recorded(drawn_by) if device.type == "cuda" and len(labels) >= WORTH_RECORDING * images else drawn_by)

    def run(start: int) -> tuple[Tensor, Tensor]:
        here = slice(start, start + images)
        uniforms = uniform_numbers(seed, first_image + start, images, config.block_size).to(device)
        token, bits = model.start(_padded(labels[here], rows, 0 if labels.ndim == 2 else -1).to(device))
        tokens = None if forced is None else _padded(forced[here], images, -1).to(device)
        compute = idle.get()
        try:
            codes, log_prob = compute(token[:, 0], bits, uniforms, tokens)
            asked = len(labels[here])
            return codes[:asked].cpu(), log_prob[:asked].cpu()
        finally:
            idle.put(compute)

    with new_workers(threads) as workers:
        try:
            for codes, log_prob in workers.map(run, range(0, len(labels), images)):
                yield sequence_to_grid(codes, scan, config.grid), log_prob
        finally:
            ended.set()


def images_at_once(config: GPTConfig, device: torch.device, precision: str, guided: bool) -> int:
    """How many images a product has: a function of the network and the kind of device, of nothing else.

    On a GPU as many as their keys and values leave room for. On a CPU few, so that those stay in a core's cache, and
    so that a request for a few images does not pay for many.
    """
    if device.type == "cpu":
        return IMAGES_ON_CPU if config.options.embed_dim_t < WIDE else WIDE_IMAGES_ON_CPU
    options = config.options
    bytes_per_image = options.n_layer * 2 * config.block_size * options.embed_dim_t * (2 if precision == "bf16" else 4)
    images = max(1, GPU_CACHE_BYTES // (bytes_per_image * (1 + guided)))
    return min(MOST_IMAGES_AT_ONCE, 2 ** (images.bit_length() - 1))


@torch.inference_mode()
def draw_tokens(
    decoder: Decoder | CompiledDecoder,
    options: SamplingOptions,
    ended: threading.Event,
    token: Tensor,
    bits: Tensor | None,
    uniforms: Tensor,
    forced: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Start tokens (R,) and bits as `GPT.start` gives them, uniforms (B, T) -> tokens (B, T) int64 and log_prob (B,).

    R is B, or twice B with guidance, whose second half has no labels. `forced` (B, T) are tokens that are not drawn, -1
    where they are. Does not wait for the device. Nobody waits for the result once it has `ended`.
    """
    images, positions = uniforms.shape
    guided = options.cfg_scale != 1
    tokens = torch.empty(images, positions, dtype=torch.int64, device=uniforms.device)
    log_prob = torch.zeros(images, 1, device=uniforms.device)
    for position in range(positions):
        if ended.is_set():
            break
        logits = decoder.step(token, position, bits if position == 0 else None)
        own = logits[:images]
        if guided:
            logits = guide(own, logits[images:], guidance_scale(position, positions, options))
        token = draw(logits, uniforms[:, position], options)
        if forced is not None:
            token = torch.where(forced[:, position] < 0, token, forced[:, position])
        tokens[:, position] = token
        log_prob += own.log_softmax(dim=-1).gather(1, token[:, None])
        if guided:
            token = token.repeat(2)
    return tokens, log_prob[:, 0].clamp(max=0)


def _padded(values: Tensor, rows: int, untold: int) -> Tensor:
    """Rows (n, ...) filled up to as many with what says nothing: the unconditional half of guidance, and spare rows."""
    return torch.cat([values, values.new_full((rows - len(values), *values.shape[1:]), untold)])


def uniform_numbers(seed: int, first: int, images: int, positions: int) -> Tensor:
    """(images, positions) float32 in [0, 1): row r is a function of (seed, first + r), by the counter-based Philox."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, first + row], dtype=np.uint64))).random(
            positions, dtype=np.float32
        )
        for row in range(images)
    ]
    return torch.from_numpy(np.stack(rows))
