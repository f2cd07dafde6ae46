"""Sampling: cached decoding against full passes, and images that depend on their seed and number alone."""

import shutil
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_gpt import sampled, tiny_gpt
from vqgpt.gpt.architecture import Arch
from vqgpt.gpt.attention import Cache
from vqgpt.gpt.decoding import CompiledDecoder, NetworkDecoder, compiled_decoding, compiled_weights, for_decoding
from vqgpt.gpt.generate import Asked, Sampler, images_at_once, sample_codes, uniform_numbers
from vqgpt.gpt.options import GPTConfig, GPTOptions, SamplingOptions
from vqgpt.gpt.order import Order, grid_to_sequence, scan_order
from vqgpt.gpt.sampling import Settings, draw, guidance_scales
from vqgpt.gpt.scoring import nats_of_images

CPU = torch.device("cpu")
NETWORKS = [{"arch": arch, "order": order} for arch in get_args(Arch) for order in get_args(Order)] + [{"bias": True}]
WIDER_NETWORKS = [
    {"arch": arch, "embed_dim_t": 48, "n_head": heads, "codebook_size": 19, "grid": (3, 4)}
    for arch in get_args(Arch)
    for heads in (2, 6)
]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
both_decoders = pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])


def settings_of(options, codes=16):
    """Those of one image."""
    return Settings.of([options], codes, 12)


def new_decoder(model, rows, compiled):
    """One of the two, or the network's where C does not serve it: rotations that differ from image to image."""
    library = compiled_decoding(model, "fp32") if compiled else None
    assert (library is not None) == (compiled and not (model.rotary and model.config.options.any_order))
    if library is None:
        return NetworkDecoder(model, rows)
    return CompiledDecoder(compiled_weights(model, library), rows)


def cells_of_images(model, images):
    """The order in which the network has the cells; another one for each image, where it takes any."""
    if not model.config.options.any_order:
        return model.cells
    return torch.stack([torch.randperm(len(model.cells)) for _ in range(images)])


@both_decoders
@pytest.mark.parametrize("changes", [*NETWORKS, *WIDER_NETWORKS])
@torch.no_grad()
def test_cached_decoding_equals_full_passes(changes, compiled):
    model = tiny_gpt(**changes)
    tokens, cells = torch.randint(16, (3, 12)), cells_of_images(model, 3)
    decoder = new_decoder(model, 3, compiled)
    logits = torch.stack([decoder.step(tokens[:, place], cells, place).clone() for place in range(12)], dim=1)
    torch.testing.assert_close(logits, model(tokens, cells), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", NETWORKS)
@torch.no_grad()
def test_several_tokens_at_once_are_taken_to_the_cache(changes):
    model = tiny_gpt(**changes)
    tokens, cells = torch.randint(16, (3, 12)), cells_of_images(model, 3)
    cache, parts = Cache(model.config, 3, torch.float32, CPU), []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        cache.go_to(start)
        parts.append(model(tokens[:, start:stop], cells, cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens, cells), atol=1e-5, rtol=1e-5)


@both_decoders
@torch.no_grad()
def test_cached_decoding_knows_bits(compiled):
    model = tiny_gpt(condition="bits")
    labels, codes = torch.tensor([[1, -1, 0], [0, 0, 0]]), torch.randint(16, (2, 12))
    start, bits = model.start(labels)
    tokens = torch.cat([start, codes[:, :-1]], dim=1)
    decoder = new_decoder(model, 2, compiled)
    logits = [decoder.step(tokens[:, t], model.cells, t, None if t else bits).clone() for t in range(12)]
    expected = model.predictions(codes, labels, model.cells)
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, atol=1e-5, rtol=1e-5)


def by_full_passes(model, label, uniforms, options):
    """One image, a whole pass for each token."""
    tokens = []
    for position, uniform in enumerate(uniforms):
        codes = torch.tensor([[*tokens, *[0] * (len(uniforms) - position)]])
        logits = model.predictions(codes, label[None], model.cells)[:, position]
        if options.cfg_scale != 1:
            without = model.predictions(codes, torch.full_like(label, -1)[None], model.cells)[:, position]
            logits = without + guidance_scales(options, len(uniforms))[position] * (logits - without)
        tokens.append(int(draw(logits, uniform[None], settings_of(options))))
    return tokens


@pytest.mark.parametrize("arch", get_args(Arch))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"top_p": 0.8},
        {"cfg_scale": 3.0},
        {"cfg_scale": 2.0, "cfg_schedule": "power-cosine", "cfg_power": 2.0, "min_p": 0.02, "temperature": 1.2},
    ],
)
@torch.no_grad()
def test_sampled_tokens_are_those_of_full_passes(arch, options):
    model = tiny_gpt(arch=arch, condition="class")
    labels = torch.tensor([0, 2, -1, 1])
    codes = grid_to_sequence(sampled(model, labels, **options), scan_order("s-pattern", (3, 4)))
    uniforms = uniform_numbers([0] * 4, range(4), 12)
    expected = [by_full_passes(model, *row, SamplingOptions(**options)) for row in zip(labels, uniforms, strict=True)]
    assert codes.tolist() == expected


@pytest.mark.parametrize("width", [16, 24, 64, 256])  # 24: too odd for the compiled decoder
def test_image_i_depends_on_the_seed_and_i_alone(width):
    model = tiny_gpt(embed_dim_t=width, n_head=8 if width > 24 else 2)
    at_once = images_at_once(model.config, CPU, "fp32", guided=False)
    classes = [i % 3 for i in range(6 * at_once + 5)]
    many = sampled(model, classes)
    assert torch.equal(many[:5], sampled(model, classes[:5]))
    assert torch.equal(many[:at_once], sampled(model, classes[:at_once]))
    assert not torch.equal(many, sampled(model, classes, seed=1))
    sampler = Sampler(model, "fp32")
    for first in (2 * at_once, at_once):
        later = sampler.codes(Asked.of_one_seed(torch.as_tensor(classes[first:]), 0, SamplingOptions(), first=first))
        assert torch.equal(many[first:], torch.cat([codes for codes, _ in later]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(many, sampled(model, classes))
    finally:
        torch.set_num_threads(threads)


def any_settings():
    numbers = {
        "temperature": st.just(1.0) | st.just(0.0) | st.floats(0.1, 3),
        "top_k": st.none() | st.integers(1, 20),
        "top_p": st.none() | st.floats(0.05, 1),
        "min_p": st.none() | st.floats(0, 1),
        "cfg_scale": st.just(1.0) | st.floats(0, 5),
        "cfg_schedule": st.sampled_from(["constant", "linear"]),
        "draw_order": st.sampled_from([None, "random", "spiral"]),
    }
    return st.fixed_dictionaries(numbers)


@pytest.mark.parametrize("changes", [{"embed_dim_t": 16}, {"embed_dim_t": 24}, {"order": "random"}])
@settings(max_examples=15, deadline=None)
@given(images=st.lists(st.tuples(any_settings(), st.integers(0, 3), st.integers(0, 99)), min_size=2, max_size=6))
def test_an_image_is_the_same_beside_any_others_with_other_settings(images, changes):
    """In C, by the network (whose width does not suit C), and in any order."""
    model = tiny_gpt(condition="class", **changes)
    options = [
        SamplingOptions(**({**chosen, "draw_order": None} if "order" not in changes else chosen))
        for chosen, *_ in images
    ]
    seeds, numbers = [seed for _, seed, _ in images], [number for *_, number in images]
    labels = torch.arange(len(images)) % 4 - 1
    together = Asked(labels=labels, seeds=seeds, numbers=numbers, settings=options)
    codes = torch.cat([codes for codes, _ in sample_codes(model, together, "fp32")])
    for row, expected in enumerate(codes):
        alone = Asked.of_one_seed(labels[row : row + 1], seeds[row], options[row], first=numbers[row])
        ((found, _),) = sample_codes(model, alone, "fp32")
        assert torch.equal(found[0], expected)


def test_a_canvas_shows_codes_as_they_are_drawn():
    model = tiny_gpt(order="random")
    canvas = torch.full((3, 12), -1)
    asked = Asked.of_one_seed(torch.full((3,), -1), 0, SamplingOptions())
    ((codes, _),) = Sampler(model, "fp32").codes(asked, canvas)
    assert torch.equal(canvas, codes.flatten(1))


@pytest.mark.parametrize(
    ("gibibytes", "guided", "precision", "images"),
    [
        (80, True, "bf16", 256),
        (80, True, "fp32", 128),
        (8, False, "bf16", 128),
        (8, True, "bf16", 64),
        (0.01, True, "fp32", 1),
    ],
)
def test_a_pass_on_a_gpu_has_the_images_whose_keys_and_values_it_can_hold(
    monkeypatch, gibibytes, guided, precision, images
):
    """GPT-B: 9 MiB of them for an image in bfloat16."""
    monkeypatch.setattr("vqgpt.gpt.generate.memory_bytes", lambda device: int(gibibytes * 2**30))
    options = GPTOptions(n_layer=12, n_head=12, embed_dim_t=768)
    config = GPTConfig(options=options, codebook_size=1024, grid=(16, 16), num_classes=0)
    assert images_at_once(config, torch.device("cuda"), precision, guided) == images


@needs_compiler
@torch.no_grad()
def test_a_row_of_the_compiled_decoder_is_the_same_beside_any_others():
    model = tiny_gpt(embed_dim_t=48, n_head=6)
    tokens = torch.randint(16, (37, 12))
    together, alone = new_decoder(model, 37, compiled=True), new_decoder(model, 2, compiled=True)
    for position in range(12):
        logits = together.step(tokens[:, position], model.cells, position)
        assert torch.equal(logits[31:33], alone.step(tokens[31:33, position], model.cells, position))


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_working_compiler_samples_are_drawn_by_torch(begin_anew, tmp_path, compiler):
    model = tiny_gpt()
    expected = sampled(model, [0, 1, 2])
    if compiler == "broken":
        (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "cc").chmod(0o755)
    begin_anew(tmp_path)
    assert compiled_decoding(model, "fp32") is None
    assert torch.equal(sampled(model, [0, 1, 2]), expected)


@pytest.mark.parametrize("condition", ["class", "bits"])
def test_log_probabilities_are_the_models_own_whatever_the_filters(condition):
    model = tiny_gpt(condition=condition)
    labels = torch.tensor([[1, -1, 0], [0, 0, 0]]) if condition == "bits" else torch.tensor([1, -1])
    options = SamplingOptions(temperature=0.7, top_k=5, cfg_scale=1.5)
    ((codes, log_prob),) = sample_codes(model, Asked.of_one_seed(labels, 0, options), "fp32")
    (nats,) = nats_of_images(model, codes, labels, "fp32")
    torch.testing.assert_close(-log_prob.double(), nats, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"dropout_t": 0.5}, {"dropout_t": 0.5, "order": "random", "arch": "llama"}])
def test_a_model_in_training_is_sampled_from_without_dropout(changes):
    model = tiny_gpt(**changes).train()
    for precision in ("fp32", "bf16"):
        asked = Asked.of_one_seed(torch.full((3,), -1), 0, SamplingOptions())
        first, again = (next(sample_codes(model.train(), asked, precision))[0] for _ in range(2))
        assert torch.equal(first, again)


@torch.no_grad()
def test_the_head_is_rounded_with_the_other_matrices_for_decoding():
    model = tiny_gpt()
    rounded = for_decoding(model, "bf16")
    assert rounded.codes_of_head.dtype == rounded.transformer["h"][0].attn.c_attn.weight.dtype == torch.bfloat16
    assert model.codes_of_head.dtype == torch.float32


def test_kept_codes_stay_and_those_before_them_are_as_without():
    model = tiny_gpt()
    free = sampled(model, [0, 1])
    kept = torch.full((2, 3, 4), -1)
    kept[:, 1, 1:3] = 7
    ((codes, log_prob),) = sample_codes(
        model, Asked.of_one_seed(torch.tensor([0, 1]), 0, SamplingOptions(), kept), "fp32"
    )
    assert torch.equal(codes[:, 1, 1:3], kept[:, 1, 1:3])
    assert torch.equal(codes[:, 0], free[:, 0])
    assert torch.equal(codes[:, 1, 3], free[:, 1, 3])  # the s-pattern comes to it first
    (nats,) = nats_of_images(model, codes, torch.tensor([0, 1]), "fp32")
    torch.testing.assert_close(-log_prob.double(), nats, atol=1e-4, rtol=1e-5)


def test_sampling_does_not_touch_torchs_own_random_numbers():
    model = tiny_gpt()
    state = torch.random.get_rng_state()
    sampled(model, [0, 1])
    assert torch.equal(state, torch.random.get_rng_state())
