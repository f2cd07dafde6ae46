"""`vqgpt vqgan reconstruct`: held-out images above their reconstructions, and how the codebook is used."""

from typing import Any

from vqgpt.config.commands import ReconstructConfig
from vqgpt.config.datasets import find_dataset, held_out_split
from vqgpt.config.options import to_json
from vqgpt.data.images import load_images
from vqgpt.errors import UsageError
from vqgpt.files import write_atomically
from vqgpt.pictures import comparison_sheet, png_bytes
from vqgpt.progress import Report
from vqgpt.runtime import autocast, select_device
from vqgpt.vqgan.checkpoint import load_vqgan_for
from vqgpt.vqgan.metrics import reconstruct, reconstruction_figures


def run(config: ReconstructConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Reconstruct the held-out images; the result names the picture and the figures over the whole split."""
    device = select_device(config.vqgan.device)
    dataset = find_dataset(config.images.dataset)
    model = load_vqgan_for(dataset, config.vqgan.path(dataset.name), device)
    if config.result.exists() and not overwrite:
        raise UsageError(f"{config.result} exists", "give --overwrite to replace it, or another --out")
    if dry_run:
        return {"picture": config.result}
    images = load_images(dataset, config.images.root, model.config.size, report)
    split = held_out_split(images.splits, dataset.name)
    held_out = images.splits[split].images.to(device)
    shown = held_out[: config.num_images]
    with autocast(device, config.vqgan.precision):
        figures = reconstruction_figures(model, held_out)
        reconstructions, _ = reconstruct(model, shown)
    sheet = comparison_sheet(shown.cpu().numpy(), reconstructions.cpu().numpy())
    write_atomically(config.result, png_bytes(sheet, to_json(config)))
    return {"picture": config.result, "split": split, "images": len(held_out), **figures}
