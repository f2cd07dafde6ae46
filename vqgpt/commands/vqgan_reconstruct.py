"""`vqgpt vqgan reconstruct`: held-out images above their reconstructions, and the figures of a VQ-GAN."""

from collections.abc import Mapping
from typing import Any

from vqgpt.api.options import ReconstructConfig
from vqgpt.data.table import find_dataset, held_out_split
from vqgpt.options.codec import to_json
from vqgpt.options.definition import Command, Flags
from vqgpt.progress import Report
from vqgpt.storage.files import write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer


def run(config: ReconstructConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show held-out images above their reconstructions."""
    import torch

    from vqgpt.api.render import SEED_OF_COLORS, reconstruction_png
    from vqgpt.api.tokenize import image_size, preprocessing_for
    from vqgpt.data.images import load_tensor
    from vqgpt.data.reading import check_options, read_dataset
    from vqgpt.evaluation.reconstruction import reconstruction_figures
    from vqgpt.runtime.device import autocast, select_device
    from vqgpt.vqgan.checkpoint import load_vqgan
    from vqgpt.vqgan.coding import reconstruct

    device = select_device(config.vqgan.device)
    dataset = find_dataset(config.images.dataset)
    check_options(dataset, config.images)
    path = config.vqgan.path(dataset.name)
    model = load_vqgan(path, dataset.name, device, config.vqgan.remap)
    size = image_size(config.size, model.config, dataset, report)
    preprocessing = preprocessing_for(config.images, dataset, model.config, path, size)
    check_place(config.result, config, flags.overwrite)
    if flags.dry_run:
        return {"picture": config.result, "grid": model.config.grid(size)}
    with sole_writer(config.result, config, flags.overwrite):
        images = read_dataset(dataset, config.images, size, report)
        split = held_out_split(images.splits, dataset.name)
        name, workers = f"{dataset.name} {split}", config.images.workers
        held_out = load_tensor(images.splits[split], preprocessing, workers, name, report).to(device)
        with autocast(device, config.vqgan.precision):
            reconstructions, codes = reconstruct(model, held_out)
        counts = torch.bincount(codes.flatten(), minlength=model.config.codebook_size)
        some = held_out[: config.num_images], reconstructions[: config.num_images]
        write_atomically(config.result, reconstruction_png(*some, counts, to_json(config), SEED_OF_COLORS))
    figures = reconstruction_figures(held_out, reconstructions, counts, model.quantize.vectors())
    return {"picture": config.result, "split": split, "images": len(held_out), **figures}


COMMAND = Command(words="vqgan reconstruct", config=ReconstructConfig, run=run)
