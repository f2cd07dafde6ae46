"""`vqgpt render`: rows of a token cache, encoded or sampled -> PNG, through the VQ-GAN's decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.config.commands import EncoderOptions, RenderConfig
from vqgpt.config.options import to_json
from vqgpt.errors import InputError, UsageError
from vqgpt.files import write_atomically
from vqgpt.pictures import contact_sheet, png_bytes, to_pil
from vqgpt.pixels import images_per_pass, to_uint8
from vqgpt.progress import Progress, Report, silent
from vqgpt.runtime import autocast, select_device
from vqgpt.tokens import Description, TokenCache
from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER
from vqgpt.vqgan.checkpoint import load_vqgan, tokenizer_sha256
from vqgpt.vqgan.model import VQGAN

MOST_COLUMNS = 16


def run(config: RenderConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Render as configured; the result names the picture, or the folder of pictures."""
    cache = TokenCache(config.cache)
    description = cache.description
    out = config.result
    model = check_ready(config, description, overwrite)
    split = config.split or cache.split_names[0]
    tokens = cache.read_split(split)
    rows = slice(0, config.limit or None)
    codes, labels = tokens.codes[rows, 0], tokens.labels[rows]
    plan = {"picture": out, "split": split, "images": len(codes)}
    if dry_run:
        return plan
    if not len(codes):
        raise InputError(f"{cache.path}: split {split!r} is empty", "render another split, with --split")
    about = {**to_json(config), "cache_digest": cache.digest, "split": split}
    images = decode(model, codes, config.vqgan.precision, report)
    if out.suffix == ".png":
        sheet = contact_sheet(images, captions(labels, description), columns(description))
        write_atomically(out, png_bytes(sheet, about))
    else:
        for row, image in enumerate(images):
            write_atomically(out / f"{row:06d}.png", png_bytes(to_pil(image), about))
    return plan


def sheet_of(codes: torch.Tensor, description: Description, path: Path) -> bytes | None:
    """A PNG of codes (n, h, w), decoded by the VQ-GAN at `path`; None if they are of another VQ-GAN."""
    model = load_vqgan(path, description.dataset, torch.device("cpu"))
    if tokenizer_sha256(model) != description.tokenizer_sha256:
        return None
    images = decode(model, codes.numpy(), "fp32", silent)
    return png_bytes(contact_sheet(images, [""] * len(images), columns(description)), {})


def check_ready(config: RenderConfig, description: Description, overwrite: bool) -> VQGAN:
    """The VQ-GAN that decodes these tokens.

    Raises UsageError if the picture, or a file in the folder of pictures, exists already, and InputError if the VQ-GAN
    is another one than the tokens were made with.
    """
    out = config.result
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not (overwrite and out.is_dir() == (out.suffix == "")):
        raise UsageError(f"{out} exists", "give --overwrite to replace it, or another --out")
    return load_its_vqgan(description, config.vqgan)


def load_its_vqgan(description: Description, vqgan: EncoderOptions) -> VQGAN:
    """The VQ-GAN that a cache was made with. Raises InputError, with both fingerprints, if it is another or unknown."""
    if description.tokenizer_sha256 == UNKNOWN_TOKENIZER:
        raise InputError(
            "the tokens were imported without their VQ-GAN, so it is not known what decodes them",
            "import them again with --checkpoint-vae",
        )
    path = vqgan.path(description.dataset)
    model = load_vqgan(path, description.dataset, select_device(vqgan.device), vqgan.remap)
    ours, theirs = tokenizer_sha256(model), description.tokenizer_sha256
    if ours != theirs:
        raise InputError(
            f"the tokens were made with another VQ-GAN ({theirs[:12]}) than {path} ({ours[:12]})",
            "give the VQ-GAN that made them, with --checkpoint-vae (and --remap, if tokenize had it), or tokenize and "
            "train again with this one",
        )
    return model


@torch.no_grad()
def decode(model: VQGAN, codes: NDArray[Any], precision: str, report: Report) -> NDArray[np.uint8]:
    """Codes (N, h, w) -> images (N, C, H, W) uint8."""
    device = model.quantize.embedding.weight.device
    images = []
    at_once = images_per_pass(*(side * model.config.downsampling for side in codes.shape[1:]))
    for batch in torch.from_numpy(codes.astype(np.int64)).split(at_once):
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
