"""What a GPU replays: steps whose position lies on the device, against full passes and against Python's own loop."""

import threading

import pytest
import torch

from tests.test_gpt import tiny_gpt
from tests.test_sampling import NETWORKS, cells_of_images
from vqgpt.gpt.decoding import NetworkDecoder, for_decoding
from vqgpt.gpt.generate import Asked, Sampler, SamplingPass, orders, uniform_numbers
from vqgpt.gpt.options import SamplingOptions
from vqgpt.gpt.order import grid_to_sequence
from vqgpt.gpt.sampling import Settings

ALL_FILTERS = {"cfg_scale": 3.0, "cfg_schedule": "linear", "top_p": 0.8, "top_k": 5, "min_p": 0.01}


class StepsByPython:
    """What `GraphedSteps` does, without graphs."""

    def __init__(self, step, stride):
        self.step, self.stride, self.position = step, stride, torch.zeros(1, dtype=torch.int64)

    def start(self, position):
        self.position.fill_(position)

    def replay(self, position):
        assert self.position.item() == position
        self.step(self.position, min((position // self.stride + 1) * self.stride, 12))
        self.position += 1


@pytest.mark.parametrize("stride", [5, 12])
@pytest.mark.parametrize("changes", [*NETWORKS, {"condition": "bits"}])
@torch.no_grad()
def test_steps_with_the_position_on_the_device_equal_full_passes(changes, stride):
    model = tiny_gpt(**changes)
    tokens = torch.randint(16, (3, 12))
    bits = torch.tensor([[1, -1, 0]] * 3) if "condition" in changes else None
    cells = cells_of_images(model, 3)
    for precision, bound in (("fp32", 1e-5), ("bf16", 0.2)):
        decoder = NetworkDecoder(for_decoding(model, precision), 3)
        for earlier in range(12):  # what an earlier pass left in the cache is not seen
            decoder.step(torch.randint(16, (3,)), cells, earlier)
        logits = [decoder.step(tokens[:, 0], cells, 0, bits)]
        for position in range(1, 12):
            seen = min((position // stride + 1) * stride, 12)
            logits.append(decoder.step(tokens[:, position], cells, torch.tensor([position]), seen=seen))
        expected = model(tokens, cells, added=bits)
        torch.testing.assert_close(torch.stack(logits, dim=1), expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("order", ["s-pattern", "random"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, ALL_FILTERS])
def test_a_pass_in_steps_for_graphs_draws_the_same(arch, options, order):
    """All that a GPU does but for the graphs themselves, several passes one after the other, with tokens given."""
    model = tiny_gpt(arch=arch, order=order, condition="class")
    options = {**options, "draw_order": "random"} if order == "random" else options
    options, labels = SamplingOptions(**options), torch.tensor([0, 1, -1, 2])
    kept = torch.full((4, 3, 4), -1)
    kept[:, 1] = 7
    guided = options.cfg_scale != 1
    settings = Settings.of([options] * 4, 16, 12)
    steps = SamplingPass(model, NetworkDecoder(model, 8 if guided else 4), 4, settings, completes=True)
    steps.graphs = StepsByPython(steps.step_in_graph, stride=5)
    sampler = Sampler(model, "fp32", guided, completes=True)
    for seed in (0, 1):
        asked = Asked.of_one_seed(labels, seed, options, kept)
        ((codes, log_prob),) = sampler.codes(asked)
        cells, uniforms = orders(asked, model), uniform_numbers(asked.seeds, asked.numbers, 12)
        given = grid_to_sequence(kept, cells)
        tokens, log_prob_of_steps = steps.run(labels, uniforms, settings, cells, given, threading.Event())
        assert torch.equal(tokens, grid_to_sequence(codes, cells))
        torch.testing.assert_close(log_prob_of_steps, log_prob, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 0.5, "top_p": 0.9}, ALL_FILTERS])
@torch.inference_mode()
def test_no_step_waits_for_the_device_or_reads_what_lies_elsewhere(options, arch, precision):
    """Without data, as a graph is recorded: torch refuses to tell a value, and to mix the devices of tensors."""
    model = tiny_gpt(arch=arch, condition="class", order="random").to("meta")
    rows = 8 if "cfg_scale" in options else 4
    decoder = NetworkDecoder(for_decoding(model, precision), rows)
    one_pass = SamplingPass(model, decoder, 4, Settings.of([SamplingOptions(**options)], 16, 12), completes=True)
    one_pass.step_in_graph(torch.zeros(1, dtype=torch.int64, device="meta"), seen=10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("options", [{}, {"cfg_scale": 3.0, "cfg_schedule": "linear"}, {"top_p": 0.8, "top_k": 5}])
def test_graphs_draw_what_python_draws(options):
    device = torch.device("cuda")
    model = tiny_gpt(condition="class", grid=(9, 9)).to(device)  # of two graphs
    settings, labels = Settings.of([SamplingOptions(**options)] * 16, 16, 81), torch.arange(16) % 3
    sampler = Sampler(model, "fp32", guided="cfg_scale" in options)
    (by_graphs,) = sampler.passes_of(1, sampler.at_once, settings)
    uniforms, cells = [uniform_numbers([seed] * 16, range(16), 81) for seed in (0, 1)], model.cells.cpu()
    drawn = [by_graphs.run(labels, numbers, settings, cells, None, threading.Event()) for numbers in uniforms]
    by_graphs.graphs = None
    for numbers, (tokens, log_prob) in zip(uniforms, drawn, strict=True):
        by_python, log_prob_by_python = by_graphs.run(labels, numbers, settings, cells, None, threading.Event())
        assert torch.equal(tokens, by_python)
        torch.testing.assert_close(log_prob, log_prob_by_python, atol=1e-3, rtol=1e-4)
