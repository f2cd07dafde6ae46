"""`vqgpt render`: rows of a token cache, encoded or sampled -> PNG, through the VQ-GAN's decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.config.commands import RenderConfig
from vqgpt.data.images import to_uint8
from vqgpt.errors import InputError, UsageError
from vqgpt.files import write_atomically
from vqgpt.pictures import contact_sheet, png_bytes, to_pil
from vqgpt.progress import Progress, Report
from vqgpt.runtime import autocast, select_device
from vqgpt.tokens import Description, TokenCache
from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_sha256
from vqgpt.vqgan.model import VQGAN

IMAGES_PER_PASS = 256
MOST_COLUMNS = 16


def run(config: RenderConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Render as configured; the result names the picture, or the folder of pictures."""
    device = select_device(config.vqgan.device)
    cache = TokenCache(config.cache)
    description = cache.description
    out = config.out or cache.path.with_suffix(".png")
    as_sheet = out.suffix == ".png"
    if (out.exists() if as_sheet else out.is_dir() and any(out.iterdir())) and not overwrite:
        raise UsageError(f"{out} exists", "give --overwrite to replace it, or another --out")
    model = load_matching_vqgan(config.vqgan.path(description.dataset), cache, device)
    split = config.split or cache.split_names[0]
    tokens = cache.read_split(split)
    rows = slice(0, config.limit or None)
    codes, labels = tokens.codes[rows, 0], tokens.labels[rows]
    plan = {"picture": out, "split": split, "images": len(codes)}
    if dry_run:
        return plan
    if not len(codes):
        raise InputError(f"{cache.path}: split {split!r} is empty", "render another split, with --split")
    images = decode(model, codes, config.vqgan.precision, device, report)
    if as_sheet:
        sheet = contact_sheet(images, captions(labels, description), columns(description))
        write_atomically(out, png_bytes(sheet))
    else:
        for row, image in enumerate(images):
            write_atomically(out / f"{row:06d}.png", png_bytes(to_pil(image)))
    return plan


def load_matching_vqgan(path: Path, cache: TokenCache, device: torch.device) -> VQGAN:
    """The VQ-GAN of a cache. Raises InputError, with both fingerprints, if its codes mean something else."""
    model = load_vqgan(path, cache.description.dataset, device)
    ours, theirs = tokenizer_sha256(model), cache.description.tokenizer_sha256
    if ours != theirs:
        raise InputError(
            f"{cache.path} was made with another VQ-GAN ({theirs[:12]}) than {path} ({ours[:12]})",
            "give the VQ-GAN that made it, with --checkpoint-vae, or tokenize and train again with this one",
        )
    return model


@torch.no_grad()
def decode(
    model: VQGAN, codes: NDArray[Any], precision: str, device: torch.device, report: Report
) -> NDArray[np.uint8]:
    """Codes (N, h, w) -> images (N, C, H, W) uint8."""
    images = []
    for batch in torch.from_numpy(codes.astype(np.int64)).split(IMAGES_PER_PASS):
        with autocast(device, precision):
            images.append(to_uint8(model.decode(batch.to(device))).cpu().numpy())
        done = sum(map(len, images))
        report(Progress(task="render", done=done, total=len(codes), unit="images"))
    return np.concatenate(images)


def captions(labels: NDArray[np.integer[Any]], description: Description) -> list[str]:
    """The class name of each row, "" where it has none or many."""
    if description.label_kind != "class":
        return [""] * len(labels)
    return [description.class_names[label] if label >= 0 else "" for label in labels]


def columns(description: Description) -> int:
    """Columns of a contact sheet: one per class where they fit, so that samples of all classes in turn line up."""
    classes = len(description.class_names) if description.label_kind == "class" else 0
    return classes if 2 < classes <= MOST_COLUMNS else 10
