"""`vqgpt vqgan train`: images of a dataset -> a VQ-GAN checkpoint, metrics, and panels of reconstructions.

Images that fit into memory are loaded first; others, and those to be cropped, are decoded while the network computes.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgpt.api.options import VQGANTrainConfig
from vqgpt.api.render import reconstruction_png
from vqgpt.api.tokenize import image_size, preprocessing_for
from vqgpt.data.augmentation import Augmentation
from vqgpt.data.images import ImageDataset, ImageSplit, lack_of_memory, load_tensor, memory_of_machine
from vqgpt.data.options import Preprocessing, parse_augment
from vqgpt.data.reading import check_options, read_dataset
from vqgpt.data.table import Dataset, find_dataset, held_out_split
from vqgpt.data.training_images import LoadedImages, StreamedImages, whole_images
from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import num_parameters, to_json
from vqgpt.options.definition import check
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
from vqgpt.runtime.process import processes_here
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.storage.files import write_atomically
from vqgpt.training.loop import train
from vqgpt.training.run import Job, check_result
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.checkpoint import KIND, CheckpointFile, build_vqgan, open_vqgan, read_remap, vqgan_content
from vqgpt.vqgan.coding import images_per_pass
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.optimizers import first_adversarial_step
from vqgpt.vqgan.options import VQGANTrainingOptions
from vqgpt.vqgan.perceptual import choose_perceptual_loss, load_perceptual_loss
from vqgpt.vqgan.training import VQGANTraining


@dataclass(frozen=True, kw_only=True)
class VQGANJob(Job):
    """A VQ-GAN on the images of a dataset."""

    kind = KIND
    judged_by = "psnr_db"

    training: VQGANTraining  # which draws its panel itself
    dataset: str

    def content(self, figures: dict[str, float]) -> dict[str, Any]:
        """A VQ-GAN checkpoint."""
        return vqgan_content(self.training.model, self.training.weights, self.dataset, self.configuration, figures)


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
    if "hflip" in parse_augment(config.augment) and not dataset.hflip_keeps_meaning and dataset.reader != "folder":
        report(Notice(text=f"images are mirrored, as requested; in {dataset.name} they may mean something else"))
    start = open_start(config)
    size = image_size(config.size, start.config, dataset, report) if start else config.size or dataset.default_size
    images = read_images(config, dataset, size, report) if dataset.reader == "folder" else None
    model, preprocessing = model_and_preprocessing(config, start, dataset, (images or dataset).channels, size)
    result = check_result(config.result, overwrite)
    if start:
        check_not_the_start(result, start.path)
    else:
        report_missed_attention(config.model.attn_resolutions, model.config, size, report)
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
    if dry_run:
        return plan
    with main_first():  # which downloads what is missing
        images = images or read_images(config, dataset, size, report)
        perceptual_loss = load_perceptual_loss(kind, device, report) if kind else None
        splits = {name: images.splits[name] for name in ("train", held_out_split(images.splits, dataset.name))}
        schedule = Schedule(
            seed=config.run.seed,
            num_rows=len(splits["train"]),
            batch_size=config.training.batch_size,
            n_epochs=config.training.n_epochs,
            max_steps=config.training.max_steps,
        )
        train_images, held_out = open_images(config, splits, preprocessing, schedule, report)
    training = to_json(config.training) | {"perceptual": used}
    if config.training.max_steps is None:  # there were states from before this option, and the next
        del training["max_steps"]
    if not (kind and config.training.perceptual_after):
        del training["perceptual_after"]
    identity = {
        "architecture": to_json(model.config),
        "training": training,
        "images": images.sha256,
        "rows": [len(split) for split in splits.values()],
        "preprocessing": preprocessing.rule,
        "augment": list(parse_augment(config.augment)),
        "seed": config.run.seed,
        "precision": precision,
        "processes": world_size(),
    }
    if model.config.patch > 1:  # there were states of before, whose weights mean others
        identity["patches"] = "frequencies"
    options = config.training
    if start:
        identity["start"] = weights_sha256(model, {})
        options = replace(options, codebook_start="uniform", normalise_latents=False)  # which leave the codes alone
    report(Notice(text=adversary_notice(config.training, schedule)))
    panel, configuration = result.with_suffix(".png"), {**to_json(config), "perceptual_loss": used}

    def show(originals: Tensor, reconstructions: Tensor, code_counts: Tensor) -> None:
        if rank() == 0:
            seed = config.run.seed
            write_atomically(panel, reconstruction_png(originals, reconstructions, code_counts, configuration, seed))

    job = VQGANJob(
        training=VQGANTraining(
            model.to(device), perceptual_loss, train_images, held_out, options, schedule, precision, show
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
    with closing(train_images):
        return {**plan, **train(job), "picture": panel}


def model_and_preprocessing(
    config: VQGANTrainConfig, start: CheckpointFile | None, dataset: Dataset, channels: int, size: int
) -> tuple[VQGAN, Preprocessing]:
    """The network to train, and how it wants images of `channels` to be prepared.

    Raises what `started_model` and `new_model` raise.
    """
    if start:
        preprocessing = preprocessing_for(config.images, dataset, start.config, start.path, size)
        return started_model(config, start, size), preprocessing
    channels = config.images.preprocessing.image_channels or channels
    preprocessing = Preprocessing(size=size, channels=channels, options=config.images.preprocessing)
    return new_model(config, channels, size), preprocessing


def report_missed_attention(resolutions: tuple[int, ...], network: VQGANConfig, size: int, report: Report) -> None:
    """A notice if attention was asked for at a resolution that no level has."""
    attended = {network.resolution(size, level) for level in network.attn_levels}
    if missed := sorted(set(resolutions) - {0} - attended):
        report(Notice(text=f"no attention at {missed}: no level of the network has that resolution"))


def open_images(
    config: VQGANTrainConfig,
    splits: Mapping[str, ImageSplit],
    preprocessing: Preprocessing,
    schedule: Schedule,
    report: Report,
) -> tuple[LoadedImages | StreamedImages, Callable[[], Generator[Tensor]]]:
    """The images to train on, and the held-out ones, pass after pass; both are loaded, or both read as needed."""
    kinds, workers, size = parse_augment(config.augment), config.images.workers, preprocessing.size
    augmentation = Augmentation(kinds=kinds, seed=config.run.seed) if kinds else None
    train_split, held_out = splits.values()
    in_passes = torch.arange(len(held_out)), images_per_pass(size, size)
    if reason := reason_to_stream(config, splits, preprocessing):
        report(Notice(text=f"the images are read while training: {reason}"))
        train_images = StreamedImages(train_split, preprocessing, workers, schedule, augmentation)
        return train_images, partial(whole_images, held_out, preprocessing, workers, *in_passes)
    train_tensor, held_out_tensor = (
        load_tensor(split, preprocessing, workers, f"{config.images.dataset} {name}", report)
        for name, split in splits.items()
    )
    return LoadedImages(train_tensor, augmentation), partial(LoadedImages(held_out_tensor).passes, *in_passes)


def reason_to_stream(config: VQGANTrainConfig, splits: Mapping[str, ImageSplit], preprocessing: Preprocessing) -> str:
    """Why the images are not loaded, "" if they are."""
    count, size = sum(map(len, splits.values())), preprocessing.size
    needed = count * preprocessing.channels * size**2 * processes_here()
    if lack := lack_of_memory(needed):
        several = f" in {processes_here()} processes" if processes_here() > 1 else ""
        return f"{count:,} at {size} pixels{several} {lack}"
    if "crop" in parse_augment(config.augment):
        return "--augment crop cuts other parts out of them in each epoch"
    memory = f"{needed / 1e9:.3f} GB of {memory_of_machine() / 1e9:.1f} GB of memory"
    return f"--stream; loaded, they would take {memory}" if config.stream else ""


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
    for name in ("codebook_start", "normalise_latents"):
        asked = getattr(config.training, name)
        check(name not in config.given, name, asked, "left out with --checkpoint-vae, whose codes are kept")
    file = open_vqgan(config.checkpoint_vae, config.images.dataset)
    untrained = {"logits": "learned logits (GumbelVQ)", "dot": "dot product (IBQ)"}.get(file.config.lookup)
    if untrained and config.training.train == "all":
        raise InputError(
            f"{file.path} finds codes by {untrained}, which vqgpt does not train",
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
    if config.training.train == "all" or architecture.size is None:
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
