"""`vqgpt vqgan train`: images of a dataset -> a VQ-GAN checkpoint, metrics, and panels of reconstructions."""

from typing import Any

import torch
from torch import Tensor

from vqgpt.config.commands import VQGANTrainConfig
from vqgpt.config.datasets import find_dataset, held_out_split
from vqgpt.config.options import to_json
from vqgpt.config.vqgan import VQGANConfig
from vqgpt.data.images import load_images
from vqgpt.errors import UsageError
from vqgpt.files import write_atomically
from vqgpt.interrupt import stop_on_signals
from vqgpt.pictures import comparison_sheet, png_bytes
from vqgpt.progress import Report
from vqgpt.runtime import derived_seed, resolve_precision, select_device
from vqgpt.schedule import Schedule
from vqgpt.training_loop import run_training
from vqgpt.training_run import TrainingRun
from vqgpt.vqgan.checkpoint import KIND, vqgan_content
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.training import VQGANTraining


def run(config: VQGANTrainConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Train as configured; the result names the checkpoint, the picture and the held-out figures."""
    device = select_device(config.run.device)
    precision = resolve_precision(config.run.precision, device)
    dataset = find_dataset(config.images.dataset)
    size = config.size or dataset.default_size
    architecture = VQGANConfig(options=config.model, image_channels=dataset.channels, size=size)
    torch.manual_seed(derived_seed(config.run.seed, "initialisation"))
    model = VQGAN(architecture)
    plan = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "grid": architecture.grid,
        "checkpoint": config.result,
    }
    if dry_run:
        return plan
    images = load_images(dataset, config.images.root, size, report)
    identity = {
        "architecture": to_json(architecture),
        "training": to_json(config.training),
        "images": images.sha256,
        "seed": config.run.seed,
        "precision": precision,
    }
    training_run = TrainingRun(config.result, KIND, identity, overwrite)
    panel = config.result.with_suffix(".png")
    if panel.exists() and training_run.state is None and not overwrite:
        raise UsageError(f"{panel} exists", "give --overwrite to replace it, or another --out")

    def show(originals: Tensor, reconstructions: Tensor) -> None:
        sheet = comparison_sheet(originals.cpu().numpy(), reconstructions.cpu().numpy())
        write_atomically(panel, png_bytes(sheet, to_json(config)))

    train, held_out = images.splits["train"].images, images.splits[held_out_split(images.splits, dataset.name)].images
    schedule = Schedule(
        seed=config.run.seed,
        num_rows=len(train),
        batch_size=config.training.batch_size,
        n_epochs=config.training.n_epochs,
    )
    training = VQGANTraining(
        model.to(device), train.to(device), held_out.to(device), config.training, schedule, precision, show
    )
    with stop_on_signals() as stop:
        figures = run_training(training, schedule, config.training.sample_and_save_freq, training_run, report, stop)
    training_run.finish(vqgan_content(model, dataset.name, to_json(config), figures))
    return {**plan, **figures, "picture": panel}
