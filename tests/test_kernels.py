"""Our C code as a whole: compiled without a warning, and run with what watches every access to memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqgpt.kernels import build
from vqgpt.kernels.build import call, compiled_library

SOURCES = sorted(Path(build.__file__).parent.glob("*.c"))
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("march", ["native", "x86-64-v4"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_it_compiles_without_a_warning(source, march, tmp_path):
    options = [f"-march={march}" if option.startswith("-march") else option for option in build.OPTIONS]
    if march != "native" and "x86_64" not in os.uname().machine:
        pytest.skip("these are instructions of another processor")
    command = ["cc", *options, "-Wall", "-Wextra", "-Werror", "-I", str(build.HEADERS), "-o", str(tmp_path / "x.so")]
    subprocess.run([*command, str(source), "-lm"], check=True)


@needs_compiler
@pytest.mark.parametrize(
    "unfit",
    [
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, device="meta"),
        torch.zeros(2, 6)[:, ::2],
        torch.zeros(6, dtype=torch.bfloat16),
    ],
    ids=["float64", "other device", "stepping", "bfloat16"],
)
def test_a_tensor_that_c_would_read_wrongly_is_refused(unfit):
    library = compiled_library(Path(build.__file__).with_name("attention.c"))
    with pytest.raises(ValueError, match="scratch_size does not take"):
        call(library, "scratch_size", unfit)


WATCHED = """
import sys, torch
from pathlib import Path
from torch.nn import functional as F
from vqgpt.kernels import build
build.OPTIONS = ["-g", "-O1", "-march=native", "-shared", "-fPIC", "-fsanitize=address,undefined",
                 "-fno-sanitize-recover=all", "-fno-sanitize=alignment"]
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.gpt.sampling import sample_codes
from vqgpt.kernels import attention, normalisation, winograd
from vqgpt.kernels.dropout import Masks
from vqgpt.gpt.options import SamplingOptions
assert build.compiled_library(Path(build.__file__).with_name("attention.c"))
torch.manual_seed(0)
for positions in (1, 7, 17, 33, 49):
    heads = 3
    needed = heads * attention.attention_masks(positions)
    masks = Masks(0.2, 0, 0, range(2), needed)
    masks.drawn = masks.drawn[:, :needed].clone()  # not a number more than there are weights
    qkv = torch.randn(2, positions, 3, heads, 8, requires_grad=True)
    attention.attend(qkv, masks).sum().backward()
    assert qkv.grad.isfinite().all()
norm = normalisation.Norm(32, silu=True)
for side in (1, 3, 5):
    x = torch.randn(2, 32, side, side, requires_grad=True)
    norm(x).sum().backward()
with winograd.fast_convolutions(torch.device("cpu"), "fp32"):
    for side in (4, 9, 16):
        x, weight = torch.randn(4, 16, side, side, requires_grad=True), torch.randn(32, 16, 3, 3, requires_grad=True)
        x = x.to(memory_format=torch.channels_last)
        F.conv2d(x, weight, torch.zeros(32), padding=1).sum().backward()
for arch in ("gpt2", "llama"):
    options = GPTOptions(arch=arch, n_layer=1, n_head=2, embed_dim_t=16, condition="class")
    model = GPT(GPTConfig(options=options, codebook_size=13, grid=(3, 3), num_classes=2)).eval()
    passes = sample_codes(model, torch.tensor([0, 1, 1]), 0, SamplingOptions(num_samples=3), "fp32")
    assert all(codes.max() < 13 for codes, _ in passes)
print("ended")
"""


@needs_compiler
def test_no_access_is_outside_of_a_buffer(tmp_path):
    """By AddressSanitizer and UndefinedBehaviorSanitizer, with buffers that end where the last number does."""
    asan = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("this compiler has no AddressSanitizer")
    environment = {
        **os.environ,
        "LD_PRELOAD": asan,
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONMALLOC": "malloc",
    }
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout == "ended\n"
    assert "of no use" not in ended.stderr
