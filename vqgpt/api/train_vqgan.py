"""`vqgpt vqgan train`: images of a dataset -> a VQ-GAN checkpoint, metrics, and panels of reconstructions."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.api.render import reconstruction_png
from vqgpt.api.tokenize import image_size, preprocessing_for
from vqgpt.data.images import ImageDataset, load_tensor
from vqgpt.data.options import Preprocessing
from vqgpt.data.reading import check_options, read_dataset
from vqgpt.data.table import Dataset, find_dataset, held_out_split
from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import num_parameters, to_json
from vqgpt.options.definition import check
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import (
    derived_seed,
    main_first,
    process_group,
    rank,
    resolve_precision,
    select_device,
    world_size,
)
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.storage.files import write_atomically
from vqgpt.training.loop import train
from vqgpt.training.run import Job, check_result
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.checkpoint import KIND, CheckpointFile, build_vqgan, open_vqgan, read_remap, vqgan_content
from vqgpt.vqgan.losses import SMALLEST_FOR_LPIPS, load_perceptual_loss
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANConfig, VQGANTrainingOptions
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
    start = open_start(config)
    size = image_size(config.size, start.config, dataset, report) if start else config.size or dataset.default_size
    images = read_images(config, dataset, size, report) if dataset.reader == "folder" else None
    if start:
        preprocessing = preprocessing_for(config.images, dataset, start.config, start.path, size)
        model = started_model(config, start, size)
    else:
        channels = config.images.preprocessing.image_channels or (images or dataset).channels
        preprocessing = Preprocessing(size=size, channels=channels, options=config.images.preprocessing)
        model = new_model(config, channels, size)
    result = check_result(config.result, overwrite)
    if start:
        check_not_the_start(result, start.path)
    plan = {
        "parameters": num_parameters(model),
        "grid": model.config.grid(size),
        "perceptual_weight": config.training.perceptual_weight_at(size),
        "checkpoint": result,
    }
    if plan["perceptual_weight"] and size < SMALLEST_FOR_LPIPS:
        raise InputError(
            f"images of {size} pixels are too small for the perceptual loss",
            f"use {SMALLEST_FOR_LPIPS} or more, or --perceptual-weight 0",
        )
    missed = sorted(set(config.model.attn_resolutions) - {0} - {size // 2**level for level in model.config.attn_levels})
    if missed and not start:
        report(Notice(text=f"no attention at {missed}: no level of the network has that resolution"))
    if dry_run:
        return plan
    with main_first():  # which downloads what is missing
        images = images or read_images(config, dataset, size, report)
        perceptual_loss = load_perceptual_loss(device, report) if plan["perceptual_weight"] else None
        held_out_name = held_out_split(images.splits, dataset.name)
        train_images, held_out = (
            load_tensor(images.splits[name], preprocessing, config.images.workers, f"{dataset.name} {name}", report)
            for name in ("train", held_out_name)
        )
    identity = {
        "architecture": to_json(model.config),
        "training": to_json(config.training),
        "images": images.sha256,
        "rows": [len(train_images), len(held_out)],
        "preprocessing": preprocessing.rule,
        "seed": config.run.seed,
        "precision": precision,
        "processes": world_size(),
    }
    options = config.training
    if start:
        identity["start"] = weights_sha256(model, {})
        options = replace(options, codebook_start="uniform")  # which leaves the codes as they are
    schedule = Schedule(
        seed=config.run.seed,
        num_rows=len(train_images),
        batch_size=config.training.batch_size,
        n_epochs=config.training.n_epochs,
    )
    report(Notice(text=adversary_notice(config.training, schedule)))
    panel, configuration = result.with_suffix(".png"), to_json(config)

    def show(originals: Tensor, reconstructions: Tensor, code_counts: Tensor) -> None:
        if rank() == 0:
            seed = config.run.seed
            write_atomically(panel, reconstruction_png(originals, reconstructions, code_counts, configuration, seed))

    images_on_device = train_images.to(device), held_out.to(device)
    job = VQGANJob(
        training=VQGANTraining(
            model.to(device), perceptual_loss, *images_on_device, options, schedule, precision, show
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


def open_start(config: VQGANTrainConfig) -> CheckpointFile | None:
    """The VQ-GAN to start from, if there is one.

    Raises UsageError if its codes are to start in another way, InputError if they are not of a kind that is trained,
    and what `open_vqgan` raises.
    """
    if config.checkpoint_vae is None:
        return None
    own_codes, asked = "codebook_start" not in config.given, config.training.codebook_start
    check(own_codes, "codebook_start", asked, "left out with --checkpoint-vae, whose codes are kept")
    file = open_vqgan(config.checkpoint_vae, config.images.dataset)
    if file.config.lookup == "logits" and config.training.train == "all":
        raise InputError(
            f"{file.path} finds codes by learned logits (GumbelVQ), which vqgpt does not train",
            "train its decoder alone, with --train decoder, or give another VQ-GAN",
        )
    return file


def started_model(config: VQGANTrainConfig, start: CheckpointFile, size: int) -> VQGAN:
    """The network of a checkpoint, to be trained on images of this side.

    Raises InputError if the size does not fit it, or an option that was given says otherwise than it, and what
    `build_vqgan` raises.
    """
    start.config.check_size(size)
    for name, (asked, actual) in start.config.contradictions(config.model, config.given, size).items():
        flag = f"--{name.replace('_', '-')}"
        raise InputError(
            f"{flag} {_words(asked)} contradicts {start.path}, which has {_words(actual)}",
            f"leave {flag} out: the architecture is that of the checkpoint",
        )
    architecture = start.config
    if "dropout" in config.given:
        architecture = replace(architecture, dropout=config.model.dropout)
    if config.training.train == "all":
        architecture = architecture.made_for(size)
    return build_vqgan(replace(start, config=architecture), torch.device("cpu"), config.model.remap)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def check_not_the_start(result: Path, start: Path) -> None:
    """Raise UsageError if a training would replace the checkpoint that it starts from, which it needs to continue."""
    for path in (result, result.with_suffix(".best.pt")):
        if path.exists() and path.samefile(start):
            raise UsageError(
                f"{path} is the checkpoint that the training starts from, and would be replaced", "give another --out"
            )


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
