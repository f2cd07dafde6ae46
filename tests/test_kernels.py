"""Our C code as a whole: compiled without a warning, and run with what watches every access to memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests import other_processor
from vqgpt.kernels import attention, build, decoding, normalisation, winograd
from vqgpt.kernels.attention import Masks
from vqgpt.kernels.build import SOURCES, call, compiled_library

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
        torch.zeros(2, 6)[:, :3],
        torch.zeros(6, dtype=torch.bfloat16),
    ],
    ids=["float64", "other device", "stepping", "rows apart", "bfloat16"],
)
def test_a_tensor_that_c_would_read_wrongly_is_refused(unfit):
    library = compiled_library(Path(build.__file__).with_name("attention.c"))
    with pytest.raises(ValueError, match="scratch_size does not take"):
        call(library, "scratch_size", unfit)


@needs_compiler
@pytest.mark.parametrize(
    "shape", [(2, 5, 2, 3, 8), (2, 5, 3, 8)], ids=["two of queries, keys and values", "a dimension is missing"]
)
def test_attention_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="attention takes"):
        attention.attend(torch.zeros(shape), None)


@needs_compiler
def test_masks_of_fewer_images_are_refused():
    masks = Masks(0.2, 0, 0, range(1), 2 * attention.attention_masks(5))
    with pytest.raises(ValueError, match="masks of 3 images, not of 1"):
        attention.attend(torch.zeros(3, 5, 3, 2, 8), masks)


@needs_compiler
def test_channels_that_do_not_suit_are_refused_as_torch_does():
    """In C, they would be read beyond the end of the weights."""
    x = torch.zeros(16, 64, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="Expected weight to be a vector"):
        normalisation.Norm(32)(x)
    with winograd.fast_convolutions(torch.device("cpu"), "fp32"):
        for weight, bias in (((32, 32, 3, 3), 32), ((32, 64, 3, 3), 16)):
            with pytest.raises(RuntimeError, match=r"expected (input|bias)"):
                F.conv2d(x, torch.zeros(weight), torch.zeros(bias), (1, 1), (1, 1), (1, 1), 1)


def decoding_weights(codes=13, **changes):
    shape = decoding.Shape(layers=1, heads=2, width=16, inside=20, codes=13, positions=4, llama=False)
    norm = torch.ones(16), None
    layer = decoding.LayerWeights(
        norm, (torch.ones(48, 16), None), (torch.ones(16, 16), None), norm,
        (torch.ones(20, 16), None), (torch.ones(16, 20), None),
    )  # fmt: skip
    library = decoding.decoding_library(16, 2)
    head = torch.ones(codes, 16)
    return decoding.network_weights(library, shape._replace(**changes), [layer], norm, head, torch.empty(0))


@needs_compiler
@pytest.mark.parametrize("changes", [{"codes": 17}, {"layers": 2}, {"width": 32}, {"inside": 40}, {"llama": True}])
def test_weights_of_another_shape_are_refused(changes):
    with pytest.raises(ValueError, match="the weights are not those of"):
        decoding_weights(**changes)


@needs_compiler
@pytest.mark.parametrize(("rows", "width", "position"), [(3, 16, 4), (3, 16, -1), (2, 16, 0), (1, 16, 0), (3, 32, 0)])
def test_a_step_outside_of_the_cache_is_refused(rows, width, position):
    steps = decoding.CachedSteps(decoding_weights(), 3)
    assert steps.step(torch.ones(3, 16), 3).shape == (3, 13)
    with pytest.raises(ValueError, match="step does not take"):
        steps.step(torch.ones(rows, width), position)


WATCHED = """
import sys, torch
from pathlib import Path
from torch.nn import functional as F
from vqgpt.kernels import build
build.OPTIONS = ["-g", "-O1", "-march=native", "-shared", "-fPIC", "-fsanitize=address,undefined",
                 "-fno-sanitize-recover=all", "-fno-sanitize=alignment"]
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.kernels import attention, normalisation, winograd
from vqgpt.kernels.attention import Masks
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
    passes = sample_codes(model, Asked.of_one_seed(torch.tensor([0, 1, 1]), 0, SamplingOptions(num_samples=3)), "fp32")
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


@needs_compiler
@pytest.mark.parametrize(
    "tools", [[], ["--compiler", "cc", "--emulator", "", "--optimise=-O1"]], ids=["aarch64", "here"]
)
def test_other_processors_compute_what_torch_does(tools):
    """Here, for the smallest processor of the kind: without the instructions that were added since."""
    command = [sys.executable, "-m", "tests.other_processor", *tools]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == other_processor.SKIPPED:
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert len(ended.stdout.splitlines()) == 9
