"""About how long the stages of `vqgpt run` take on this machine: a step of each is timed, on random images and codes.

No image is read and nothing is written: sizes come from the options, the number of images from the table of datasets or
from the names of one's own files. A first step, which compiles and allocates, is not counted.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from vqgpt.api.options import SampleConfig, TokenizeConfig, TrainConfig, VQGANTrainConfig
from vqgpt.api.train_vqgan import new_model, open_start, started_model
from vqgpt.data.folder import read_folder
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import SHARE_HELD_OUT
from vqgpt.data.table import find_dataset, held_out_split
from vqgpt.data.training_images import LoadedImages
from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTTrainingOptions
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining
from vqgpt.progress import silent
from vqgpt.runtime.device import resolve_precision, resolve_precision_of_products, select_device
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import encode_images
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.optimizers import first_adversarial_step
from vqgpt.vqgan.options import VQGANTrainingOptions
from vqgpt.vqgan.perceptual import PerceptualLoss, choose_perceptual_loss, untrained_perceptual_loss
from vqgpt.vqgan.training import VQGANTraining

PIXELS = 2**16  # at most, of the images of a timed step: a small network takes as long for fewer
TOKENS = 2**13
MOST_STEPS = 4
LONG_SECONDS = 2.0  # for more than two steps
DECODING_TOO = 2.5  # times as long as encoding alone
PAGE_SECONDS = 3.0  # of the page at the end; 1.3 of digits on 2 cores of an AMD EPYC
STEP_PER_FORWARD = 3  # a step goes forward and back, which is twice the work


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that one image takes: in a step of a training, a view of it in the encoder, one that is sampled."""

    vqgan_step: float = 0.0
    encoding: float = 0.0
    gpt_step: float = 0.0
    sampling: float = 0.0


def known_images(configs: Mapping[str, Any]) -> tuple[dict[str, int], int]:
    """The images of each split, {} where one's own are not here; and how many classes or attributes there are."""
    source = configs.get("vqgan-train") or configs.get("tokenize")
    if source is None:
        return {}, 0
    options: ImageOptions = source.images
    dataset = find_dataset(options.dataset)
    if dataset.rows:
        counts, num_classes = dict(dataset.rows), dataset.num_classes
    elif options.data_root is None or not options.root.exists():
        return {}, 0
    else:
        splits, class_names = read_folder(options.root, options.preprocessing.background_rgb, silent)
        counts, num_classes = {name: len(split) for name, split in splits.items()}, len(class_names)
    share = options.val_split or (SHARE_HELD_OUT if len(counts) == 1 else 0.0)
    if share:
        held_out = round(counts["train"] * share)
        counts |= {"train": counts["train"] - held_out, "val": held_out}
    return counts, num_classes


def measured(configs: Mapping[str, Any], rows: Mapping[str, int], num_classes: int) -> Costs:
    """What an image costs here, in the networks that these configurations describe; the other two by `known_images`.

    Without a training of a VQ-GAN, the one that `tokenize` takes is loaded. Raises what that raises.
    """
    vqgan: VQGANTrainConfig | None = configs.get("vqgan-train")
    source: VQGANTrainConfig | TokenizeConfig = vqgan or configs["tokenize"]
    dataset = find_dataset(source.images.dataset)
    channels = source.images.preprocessing.image_channels or dataset.channels
    size = source.size or dataset.default_size
    start = open_start(vqgan) if vqgan else None
    if vqgan and start:
        size = vqgan.size or start.config.size or size
        model = started_model(vqgan, start, size)
    elif vqgan:
        model = new_model(vqgan, channels, size)
    else:
        model = load_vqgan(configs["tokenize"].vqgan.path(dataset.name), dataset.name, torch.device("cpu"))
    costs = Costs(
        vqgan_step=_vqgan_step_seconds(model, vqgan, vqgan_schedule(vqgan, rows), size) if vqgan else 0.0,
        encoding=_encoding_seconds(model, source, size),
    )
    train: TrainConfig | None = configs.get("train")
    if not train:
        return costs
    condition = train.model.condition
    gpt = GPT(
        GPTConfig(
            options=train.model,
            codebook_size=model.config.codebook_size,
            grid=model.config.grid(size),
            num_classes=num_classes if condition != "none" else 0,
            num_views=num_views(configs) if train.model.condition_view else 0,
        )
    )
    costs = replace(costs, gpt_step=_gpt_step_seconds(gpt, train))
    sample: SampleConfig | None = configs.get("sample")
    return replace(costs, sampling=_sampling_seconds(gpt, sample)) if sample else costs


def stage_seconds(configs: Mapping[str, Any], costs: Costs, rows: Mapping[str, int]) -> dict[str, float]:
    """Seconds by stage of `rows` images by split, where an image costs so much. Loading images is not counted."""
    vqgan: VQGANTrainConfig | None = configs.get("vqgan-train")
    tokenize: TokenizeConfig | None = configs.get("tokenize")
    train: TrainConfig | None = configs.get("train")
    sample: SampleConfig | None = configs.get("sample")
    held_out = rows[held_out_split(rows, "")]
    reconstructing, seconds = held_out * costs.encoding * DECODING_TOO, {}
    if vqgan:
        schedule = vqgan_schedule(vqgan, rows)
        passes = validations(schedule, vqgan.training.sample_and_save_freq)
        seconds["vqgan-train"] = schedule.num_images * costs.vqgan_step + passes * reconstructing
    seconds["vqgan-reconstruct"] = reconstructing
    if tokenize:
        encoded = sum(min(count, tokenize.limit or count) for count in rows.values())
        seconds["tokenize"] = encoded * num_views(configs) * costs.encoding
    if train:
        held_out = min(held_out, tokenize.limit or held_out) if tokenize else held_out
        schedule = gpt_schedule(train, rows, tokenize)
        passes = validations(schedule, train.training.sample_and_save_freq)
        seconds["train"] = (schedule.num_images + passes * held_out / STEP_PER_FORWARD) * costs.gpt_step
    if sample:
        seconds["sample"] = sample.sampling.num_samples * costs.sampling
    return seconds if "report" not in configs else {**seconds, "report": PAGE_SECONDS}


def vqgan_schedule(config: VQGANTrainConfig, rows: Mapping[str, int]) -> Schedule:
    """The steps of a training of the VQ-GAN on so many images."""
    return _schedule(config.training, min(rows["train"], config.limit or rows["train"]))


def gpt_schedule(config: TrainConfig, rows: Mapping[str, int], tokenize: TokenizeConfig | None) -> Schedule:
    """The steps of a training of the GPT on the tokens of so many images."""
    limit = tokenize.limit if tokenize else None
    return _schedule(config.training, min(rows["train"], limit or rows["train"]))


def _schedule(options: VQGANTrainingOptions | GPTTrainingOptions, num_rows: int) -> Schedule:
    return Schedule(
        seed=0,
        num_rows=num_rows,
        batch_size=options.batch_size,
        n_epochs=options.n_epochs,
        max_steps=options.max_steps,
    )


def validations(schedule: Schedule, every_epochs: int) -> int:
    """How often a training is validated: every so many epochs, and at the end."""
    return math.ceil(schedule.num_steps / schedule.steps_per_epoch / every_epochs)


def num_views(configs: Mapping[str, Any]) -> int:
    """How many views of an image `tokenize` encodes."""
    tokenize: TokenizeConfig | None = configs.get("tokenize")
    source: VQGANTrainConfig | TokenizeConfig = tokenize or configs["vqgan-train"]
    return len((tokenize.views if tokenize else ()) or find_dataset(source.images.dataset).default_views)


def _vqgan_step_seconds(model: VQGAN, config: VQGANTrainConfig, whole: Schedule, size: int) -> float:
    """Seconds per image of a training step, with the adversary if it ever comes in the whole training.

    The mean of steps with a perceptual loss and without, by their shares of the training.
    """
    device, options = select_device(config.run.device), config.training
    count = max(1, min(options.batch_size, PIXELS // size**2))
    weight = options.disc_weight if first_adversarial_step(options, whole) is not None else 0.0
    kind, _ = choose_perceptual_loss(options, size)
    perceptual_loss = untrained_perceptual_loss(kind).to(device) if kind else None
    images = torch.randint(256, (count, model.config.image_channels, size, size), dtype=torch.uint8)
    schedule = Schedule(seed=0, num_rows=count, batch_size=count, n_epochs=MOST_STEPS)
    precision = resolve_precision(config.run.precision, device)
    without = options.perceptual_after if perceptual_loss else 1.0
    options = replace(options, disc_start=0, warmup=0, disc_weight=weight, codebook_start="uniform", max_steps=None)
    options = replace(options, perceptual_after=0.0)
    loaded, held_out = LoadedImages(images), partial(LoadedImages(images).passes, torch.arange(count), count)

    def seconds(loss: PerceptualLoss | None) -> float:
        network = copy.deepcopy(model).to(device)  # a training changes it
        training = VQGANTraining(network, loss, loaded, held_out, options, schedule, precision, lambda *_: None)
        steps = schedule.steps(0)
        return _seconds(lambda: training.take_step(next(steps))["loss"]) / count

    costs = ((None, without), (perceptual_loss, 1 - without))
    return sum(share * seconds(loss) for loss, share in costs if share)


def _encoding_seconds(model: VQGAN, config: VQGANTrainConfig | TokenizeConfig, size: int) -> float:
    """Seconds per view of an image."""
    count = max(1, PIXELS // size**2)
    images = np.zeros((count, 1, model.config.image_channels, size, size), dtype=np.uint8)
    if isinstance(config, TokenizeConfig):
        device, precision = config.vqgan.device, config.vqgan.precision
    else:
        device, precision = config.run.device, "fp32"
    network = model.to(select_device(device)).eval()
    return _seconds(lambda: encode_images(network, images, precision)) / count


def _gpt_step_seconds(model: GPT, config: TrainConfig) -> float:
    """Seconds per image of a training step."""
    device, shape = select_device(config.run.device), model.config
    count = max(1, min(config.training.batch_size, TOKENS // shape.block_size))
    codes = torch.randint(shape.codebook_size, (count, shape.num_views or 1, *shape.grid), dtype=torch.int16).to(device)
    labels = torch.zeros(count, shape.num_classes, dtype=torch.uint8)
    if shape.options.condition != "bits":
        labels = torch.zeros(count, dtype=torch.int64)
    rows = TokenGrids.of(codes, labels.to(device), shape)
    schedule = Schedule(seed=0, num_rows=count, batch_size=count, n_epochs=MOST_STEPS)
    options = replace(config.training, compile="off", shard=False, grad_accum=1, warmup=0, max_steps=None)
    precision = resolve_precision_of_products(config.run.precision, device)
    training = GPTTraining(model.to(device), rows, rows, options, schedule, precision)
    steps = schedule.steps(0)
    return _seconds(lambda: training.take_step(next(steps))["loss"]) / count


def _sampling_seconds(model: GPT, config: SampleConfig) -> float:
    """Seconds per image."""
    device, shape = select_device(config.run.device), model.config
    count = min(config.sampling.num_samples, 64)
    labels = torch.full((count,), -1)
    if shape.options.condition == "bits":
        labels = torch.zeros(count, shape.num_classes, dtype=torch.int64)
    precision = resolve_precision(config.run.precision, device)
    network = model.to(device).eval()
    return (
        _seconds(lambda: list(sample_codes(network, Asked.of_one_seed(labels, 0, config.sampling), precision))) / count
    )


def _seconds(work: Callable[[], object]) -> float:
    """How long it takes, once it is warm: the shortest of a few, or of two where it is long.

    Reading a number waits for a device that works ahead.
    """
    times: list[float] = []
    while len(times) < 2 or (len(times) < MOST_STEPS and sum(times) < LONG_SECONDS):
        start = time.perf_counter()
        result = work()
        if isinstance(result, torch.Tensor):
            result.item()
        times.append(time.perf_counter() - start)
    return min(times[1:])
