"""What keeping memory pages and the channels_last layout bring on this CPU.

Encodes batches, and takes training steps, with the default VQ-GAN (32 x 32 RGB, batch 64), in processes of their own
for each of the four settings, interleaved; prints the median images/s of each beside the speed of a 1024 x 1024 x 1024
float32 matrix product in the same process.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from vqgpt.runtime.process import keep_memory_pages
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions

ROUNDS = 3
BATCH = 64
STEPS = 6
SETTINGS = [(keep, layout) for layout in ("contiguous", "channels_last") for keep in ("default", "kept")]


def measure(keep: str, layout: str) -> tuple[float, float, float]:
    """Images/s of the encoder, images/s of a training step, GFLOP/s of a matrix product."""
    if keep == "kept":
        keep_memory_pages()
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig.of(VQGANOptions(), image_channels=3, size=32))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, 32, 32).to(memory_format=memory_format)
    encode = seconds_per_call(lambda: encode_with(model, images))
    step = seconds_per_call(lambda: training_step(model, images))
    matrix = torch.randn(1024, 1024)
    product = seconds_per_call(lambda: matrix @ matrix)
    return BATCH / encode, BATCH / step, 2 * 1024**3 / product / 1e9


@torch.no_grad()
def encode_with(model: VQGAN, images: torch.Tensor) -> None:
    """The encoder alone, in the layout of its input."""
    model.quantize.latents_to_codes(model.quant_conv(model.encoder(images)))


def training_step(model: VQGAN, images: torch.Tensor) -> None:
    """Forward and backward of the pixel loss."""
    model.zero_grad()
    latents = model.quant_conv(model.encoder(images))
    (model.decoder(model.post_quant_conv(latents)) - images).abs().mean().backward()


def seconds_per_call(call: Callable[[], object]) -> float:
    """The median over a few calls, after one to warm up."""
    call()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure one setting if it is named, else all of them in turn."""
    if len(sys.argv) == 3:
        print(*measure(*sys.argv[1:]))
        return
    results: dict[tuple[str, str], list[list[float]]] = {setting: [] for setting in SETTINGS}
    for _ in range(ROUNDS):
        for setting in SETTINGS:
            output = subprocess.run([sys.executable, __file__, *setting], capture_output=True, text=True, check=True)
            results[setting].append([float(value) for value in output.stdout.split()])
    print(f"{'pages':8} {'layout':14} {'encode images/s':>16} {'train images/s':>15} {'matrix GFLOP/s':>15}")
    for (keep, layout), rows in results.items():
        encode, step, product = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{keep:8} {layout:14} {encode:16.1f} {step:15.1f} {product:15.0f}")


if __name__ == "__main__":
    main()
