"""About how long the stages of `vqgpt run` take on this machine: a step of each is timed, on random images and codes.

No image is read and nothing is written: sizes come from the options, the number of images from the table of datasets or
from the names of one's own files. A first step, which compiles and allocates, is not counted.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from vqgpt.api.options import SampleConfig, TokenizeConfig, TrainConfig, VQGANTrainConfig
from vqgpt.api.train_vqgan import new_model, open_start, started_model
from vqgpt.data.folder import read_folder
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import SHARE_HELD_OUT
from vqgpt.data.table import find_dataset
from vqgpt.data.training_images import LoadedImages
from vqgpt.gpt.generate import sample_codes
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import CCA_SCALE, CCA_WEIGHT, GPTConfig
from vqgpt.gpt.token_grids import TokenGrids
from vqgpt.gpt.training import GPTTraining
from vqgpt.progress import silent
from vqgpt.runtime.device import resolve_precision, select_device
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import encode_images
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.optimizers import first_adversarial_step
from vqgpt.vqgan.perceptual import choose_perceptual_loss, untrained_perceptual_loss
from vqgpt.vqgan.training import VQGANTraining

PIXELS = 2**15  # of the images of a timed step
TOKENS = 2**13
CODE_DIMENSION = 8  # of the codebook that an alignment is to; hardly any time depends on it
MOST_STEPS = 4
LONG_SECONDS = 2.0  # for more than two steps
DECODING_TOO = 2.5  # times as long as encoding alone


def stage_seconds(configs: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage, from the configurations of those that may run; {} where the user's own images are not here.

    Without a training of a VQ-GAN, the one that `tokenize` takes is loaded. Raises what that raises.
    """
    vqgan: VQGANTrainConfig | None = configs.get("vqgan-train")
    tokenize: TokenizeConfig | None = configs.get("tokenize")
    source = vqgan or tokenize
    rows, num_classes = known_images(source.images) if source else ({}, 0)
    if source is None or not rows:
        return {}
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
    images, seconds = rows["train"], {}
    if vqgan:
        images = min(images, vqgan.limit or images)
        seconds["vqgan-train"] = images * vqgan.training.n_epochs * _vqgan_step_seconds(model, vqgan, images, size)
    encoding = _encoding_seconds(model, source, size)
    seconds["vqgan-reconstruct"] = (sum(rows.values()) - rows["train"]) * encoding * DECODING_TOO
    if tokenize:
        rows = {name: min(count, tokenize.limit or count) for name, count in rows.items()}
        seconds["tokenize"] = sum(rows.values()) * len(tokenize.views or dataset.default_views) * encoding
    train: TrainConfig | None = configs.get("train")
    if not train:
        return seconds
    codes, grid = model.config.codebook_size, model.config.grid(size)
    classes = num_classes if train.model.condition != "none" else 0
    views = len((tokenize.views if tokenize else ()) or dataset.default_views) if train.model.condition_view else 0
    shape = GPTConfig(options=train.model, codebook_size=codes, grid=grid, num_classes=classes, num_views=views)
    gpt = GPT(shape)
    seconds["train"] = rows["train"] * train.training.n_epochs * _gpt_step_seconds(gpt, train)
    if sample := configs.get("sample"):
        seconds["sample"] = sample.sampling.num_samples * _sampling_seconds(gpt, sample)
    return seconds


def known_images(options: ImageOptions) -> tuple[dict[str, int], int]:
    """How many images each split has, {} where one's own are not here; and how many classes or attributes there are."""
    dataset = find_dataset(options.dataset)
    if dataset.rows:
        return dict(dataset.rows), dataset.num_classes
    if options.data_root is None or not options.root.exists():
        return {}, 0
    splits, class_names = read_folder(options.root, options.preprocessing.background_rgb, silent)
    counts = {name: len(split) for name, split in splits.items()}
    if len(counts) == 1:
        held_out = round(counts["train"] * (options.val_split or SHARE_HELD_OUT))
        counts = {"train": counts["train"] - held_out, "val": held_out}
    return counts, len(class_names)


def _vqgan_step_seconds(model: VQGAN, config: VQGANTrainConfig, num_images: int, size: int) -> float:
    """Seconds per image of a training step, with the adversary if it ever comes."""
    device, options = select_device(config.run.device), config.training
    count = max(1, min(options.batch_size, PIXELS // size**2))
    whole = Schedule(seed=0, num_rows=num_images, batch_size=options.batch_size, n_epochs=options.n_epochs)
    weight = options.disc_weight if first_adversarial_step(options, whole) is not None else 0.0
    kind, _ = choose_perceptual_loss(options, size)
    perceptual_loss = untrained_perceptual_loss(kind).to(device) if kind else None
    images = torch.randint(256, (count, model.config.image_channels, size, size), dtype=torch.uint8)
    schedule = Schedule(seed=0, num_rows=count, batch_size=count, n_epochs=MOST_STEPS)
    precision = resolve_precision(config.run.precision, device)
    options = replace(options, disc_start=0, warmup=0, disc_weight=weight, codebook_start="uniform")
    network = copy.deepcopy(model).to(device)  # a training changes it
    loaded, held_out = LoadedImages(images), partial(LoadedImages(images).passes, torch.arange(count), count)
    training = VQGANTraining(network, perceptual_loss, loaded, held_out, options, schedule, precision, lambda *_: None)
    steps = schedule.steps(0)
    return _seconds(lambda: training.take_step(next(steps))["loss"]) / count


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
    if shape.num_classes < 2:  # of which the training itself will complain
        options = replace(options, finetune=None, cca_scale=CCA_SCALE, cca_weight=CCA_WEIGHT)
    precision = resolve_precision(config.run.precision, device)
    codebook = torch.randn(shape.codebook_size, CODE_DIMENSION)
    training = GPTTraining(model.to(device), rows, rows, options, schedule, precision, codebook=codebook)
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
    return _seconds(lambda: list(sample_codes(network, labels, 0, config.sampling, precision))) / count


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
