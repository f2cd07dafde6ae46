"""The VQ-GAN in training: each term of its loss against its definition, and what a step moves and what it does not."""

import copy
from functools import partial

import pytest
import torch

from vqgpt.data.training_images import LoadedImages
from vqgpt.errors import NonFiniteError
from vqgpt.tokens.arrays import effective_rank
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.adversary import PatchDiscriminator, hinge_loss
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.codebook import codebook_term, to_vectors
from vqgpt.vqgan.coding import to_unit_range
from vqgpt.vqgan.latent_norm import LatentNorm
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.optimizers import first_adversarial_step, learning_rate
from vqgpt.vqgan.options import VQGANOptions, VQGANTrainingOptions
from vqgpt.vqgan.passes import reconstruction_loss
from vqgpt.vqgan.perceptual import VGG16_CHANNELS, VGG16_LAYERS, PerceptualLoss
from vqgpt.vqgan.training import VQGANTraining

ADVERSARIAL = {"disc_start": 0, "warmup": 0, "disc_weight": 0.8}


def start_training(images=40, perceptual_loss=None, precision="fp32", patch=1, **changes) -> VQGANTraining:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 1, 16, 16), dtype=torch.uint8, generator=generator)
    shape = {"channels": 32, "z_channels": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "n_embed": 16, "embed_dim": 4}
    torch.manual_seed(1)
    model = VQGAN(VQGANConfig.of(VQGANOptions(**shape, patch=patch), 1, 16))
    values = {"batch_size": 8, "n_epochs": 2, "lr": 1e-3, "disc_weight": 0.0}
    training = VQGANTrainingOptions(**{**values, **changes})
    schedule = Schedule(seed=0, num_rows=images, batch_size=training.batch_size, n_epochs=training.n_epochs)
    loaded = LoadedImages(pixels)
    held_out = partial(loaded.passes, torch.arange(8), 8)
    return VQGANTraining(model, perceptual_loss, loaded, held_out, training, schedule, precision, lambda *_: None)


def small_perceptual_loss() -> PerceptualLoss:
    """The same distance on a network with the layers of VGG16 where they matter, and few others."""
    torch.manual_seed(2)
    layers, width = [], 3
    for index in range(30):
        if index in VGG16_LAYERS:
            layers.append(torch.nn.ReLU())
        elif index + 1 in VGG16_LAYERS:
            following = VGG16_CHANNELS[VGG16_LAYERS.index(index + 1)]
            layers.append(torch.nn.Conv2d(width, following, 1))
            width = following
        else:
            layers.append(torch.nn.Identity())
    channel_weights = [torch.rand(width) for width in VGG16_CHANNELS]
    return PerceptualLoss(torch.nn.Sequential(*layers), VGG16_LAYERS, channel_weights)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("with_perceptual_loss", [False, True])
def test_the_gradient_is_that_of_the_whole_loss(with_perceptual_loss):
    """One backward pass from the image does what a backward pass of the summed losses would do."""
    loss = small_perceptual_loss() if with_perceptual_loss else None
    training = start_training(perceptual_loss=loss, perceptual_weight=0.7, grad_clip=0.0, winograd="off", **ADVERSARIAL)
    step = next(training.schedule.steps(0))
    model, discriminator = training.model, training.discriminator
    images = to_unit_range(training.images.batch(step))
    model.train()
    out = model(images)
    image_loss = reconstruction_loss(out.images, images)
    if loss:
        image_loss = image_loss + 0.7 * loss(images, out.images).mean()
    adversarial_loss = -discriminator(out.images).mean()
    last = model.decoder.conv_out.weight
    sides = [torch.autograd.grad(side, last, retain_graph=True)[0].norm() for side in (image_loss, adversarial_loss)]
    weight = 0.8 * (sides[0] / (sides[1] + 1e-4)).clamp(0, 1e4)
    total = (
        image_loss
        + codebook_term(out.latents, out.quantized, training.options.codebook)
        + weight.detach() * adversarial_loss
    )
    expected = torch.autograd.grad(total, training.parameters)
    discriminator_loss = hinge_loss(discriminator(images), discriminator(out.images.detach()))
    expected_of_discriminator = torch.autograd.grad(discriminator_loss, list(discriminator.parameters()))

    figures = training.take_step(step)
    assert figures["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert figures["discriminator_loss"] == pytest.approx(discriminator_loss.item(), rel=1e-5)
    for parameter, gradient in zip(training.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    for parameter, gradient in zip(discriminator.parameters(), expected_of_discriminator, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_hinge_loss_of_known_values():
    assert hinge_loss(torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])).item() == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.parametrize(
    ("disc_start", "warmup", "expected"),
    [(0, 0, 0), (7, 0, 7), (0, 1, 5), (7, 1, 7), (3, 1, 5), (10, 0, None), (0, 2, None)],
)
def test_the_discriminator_starts_at_the_later_of_its_two_starts(disc_start, warmup, expected):
    options = VQGANTrainingOptions(disc_start=disc_start, warmup=warmup)
    schedule = Schedule(seed=0, num_rows=40, batch_size=8, n_epochs=2)  # 5 steps per epoch
    assert first_adversarial_step(options, schedule) == expected
    without = VQGANTrainingOptions(disc_start=disc_start, warmup=warmup, disc_weight=0)
    assert first_adversarial_step(without, schedule) is None


def test_before_its_start_the_discriminator_rests():
    training = start_training(disc_start=2, warmup=0, disc_weight=0.8)
    for step in training.schedule.steps(0):
        before = weights(training.discriminator)
        figures = training.take_step(step)
        assert ("discriminator_loss" in figures) == (step.index >= 2) == bool(changed(before, training.discriminator))
        if step.index == 3:
            break


@pytest.mark.parametrize(("after", "start"), [(0.0, 0), (0.6, 6), (0.65, 6), (0.99, 9)])
def test_before_its_start_there_is_no_perceptual_loss(after, start):
    training = start_training(perceptual_loss=small_perceptual_loss(), perceptual_after=after)
    plain = start_training()
    for step in training.schedule.steps(0):
        figures, without = training.take_step(step), plain.take_step(step)
        assert ("perceptual_loss" in figures) == (step.index >= start)
        assert figures["pixel_loss"] == pytest.approx(without["pixel_loss"]) or step.index > start


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_the_discriminator_judges_patches_of_images_of_all_sizes(size):
    logits = PatchDiscriminator(3, size)(torch.rand(2, 3, size, size))
    assert logits.shape[:2] == (2, 1)
    assert logits.shape[2] == logits.shape[3] >= 1


def test_the_codebook_moves_by_averages_or_by_gradients():
    for kind in ("ema", "loss"):
        training = start_training(codebook=kind)
        before = weights(training.model)
        training.take_step(next(training.schedule.steps(0)))
        assert "quantize.embedding.weight" in changed(before, training.model)
        assert (training.model.quantize.embedding.weight.grad is None) == (kind == "ema")


def test_the_codebook_of_the_original_starts_small_and_uniform():
    weight = start_training(codebook="loss").model.quantize.embedding.weight
    assert weight.abs().max() <= 1 / 16


def test_usage_is_counted_over_the_epoch():
    training = start_training()
    seen, latents = [], []
    for step in training.schedule.steps(0):
        with torch.no_grad():
            training.model.train()
            out = training.model(to_unit_range(training.images.batch(step)))
        seen.append(out.codes)
        latents.append(to_vectors(out.latents))
        training.take_step(step)
        if step.ends_epoch:
            break
    counts = torch.bincount(torch.cat(seen).flatten(), minlength=16)
    assert torch.equal(training.epoch_counts, counts)
    latents = torch.cat(latents).double()
    expected = effective_rank(torch.cov(latents.T, correction=0).numpy())
    figures = training.epoch_figures()
    assert figures["epoch_latent_rank"] == pytest.approx(expected, rel=1e-3)
    assert figures["epoch_used_codes"] == int((counts > 0).sum())
    assert training.epoch_counts.sum() == training.epoch_moments.sum() == 0


def test_normalised_latents_are_those_of_batch_normalisation_and_so_is_their_gradient():
    torch.manual_seed(0)
    latents, gradient = 3 * torch.randn(2, 5, 4, 3, 3) + 1
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    norm, reference = LatentNorm(4), torch.nn.BatchNorm2d(4, affine=False, momentum=0.05)
    results = norm(ours), reference(theirs)
    for result in results:
        result.backward(gradient)
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)
    assert not norm.mean.any()  # until the step is taken
    norm.follow()
    torch.testing.assert_close(norm.mean, reference.running_mean)
    norm.eval()
    norm.start(latents)
    torch.testing.assert_close(norm(latents), results[0], rtol=0, atol=1e-5)


def test_latents_are_normalised_over_the_whole_batch_whatever_the_number_of_threads():
    gradients, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            training = start_training()
            training.take_step(next(training.schedule.steps(0)))
            gradients.append([parameter.grad for parameter in training.parameters])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_normalisation_of_latents_is_no_part_of_the_result_but_its_latents_are():
    training = start_training(ema=0.5)
    for step in list(training.schedule.steps(0))[:4]:
        training.take_step(step)
    images = to_unit_range(training.images.images[:8])
    plain = VQGAN(training.model.config)
    plain.load_state_dict(training.weights)
    for model in (plain, training.result):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain.latents(images), training.result.latents(images), rtol=0, atol=1e-4)
    assert start_training(normalise_latents=False).model.latent_norm is None


def test_the_moving_average_is_the_result():
    training = start_training(ema=0.5)
    start = weights(training.model)
    first, second = list(training.schedule.steps(0))[:2]
    training.take_step(first)  # the decay is 1/10 at first, then 2/11, ...
    one = weights(training.model)
    training.take_step(second)
    two = weights(training.model)
    for name, average in training.result.state_dict().items():
        expected = (start[name] * 0.1 + one[name] * 0.9) * (2 / 11) + two[name] * (9 / 11)
        torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-5)
    assert start_training().result is not None


def test_each_weight_is_moved_by_one_optimiser_and_muons_are_the_inner_kernels():
    training = start_training(codebook="loss", **ADVERSARIAL)
    moved = {
        name: [p for group in one.param_groups for p in group["params"]] for name, one in training.optimizers.items()
    }
    assert list(moved) == ["optimizer", "muon", "discriminator_optimizer"]
    names = {parameter: name for name, parameter in training.model.named_parameters()}
    of_muon = {names[parameter] for parameter in moved["muon"]}
    kernels = {name for name, parameter in training.model.named_parameters() if parameter.ndim == 4}
    assert kernels - set(of_muon) == {"encoder.conv_in.weight", "decoder.conv_out.weight"}
    assert sorted(names.values()) == sorted(
        names[parameter] for part in ("optimizer", "muon") for parameter in moved[part]
    )
    assert list(start_training(optimizer="adam").optimizers) == ["optimizer"]


def test_the_discriminators_rate_is_bounded():
    training = start_training(lr=3e-3, lr_schedule="constant", **ADVERSARIAL)
    training.take_step(next(training.schedule.steps(0)))
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in training.optimizers.items()}
    assert rates == {"optimizer": 3e-3, "muon": 3e-3, "discriminator_optimizer": 1e-3}


@pytest.mark.parametrize(("optimizer", "rate"), [("muon", 3e-3), ("adam", 4.5e-6)])
def test_the_rate_that_suits_the_optimiser_falls_along_a_cosine(optimizer, rate):
    training = start_training(optimizer=optimizer, lr=None)
    rates = [learning_rate(step, training.schedule, training.options) for step in (0, 5, 10)]
    assert rates == pytest.approx([rate, rate / 2, 0], abs=1e-12)


def test_gradients_are_clipped_to_the_norm_asked_for():
    training = start_training(grad_clip=0.01)
    figures = training.take_step(next(training.schedule.steps(0)))
    norm = torch.stack([parameter.grad.norm() for parameter in training.parameters]).norm()
    assert figures["gradient_norm"] > 0.01
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_what_is_not_finite_stops_before_any_step(network):
    training = start_training(**ADVERSARIAL)
    model = training.model.decoder.conv_out if network == "generator" else training.discriminator.main[0]
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    before = weights(training.model), weights(training.discriminator)
    with pytest.raises(NonFiniteError, match="step 0"):
        training.take_step(next(training.schedule.steps(0)))
    unmoved = {name for name in before[0] if torch.equal(before[0][name], training.model.state_dict()[name])}
    assert unmoved >= set(before[0]) - {"decoder.conv_out.bias"}
    for name, parameter in training.discriminator.named_parameters():
        assert torch.equal(parameter, before[1][name]) or name == "main.0.bias"


def test_bfloat16_leaves_the_codebook_in_float32():
    training = start_training(precision="bf16", **ADVERSARIAL)
    for step in list(training.schedule.steps(0))[:3]:
        figures = training.take_step(step)
    assert figures["loss"] == figures["loss"]
    assert training.model.quantize.embedding.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = training.model(to_unit_range(training.images.images[:2]))
    assert out.latents.dtype == out.quantized.dtype == torch.float32


def test_state_comes_back_whole():
    training = start_training(ema=0.9, **ADVERSARIAL)
    steps = list(training.schedule.steps(0))
    for step in steps[:3]:
        training.take_step(step)
    other = start_training(ema=0.9, **ADVERSARIAL)
    other.load_state_dict(copy.deepcopy(training.state_dict()))
    for one in (training, other):
        torch.manual_seed(5)
        one.take_step(steps[3])
    for name in ("model", "averaged", "discriminator"):
        assert not changed(weights(getattr(training, name)), getattr(other, name))
    assert torch.equal(training.codebook.counts, other.codebook.counts)
    assert torch.equal(training.epoch_counts, other.epoch_counts)


def test_held_out_images_are_judged_in_passes_as_at_once():
    training = start_training()
    figures, shown = {}, {}
    for at_once in (40, 7):
        training.held_out = partial(training.images.passes, torch.arange(40), at_once)
        training.show = lambda *images, at_once=at_once: shown.update({at_once: images})
        figures[at_once] = training.validate()
    assert figures[7] == pytest.approx(figures[40], rel=1e-5)
    for one, other in zip(shown[7], shown[40], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1)
    assert torch.equal(shown[7][0], training.images.images[:16])
    assert shown[7][2].sum() == 40 * 8 * 8
