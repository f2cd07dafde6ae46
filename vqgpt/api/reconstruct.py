"""`vqgpt vqgan reconstruct`: held-out images above their reconstructions, and how the codebook is used."""

from typing import Any

import torch

from vqgpt.api.options import ReconstructConfig
from vqgpt.api.tokenize import image_size, preprocessing_for
from vqgpt.data.preparing import load_tensor
from vqgpt.data.reading import check_options, read_dataset
from vqgpt.data.table import find_dataset, held_out_split
from vqgpt.options.codec import to_json
from vqgpt.pictures.sheet import reconstruction_panel
from vqgpt.progress import Report
from vqgpt.runtime.device import autocast, select_device
from vqgpt.storage.files import write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import figures_of, likeness_captions, reconstruct

SEED_OF_COLORS = 0


def run(config: ReconstructConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Reconstruct the held-out images; the result names the picture and the figures over the whole split."""
    device = select_device(config.vqgan.device)
    dataset = find_dataset(config.images.dataset)
    check_options(dataset, config.images)
    path = config.vqgan.path(dataset.name)
    model = load_vqgan(path, dataset.name, device, config.vqgan.remap)
    size = image_size(config.size, model.config, dataset, report)
    preprocessing = preprocessing_for(config.images, dataset, model.config, path, size)
    grid = model.config.grid(size)
    check_place(config.result, config, overwrite)
    if dry_run:
        return {"picture": config.result, "grid": grid}
    with sole_writer(config.result, config, overwrite):
        images = read_dataset(dataset, config.images, size, report)
        split = held_out_split(images.splits, dataset.name)
        name, workers = f"{dataset.name} {split}", config.images.workers
        held_out = load_tensor(images.splits[split], preprocessing, workers, name, report).to(device)
        with autocast(device, config.vqgan.precision):
            reconstructions, codes = reconstruct(model, held_out)
        counts = torch.bincount(codes.flatten(), minlength=model.config.codebook_size)
        pair = held_out[: config.num_images], reconstructions[: config.num_images]
        panel = reconstruction_panel(*pair, likeness_captions(*pair), counts, SEED_OF_COLORS, to_json(config))
        write_atomically(config.result, panel)
    return {
        "picture": config.result,
        "split": split,
        "images": len(held_out),
        **figures_of(held_out, reconstructions, counts),
        "codebook_size": len(counts),
        "share_of_the_most_used_code": float(counts.max() / counts.sum()),
    }
