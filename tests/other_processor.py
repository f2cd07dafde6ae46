"""Our C code, compiled for another processor and run under an emulator, against plain torch on this one.

    python -m tests.other_processor                                  aarch64, where its compiler and qemu-user are
    python -m tests.other_processor --compiler cc --emulator ""      the same on this processor

On Debian: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user. Exit code 77 where they are missing.
Each call of a kernel becomes a program, which reads the arguments from files and writes them back.
"""

import argparse
import ctypes
import functools
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.gpt.decoding import CompiledDecoder, compiled_weights
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.kernels import attention, build, decoding, normalisation, winograd
from vqgpt.kernels.attention import Masks

SKIPPED = 77
ALLOWED = ["-Wno-unused-function", "-Wno-psabi"]  # psabi: wide vectors cross no border between compilers here
PROGRAM = """
#include "{source}"
#include <stdio.h>
#include <stdlib.h>
static void *all_of(const char *name, long size) {{
    if (!size) return 0;  // as an empty tensor has no address
    char *data = malloc(size);
    FILE *file = fopen(name, "rb");
    if (!file || (long)fread(data, 1, size, file) != size) exit(3);
    fclose(file);
    return data;
}}
static void keep(const char *name, const void *data, long size) {{
    if (!size) return;
    FILE *file = fopen(name, "wb");
    if (!file || (long)fwrite(data, 1, size, file) != size || fclose(file)) exit(4);
}}
int main(int count, char **argument) {{
    void *data[16];
    (void)count;
    for (int i = 0; {pointers}[i]; i++)
        if ({pointers}[i] == 'p') data[i] = all_of(argument[3 * i + 1], atol(argument[3 * i + 2]));
    {call};
    for (int i = 0; {pointers}[i]; i++)
        if ({pointers}[i] == 'p') keep(argument[3 * i + 1], data[i], atol(argument[3 * i + 2]));
    return 0;
}}
"""


def emulated(compiler: str, optimise: str, emulator: list[str], folder: Path) -> Callable[..., int]:
    """What `build.call` does, by a program of the other processor; the library is the path of a C file."""

    @functools.cache
    def program(source: Path, name: str, kinds: str) -> Path:
        values = ", ".join(
            f"data[{i}]" if kind == "p" else f"atol(argument[{3 * i + 3}])" for i, kind in enumerate(kinds)
        )
        returns = (
            f'long result = {name}({values}); printf("%ld", result)'
            if name.startswith("scratch_size")
            else f"{name}({values})"
        )
        path = folder / f"{source.stem}-{name}-{kinds}"
        path.with_suffix(".c").write_text(PROGRAM.format(source=source, call=returns, pointers=f'"{kinds}"'))
        options = [optimise, "-static", "-Wall", "-Wextra", "-Werror", *ALLOWED]
        command = [compiler, *options, "-I", str(build.HEADERS), "-o", str(path), f"{path}.c", "-lm"]
        subprocess.run(command, check=True)
        return path

    def call(source: Path, name: str, *arguments: Tensor | int) -> int:
        build.call(NOTHING, "nothing", *arguments)  # for its checks
        kinds = "".join("l" if isinstance(argument, int) else "p" for argument in arguments)
        words = []
        for i, argument in enumerate(arguments):
            if isinstance(argument, int):
                words += ["", "", str(argument)]
                continue
            # masks of further images lie behind those of the first
            whole = argument.untyped_storage().nbytes() - argument.storage_offset() * argument.element_size()
            (folder / str(i)).write_bytes(ctypes.string_at(argument.data_ptr(), whole))
            words += [str(folder / str(i)), str(whole), ""]
        command = [*emulator, str(program(source, name, kinds)), *words]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                data = (folder / str(i)).read_bytes()  # a later one has the last word on memory that it shares
                ctypes.memmove(argument.data_ptr(), data, len(data))
        return int(said or 0)

    return call


class _Nothing:
    """A library whose one function takes anything."""

    @staticmethod
    def nothing(*_: object) -> int:
        return 0


NOTHING: ctypes.CDLL = _Nothing()  # type: ignore[assignment]


def results() -> dict[str, list[Tensor]]:
    """What each kernel computes of the same inputs, gradients included; plain torch where there is no library."""
    torch.manual_seed(0)
    made: dict[str, list[Tensor]] = {}

    def and_gradients(y: Tensor, *inputs: Tensor) -> list[Tensor]:
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        return [y.detach(), *torch.autograd.grad(y, inputs, weights)]

    for positions in (7, 40):
        qkv = torch.randn(2, positions, 3, 2, 8, requires_grad=True)
        count = 2 * attention.attention_masks(positions)
        for masks in (None, Masks(0.2, 0, 0, range(2), count)):
            name = f"attention, {positions} positions, {'dropout' if masks else 'plain'}"
            made[name] = and_gradients(attention.attend(qkv, masks), qkv)
    for silu in (False, True):
        x, norm = torch.randn(2, 64, 5, 3, requires_grad=True), normalisation.Norm(64, silu)
        made[f"normalisation, {silu=}"] = and_gradients(norm(x), x, norm.weight, norm.bias)
    x, weight = torch.randn(8, 16, 9, 10, requires_grad=True), torch.randn(32, 16, 3, 3, requires_grad=True)
    bias = torch.randn(32, requires_grad=True)
    with winograd.fast_convolutions(torch.device("cpu"), "fp32"):
        made["winograd"] = and_gradients(F.conv2d(x, weight, bias, (1, 1), (1, 1), (1, 1), 1), x, weight, bias)
    for arch in ("gpt2", "llama"):
        options = GPTOptions(arch=arch, n_layer=2, n_head=2, embed_dim_t=16)
        model = GPT(GPTConfig(options=options, codebook_size=13, grid=(3, 4), num_classes=0)).eval()
        tokens = torch.randint(13, (3, 12))
        library = decoding.decoding_library(16, 2)
        with torch.no_grad():
            if library is None:
                made[f"decoding, {arch}"] = [model(tokens, model.cells)]
            else:
                decoder = CompiledDecoder(compiled_weights(model, library), 3)
                steps = [decoder.step(tokens[:, place], model.cells, place).clone() for place in range(12)]
                made[f"decoding, {arch}"] = [torch.stack(steps, dim=1)]
    return made


def main() -> int:
    """Print how far each kernel is from plain torch; 1 if one is too far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--emulator", default="qemu-aarch64")
    parser.add_argument("--optimise", default="-O3")
    options = parser.parse_args()
    emulator = shlex.split(options.emulator)
    for tool in (options.compiler, *emulator[:1]):
        if shutil.which(tool) is None:
            print(f"skipped: there is no {tool}")
            return SKIPPED
    modules = (attention, decoding, normalisation, winograd)
    for module in modules:
        module.compiled_library = lambda source: None  # type: ignore[attr-defined]
    expected = results()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for module in modules:
            module.compiled_library = lambda source: source  # type: ignore[attr-defined]
            module.call = emulated(options.compiler, options.optimise, emulator, Path(folder))  # type: ignore[attr-defined]
        for name, tensors in results().items():
            pairs = zip(tensors, expected[name], strict=True)
            far = max(((ours - right).abs().max() / right.abs().max()).item() for ours, right in pairs)
            print(f"{name}: {far:.1e}")
            worst = max(worst, far)
    return int(not worst < 1e-4)


if __name__ == "__main__":
    sys.exit(main())
