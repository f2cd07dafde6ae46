"""Dropout of the GPT on a CPU: its masks, and attention with them, by torch and by C, against their definitions."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgpt.kernels.attention import Masks, attend, attention_masks, query_blocks

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def test_masks_drop_at_the_stated_rate_and_belong_to_their_image():
    for rate in (0.1, 0.25, 0.5):
        masks = Masks(rate, 0, 5, range(8), 100_000)
        kept = masks.keep(100_000).float()
        assert set(kept.unique().tolist()) == {0.0, 1.0}
        deviation = math.sqrt(rate * (1 - rate) / kept.numel())
        assert abs(1 - kept.mean().item() - rate) < 5 * deviation
        assert kept.mean().item() * masks.scale == pytest.approx(1, abs=5 * deviation / (1 - rate))
        neighbours = (kept[:, 1:] * kept[:, :-1]).mean().item()
        assert neighbours == pytest.approx((1 - rate) ** 2, abs=0.005)
        assert torch.equal(Masks(rate, 0, 5, range(3, 6), 100_000).keep(100_000).float(), kept[3:6])
    for other in (Masks(0.5, 1, 5, range(8), 100_000), Masks(0.5, 0, 6, range(8), 100_000)):
        assert 0.49 < (other.keep(100_000) == kept).float().mean() < 0.51


def masks_of_attention(rate, qkv):
    _, positions, _, heads, _ = qkv.shape
    return Masks(rate, 0, 5, range(len(qkv)), heads * attention_masks(positions) + 40)


def defined_attention(qkv, rate):
    """Attention (B, T, 3, A, d) -> (B, T, A, d), with dropout of the weights, as it is written down."""
    images, positions, _, heads, features = qkv.shape
    keep, scale = torch.ones(images, heads, positions, positions, dtype=qkv.dtype), 1.0
    if rate:
        masks = masks_of_attention(rate, qkv)
        scale = masks.scale
        for block in query_blocks(positions):
            keep[:, :, block, : block.stop] = masks.keep(heads, block.stop - block.start, block.stop).to(qkv.dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    future = torch.ones(positions, positions).triu(1).bool()
    weights = (q @ k.transpose(-1, -2) / math.sqrt(features)).masked_fill(future, -math.inf).softmax(-1)
    return ((weights * keep * scale) @ v).transpose(1, 2)


@pytest.mark.parametrize("positions", [5, 40])
def test_attention_with_dropout_is_that_of_its_definition(positions):
    """Also where the queries make several blocks."""
    torch.manual_seed(0)
    qkv = torch.randn(2, positions, 3, 2, 3, dtype=torch.float64, requires_grad=True)

    def attention(qkv):
        return attend(qkv, masks_of_attention(0.3, qkv))

    torch.testing.assert_close(attention(qkv), defined_attention(qkv, 0.3))
    assert torch.autograd.gradcheck(attention, (qkv,), fast_mode=positions > 10)


@needs_compiler
@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(1, 3),
    positions=st.integers(1, 100),
    heads=st.integers(1, 3),
    features=st.sampled_from([8, 16, 24, 40, 64]),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
    largest=st.sampled_from([1.0, 6.0]),
)
def test_compiled_attention_is_that_of_its_definition(images, positions, heads, features, rate, largest):
    qkv = largest * torch.randn(
        images, positions, 3, heads, features, generator=torch.Generator().manual_seed(positions)
    )
    gradient = torch.randn(images, positions, heads, features)
    given, expected = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    seen = attend(given, masks_of_attention(rate, qkv) if rate else None)
    assert type(seen.grad_fn).__name__.startswith("CompiledAttention")
    seen.backward(gradient)
    wanted = defined_attention(expected, rate)
    wanted.backward(gradient.double())
    for ours, right in ((seen, wanted), (given.grad, expected.grad)):
        tolerance = 1e-5 * largest**2 * max(1.0, right.abs().max().item())  # scores are rounded by their size
        torch.testing.assert_close(ours, right.float(), rtol=0, atol=tolerance)


@needs_compiler
def test_without_a_compiler_torch_computes_attention(begin_anew):
    qkv = torch.randn(2, 40, 3, 2, 8)
    compiled = [attend(qkv, masks_of_attention(rate, qkv) if rate else None) for rate in (0.0, 0.3)]
    begin_anew("")
    for ours, rate in zip(compiled, (0.0, 0.3), strict=True):
        qkv.requires_grad_()
        seen = attend(qkv, masks_of_attention(rate, qkv) if rate else None)
        assert not type(seen.grad_fn).__name__.startswith("CompiledAttention")
        torch.testing.assert_close(seen, ours, rtol=0, atol=1e-5)
