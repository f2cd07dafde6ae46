"""`vqgpt vqgan train`: images of a dataset -> a VQ-GAN checkpoint, metrics, and panels of reconstructions."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.api.render import reconstruction_png
from vqgpt.data.images import ImageDataset, load_tensor
from vqgpt.data.options import Preprocessing
from vqgpt.data.reading import check_options, read_dataset
from vqgpt.data.table import Dataset, find_dataset, held_out_split
from vqgpt.options.codec import num_parameters, to_json
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import (
    derived_seed,
    main_first,
    of_main,
    process_group,
    rank,
    resolve_precision,
    select_device,
    world_size,
)
from vqgpt.storage.files import write_atomically
from vqgpt.training.loop import train
from vqgpt.training.run import Job, check_result
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.checkpoint import KIND, read_remap, vqgan_content
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANConfig, VQGANTrainingOptions
from vqgpt.vqgan.perceptual import choose_perceptual_loss, load_perceptual_loss
from vqgpt.vqgan.training import VQGANTraining, first_adversarial_step


@dataclass(frozen=True, kw_only=True)
class VQGANJob(Job):
    """A VQ-GAN on the images of a dataset."""

    kind = KIND
    judged_by = "psnr_db"

    training: VQGANTraining  # which draws its panel itself
    dataset: str

    def content(self, figures: dict[str, float]) -> dict[str, Any]:
        """A VQ-GAN checkpoint."""
        weights = self.training.result.state_dict()
        return vqgan_content(self.training.model, weights, self.dataset, self.configuration, figures)


def run(config: VQGANTrainConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Train as configured; the result names the checkpoint, the picture and the held-out figures."""
    with process_group(select_device(config.run.device)) as device:
        return _run(config, overwrite, dry_run, report, device)


def _run(
    config: VQGANTrainConfig, overwrite: bool, dry_run: bool, report: Report, device: torch.device
) -> dict[str, Any]:
    precision = resolve_precision(config.run.precision, device)
    dataset = find_dataset(config.images.dataset)
    check_options(dataset, config.images)
    size = config.size if config.size is not None else dataset.default_size
    images = read_images(config, dataset, size, report) if dataset.reader == "folder" else None
    channels = config.images.preprocessing.image_channels or (images or dataset).channels
    preprocessing = Preprocessing(size=size, channels=channels, options=config.images.preprocessing)
    model = new_model(config, channels, size)
    result = check_result(config.result, overwrite)
    kind, told = of_main(choose_perceptual_loss(config.training, size))
    used = kind or "off"
    plan = {
        "parameters": num_parameters(model),
        "grid": model.config.grid(size),
        "perceptual": used,
        "checkpoint": result,
    }
    if told:
        report(Notice(text=told))
    attended = {model.config.resolution(size, level) for level in model.config.attn_levels}
    missed = sorted(set(config.model.attn_resolutions) - {0} - attended)
    if missed:
        report(Notice(text=f"no attention at {missed}: no level of the network has that resolution"))
    if dry_run:
        return plan
    with main_first():  # which downloads what is missing
        images = images or read_images(config, dataset, size, report)
        perceptual_loss = load_perceptual_loss(kind, device, report) if kind else None
        held_out_name = held_out_split(images.splits, dataset.name)
        train_images, held_out = (
            load_tensor(images.splits[name], preprocessing, config.images.workers, f"{dataset.name} {name}", report)
            for name in ("train", held_out_name)
        )
    identity = {
        "architecture": to_json(model.config),
        "training": to_json(replace(config.training, perceptual=used)),
        "images": images.sha256,
        "rows": [len(train_images), len(held_out)],
        "preprocessing": preprocessing.rule,
        "seed": config.run.seed,
        "precision": precision,
        "processes": world_size(),
    }
    schedule = Schedule(
        seed=config.run.seed,
        num_rows=len(train_images),
        batch_size=config.training.batch_size,
        n_epochs=config.training.n_epochs,
    )
    report(Notice(text=adversary_notice(config.training, schedule)))
    panel, configuration = result.with_suffix(".png"), {**to_json(config), "perceptual_loss": used}

    def show(originals: Tensor, reconstructions: Tensor, code_counts: Tensor) -> None:
        if rank() == 0:
            seed = config.run.seed
            write_atomically(panel, reconstruction_png(originals, reconstructions, code_counts, configuration, seed))

    images_on_device = train_images.to(device), held_out.to(device)
    job = VQGANJob(
        training=VQGANTraining(
            model.to(device), perceptual_loss, *images_on_device, config.training, schedule, precision, show
        ),
        result=result,
        pictures=[panel],
        identity=identity,
        configuration=configuration,
        logging=config.logging,
        overwrite=overwrite,
        report=report,
        every_epochs=config.training.sample_and_save_freq,
        dataset=dataset.name,
    )
    return {**plan, **train(job), "picture": panel}


def read_images(config: VQGANTrainConfig, dataset: Dataset, size: int, report: Report) -> ImageDataset:
    """The dataset, with as many training images as `--limit` leaves."""
    images = read_dataset(dataset, config.images, size, report)
    if config.limit is None:
        return images
    return replace(images, splits={**images.splits, "train": images.splits["train"].evenly_spaced(config.limit)})


def new_model(config: VQGANTrainConfig, image_channels: int, size: int) -> VQGAN:
    """The untrained network. Raises InputError if the size or the list of used codes does not fit it."""
    used = read_remap(config.model.remap, config.model.n_embed) if config.model.remap else None
    architecture = VQGANConfig.of(config.model, image_channels, size, None if used is None else len(used))
    torch.manual_seed(derived_seed(config.run.seed, "initialisation"))
    model = VQGAN(architecture)
    if used is not None:
        assert model.quantize.used is not None
        model.quantize.used.copy_(used)
    return model


def adversary_notice(options: VQGANTrainingOptions, schedule: Schedule) -> str:
    """When the discriminator starts, or why it does not."""
    start = first_adversarial_step(options, schedule)
    if start is not None:
        return f"the discriminator starts at step {start} of {schedule.num_steps}"
    if not options.disc_weight:
        return "no discriminator (--disc-weight 0)"
    steps = options.discriminator_start(schedule.steps_per_epoch)
    return f"no discriminator: it would start at step {steps} (--disc-start, --warmup) of {schedule.num_steps}"
