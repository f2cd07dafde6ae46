"""The table of architectures: a block of any parts is trained, decoded and sampled as the network computes it."""

import itertools
from typing import get_args

import pytest
import torch

from tests.test_gpt import sampled, tiny_gpt
from tests.test_sampling import by_full_passes
from vqgpt.gpt.architecture import ARCHITECTURES, Arch, Architecture, MLPKind, NormKind, PositionKind
from vqgpt.gpt.decoding import COMPILED, NetworkDecoder
from vqgpt.gpt.generate import uniform_numbers
from vqgpt.gpt.options import SamplingOptions
from vqgpt.gpt.order import grid_to_sequence, scan_order

PARTS = [get_args(kind) for kind in (NormKind, MLPKind, PositionKind)]


def test_every_architecture_has_a_row_and_the_compiled_decoder_serves_those_of_the_first_release():
    assert set(ARCHITECTURES) == set(get_args(Arch))
    assert set(COMPILED) == {ARCHITECTURES["gpt2"], ARCHITECTURES["llama"]}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalised_heads", [False, True])
@pytest.mark.parametrize(("norm", "mlp", "positions"), [*itertools.product(*PARTS)])
@torch.no_grad()
def test_any_block_of_known_parts_is_decoded_as_the_network_computes_it(
    monkeypatch, norm, mlp, positions, normalised_heads, bias
):
    block = Architecture(norm=norm, mlp=mlp, positions=positions, normalised_heads=normalised_heads, biases=bias)
    monkeypatch.setitem(ARCHITECTURES, "gpt2", block)
    model = tiny_gpt(bias=bias)
    tokens = torch.randint(16, (8, 12))
    decoder = NetworkDecoder(model, 8)
    logits = torch.stack([decoder.step(tokens[:, place], model.cells, place) for place in range(12)], dim=1)
    torch.testing.assert_close(logits, model(tokens, model.cells), atol=1e-5, rtol=1e-5)
    uniforms, codes = (
        uniform_numbers([0] * 4, range(4), 12),
        sampled(model, torch.full((4,), -1)),
    )  # in C, where that serves it
    expected = [by_full_passes(model, torch.tensor(-1), row, SamplingOptions()) for row in uniforms]
    assert grid_to_sequence(codes, scan_order("s-pattern", (3, 4))).tolist() == expected
