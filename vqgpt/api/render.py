"""Between tokens and pictures, through the VQ-GAN: `vqgpt render`, and the image files that `vqgpt sample` completes.

    sheet    one .png: a grid of images with their classes
    png      a folder: 000000.png, ..., by row
    tree     a folder of folders, one per class
    npz      arr_0 (N, H, W, 3) uint8, grey repeated in three channels: what the evaluator of ADM reads

Rows of a cache pass shard by shard and a pass of the decoder at a time: no more images than that are in memory, but for
a sheet.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqgpt.api.options import ROWS_ON_A_SHEET, EncoderOptions, RenderConfig
from vqgpt.data.decoding import BrokenImageError, decode
from vqgpt.data.file_trees import LARGEST_FILE
from vqgpt.data.folder import WITHOUT_CLASS, class_folders
from vqgpt.data.images import prepare
from vqgpt.data.options import Preprocessing, PreprocessingOptions
from vqgpt.errors import InputError, MissingDataError, UsageError, nearest_hint
from vqgpt.options.codec import to_json
from vqgpt.pictures.sheet import PictureFolder, contact_sheet, png_bytes, reconstruction_panel, to_displayable, to_rgb
from vqgpt.progress import Notice, Picture, Report, silent
from vqgpt.runtime.device import select_device
from vqgpt.storage.files import open_atomically, read_regular, write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer
from vqgpt.tokens import Description, TokenCache
from vqgpt.tokens.arrays import names_without, occurring
from vqgpt.tokens.manifest import UNKNOWN_TOKENIZER
from vqgpt.tokens.reader import Part, parts_of
from vqgpt.vqgan.checkpoint import decoder_sha256, load_vqgan, tokenizer_identities, vqgan_sha256
from vqgpt.vqgan.coding import (
    decode_batches,
    decode_codes,
    decode_in_passes,
    encode_images,
    images_per_pass,
    likeness_captions,
)
from vqgpt.vqgan.model import VQGAN

MOST_COLUMNS = 16
MOST_ROWS_ON_A_SHEET = 1000
SEED_OF_COLORS = 0
WHITE = 128  # of 255; a pixel of a mask that is at least as bright is kept


def run(config: RenderConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Render as configured; the result names the picture, or the folder of pictures.

    Raises UsageError for what exists or cannot be, InputError for an empty choice of rows, for another VQ-GAN, and if
    another run is writing the result.
    """
    description = TokenCache(config.cache).description
    check_place_and_form(config, description, overwrite)
    return render(config, load_its_vqgan(description, config.vqgan), overwrite, dry_run, report)


def render(config: RenderConfig, model: VQGAN, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Render with a VQ-GAN whose codes the tokens are. Raises what `run` raises."""
    cache = TokenCache(config.cache)
    description = cache.description
    split = config.split or cache.split_names[0]
    rows = config.chosen_rows(cache.rows(split))
    if config.form == "sheet":
        rows = for_a_sheet(rows, config, report)
    view = view_number(config, description)
    plan = {"picture": config.result, "split": split, "images": len(rows)}
    if not len(rows):
        raise InputError(
            f"{cache.path}: the selection has none of the {cache.rows(split)} rows of split {split!r}",
            "render other rows with --rows, or another split with --split",
        )
    about = {**to_json(config), "cache_digest": cache.digest, "split": split}
    size = decoded_size(model, description)
    parts = parts_of(cache, split, view, rows, images_per_pass(*size))
    precision = config.vqgan.precision
    if config.form in ("png", "tree"):
        identity: dict[str, Any] = {"cache_digest": cache.digest, "split": split, "rows": [rows.start, rows.stop]}
        identity |= {"view": description.views[view], "format": config.form, "precision": precision}
        if description.tokenizer_sha256 != vqgan_sha256(model):  # which names the decoder too
            identity["decoder"] = decoder_sha256(model)
        folders = class_folders(description.class_names) if config.form == "tree" else None
        if folders:
            numbered = enumerate(zip(folders, description.class_names, strict=True))
            identity["classes"] = {name: {"number": number, "name": of} for number, (name, of) in numbered}
            report_empty_folders(cache.labels(split)[rows.start : rows.stop], description, report)
        folder = PictureFolder(config.result, identity, [*folders, WITHOUT_CLASS] if folders else None, overwrite)
        if not dry_run:
            folder.fill(parts, len(rows), lambda codes: decode_codes(model, codes, precision), about, report)
        return plan
    if dry_run:
        return plan
    with sole_writer(config.result, config, overwrite):
        if config.form == "npz":
            images = decode_batches(model, (part.codes for part in parts), len(rows), precision, report)
            write_npz(config.result, (len(rows), *size, 3), images)
        else:
            write_atomically(config.result, png_bytes(sheet(list(parts), model, description, precision, report), about))
    if config.show:
        report(Picture(path=config.result))
    return plan


def report_empty_folders(labels: NDArray[np.integer], description: Description, report: Report) -> None:
    """A notice of the classes that no rendered row has: without their folders, others would get their numbers."""
    absent = names_without(occurring(labels), description.class_names)
    if absent:
        report(
            Notice(
                text=f"no rendered row is of {absent}: their folders are empty, so that the other classes keep "
                "their numbers; torchvision's ImageFolder accepts this with allow_empty=True"
            )
        )


def sheet(parts: Sequence[Part], model: VQGAN, description: Description, precision: str, report: Report) -> Image.Image:
    """The contact sheet of rows."""
    images = decode_in_passes(model, np.concatenate([part.codes for part in parts]), precision, report)
    texts = captions(np.concatenate([part.labels for part in parts]), description)
    return contact_sheet(to_displayable(images, SEED_OF_COLORS), texts, columns(description))


def for_a_sheet(rows: range, config: RenderConfig, report: Report) -> range:
    """The rows that a sheet shows: what was asked for explicitly, up to what a picture can hold."""
    most = ROWS_ON_A_SHEET if config.limit is None and config.rows is None else MOST_ROWS_ON_A_SHEET
    if len(rows) > most:
        report(
            Notice(
                text=f"the sheet shows the first {most} of {len(rows)} rows; --limit and --rows choose others, and a "
                "folder or .npz file as --out takes all"
            )
        )
    return rows[:most]


def view_number(config: RenderConfig, description: Description) -> int:
    """Which view of each row to render. Raises UsageError, with the nearest name, if there is no such view."""
    if config.view is None:
        return 0
    if config.view not in description.views:
        raise UsageError(f"{config.cache} has no view {config.view!r}", nearest_hint(config.view, description.views))
    return description.views.index(config.view)


def decoded_size(model: VQGAN, description: Description) -> tuple[int, ...]:
    """(H, W) of the decoded images."""
    return tuple(side * model.config.downsampling for side in description.grid)


def write_npz(path: Path, shape: tuple[int, ...], batches: Iterator[NDArray[np.uint8]]) -> None:
    """An uncompressed .npz file with one array arr_0 (N, H, W, 3), written as its images (n, C, H, W) come."""
    with open_atomically(path) as file, zipfile.ZipFile(file, "w") as archive:
        member = zipfile.ZipInfo("arr_0.npy")  # no time of day in it
        with archive.open(member, "w", force_zip64=True) as inner:
            np.lib.format.write_array_header_1_0(inner, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for images in batches:
                inner.write(to_rgb(images).tobytes())


def reconstruction_png(
    originals: Tensor, reconstructions: Tensor, code_counts: Tensor, configuration: Mapping[str, Any], seed: int
) -> bytes:
    """A PNG of originals above reconstructions, (n, C, H, W) uint8; `code_counts` (K,); `seed` is that of colours."""
    captions = likeness_captions(originals, reconstructions)
    shown, decoded, counts = (values.cpu().numpy() for values in (originals, reconstructions, code_counts))
    return reconstruction_panel(shown, decoded, captions, counts, seed, configuration)


def plain_sheet(codes: NDArray[np.int64], model: VQGAN, description: Description) -> bytes:
    """A PNG of codes (n, h, w), without captions."""
    images = decode_in_passes(model, codes, "fp32", silent)
    return png_bytes(contact_sheet(images, [""] * len(images), columns(description)), {})


def vqgan_at(path: Path, description: Description) -> VQGAN | None:
    """The VQ-GAN at `path`, on the CPU; None if there is none, or if its encoder did not make these tokens."""
    if not path.exists():
        return None
    model = load_vqgan(path, description.dataset, torch.device("cpu"))
    return model if description.tokenizer_sha256 in tokenizer_identities(model) else None


def check_place_and_form(config: RenderConfig, description: Description, overwrite: bool) -> None:
    """Raise UsageError if the result exists already, or if the format cannot hold the images."""
    if config.form in ("sheet", "npz"):
        check_place(config.result, config, overwrite)
    elif config.result.exists() and not config.result.is_dir():
        raise UsageError(f"{config.result} is a file", "give another --out")
    if config.form == "tree" and description.label_kind != "class":
        raise UsageError(
            f"{config.cache} has no classes to make folders of", "use --format png, for one folder without classes"
        )
    if config.form != "sheet" and description.image_channels not in (1, 3):
        raise UsageError(
            f"{config.cache} has images of {description.image_channels} channels, which are neither grey nor RGB",
            "use --format sheet, which shows them in colours of its own",
        )


def load_its_vqgan(description: Description, vqgan: EncoderOptions) -> VQGAN:
    """The VQ-GAN that a cache was made with, or one that differs from it in its decoder.

    Raises InputError, with both fingerprints, if it is another or unknown, or if the cache lies about its images.
    """
    if description.tokenizer_sha256 == UNKNOWN_TOKENIZER:
        raise InputError(
            "the tokens were imported without their VQ-GAN, so it is not known what decodes them",
            "import them again with --checkpoint-vae",
        )
    path = vqgan.path(description.dataset)
    model = load_vqgan(path, description.dataset, select_device(vqgan.device), vqgan.remap)
    ours, theirs = tokenizer_identities(model), description.tokenizer_sha256
    if theirs not in ours:
        raise InputError(
            f"the tokens were made with another VQ-GAN ({theirs[:12]}) than {path} ({ours[0][:12]})",
            "give the VQ-GAN that made them, with --checkpoint-vae (and --remap, if tokenize had it), or tokenize and "
            "train again with this one",
        )
    if description.codebook_size != model.config.codebook_size:
        raise InputError(
            f"the tokens claim to be of {description.codebook_size:,} codes, and {path} has "
            f"{model.config.codebook_size:,}",
            "do not use the file that claims this; make it again",
        )
    made = decoded_size(model, description)
    if made != description.image_size:  # images would be prepared at a size that the codes do not bound
        raise InputError(
            f"the tokens claim to be of images of {' x '.join(map(str, description.image_size))} pixels, and {path} "
            f"makes {' x '.join(map(str, made))} of them",
            "do not use the file that claims this; make it again",
        )
    return model


def captions(labels: NDArray[np.integer[Any]], description: Description) -> list[str]:
    """The class name of each row, "" where it has none or many."""
    if description.label_kind != "class":
        return [""] * len(labels)
    return [description.class_names[label] if label >= 0 else "" for label in labels]


def columns(description: Description) -> int:
    """Columns of a contact sheet: one per class where they fit, so that samples that cycle through them line up."""
    classes = len(description.class_names) if description.label_kind == "class" else 0
    return classes if 2 < classes <= MOST_COLUMNS else 10


def encode_image(path: Path, description: Description, load: Callable[[], VQGAN]) -> NDArray[np.int64]:
    """The codes (h, w) of an image, prepared as the images of a token cache of this description.

    `load` gives the VQ-GAN of the tokens. Raises InputError if the image has another size, and what `load` raises.
    """
    preprocessing, size = preprocessing_of(description), description.image_size
    image = read_image(path, preprocessing.options.background_rgb)
    if (image.height, image.width) != size:
        raise InputError(
            f"the prompt {path} has {image.width} x {image.height} pixels, the GPT's images {size[1]} x {size[0]}",
            "resize or crop it to that size",
        )
    return encode_images(load(), prepare(image, preprocessing)[None], "fp32")[0, 0]


def preprocessing_of(description: Description) -> Preprocessing:
    """How images become those of a token cache of this description, in their plain view.

    Raises UsageError if they are not square, which no preprocessing of ours makes.
    """
    recorded, size = description.preprocessing, description.image_size
    if size[0] != size[1]:
        raise UsageError(f"images of {size[1]} x {size[0]} pixels are not made of others here", "give rows of a cache")
    options = PreprocessingOptions(**{name: recorded[name] for name in ("fit", "background") if name in recorded})
    return Preprocessing(size=size[0], channels=description.image_channels, options=options)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The pixels (H, W) of a mask that are white. Raises MissingDataError or InputError."""
    return np.asarray(read_image(path, (0, 0, 0)).convert("L")) >= WHITE


def read_image(path: Path, background: tuple[int, int, int]) -> Image.Image:
    """An image file, grey or RGB. Raises MissingDataError or InputError, naming it."""
    if not path.exists():
        raise MissingDataError(f"there is no file {path}", "give an image, or a row of a token cache: cache:train/17")
    try:
        return decode(read_regular(path, LARGEST_FILE), background)
    except BrokenImageError as error:
        raise InputError(f"{path} cannot be used as an image: {error}", "give another file") from None
