"""The pictures of a run's page, made from its token caches and networks.

    codes of samples, training rows and held-out rows; a VQ-GAN; a GPT; real images  ->  Sheet

Only what lies here is used: nothing is downloaded. Rows are the first ones, never chosen, but for the worst
reconstructions, which are the worst of up to `MOST_RECONSTRUCTED`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vqgpt.api.image_sets import References
from vqgpt.api.render import captions
from vqgpt.errors import InputError
from vqgpt.evaluation.memorisation import first_views, nearest_rows
from vqgpt.gpt.checkpoint import LoadedGPT
from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.labels import labels_of_rows, no_label
from vqgpt.gpt.options import SamplingOptions
from vqgpt.options.codec import one_line
from vqgpt.pictures.sheet import to_displayable
from vqgpt.progress import silent
from vqgpt.report.facts import Sheet
from vqgpt.tokens import TokenCache
from vqgpt.tokens.reader import rows_by_shard
from vqgpt.vqgan.coding import decode_in_passes, psnr, reconstruct
from vqgpt.vqgan.model import VQGAN

COLUMNS = 8
MOST_CLASSES = 12
MOST_RECONSTRUCTED = 256
RECONSTRUCTIONS = 16
COMPLETIONS = 6
NEAREST = 16
MOST_TILES = 256
GREY = 128
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A VQ-GAN with how its images are shown."""

    model: VQGAN

    __repr__ = one_line

    def images(self, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Codes (n, h, w) -> images (n, C, H, W) to be shown."""
        return to_displayable(decode_in_passes(self.model, codes, "fp32", silent), SEED)


def samples_by_class(samples: TokenCache, decoder: Decoder) -> Sheet:
    """The first samples of each class that occurs, a class in a row; the first samples where there are no classes."""
    tokens, description = samples.read_split(samples.split_names[0]), samples.description
    classed = description.label_kind == "class"
    classes = np.unique(tokens.labels[tokens.labels >= 0]).tolist() if classed else list[int]()
    of_classes = [np.flatnonzero(tokens.labels == number)[:COLUMNS] for number in classes[:MOST_CLASSES]]
    columns = max(map(len, of_classes)) if of_classes else COLUMNS
    rows = np.concatenate(of_classes) if of_classes else np.arange(len(tokens.codes))[: 6 * COLUMNS]
    places = np.arange(len(rows)).reshape(1, -1)
    if of_classes:
        places = np.full((len(of_classes), columns), len(rows))  # of the white image at the end
        places[np.arange(columns) < np.array([[len(each)] for each in of_classes])] = np.arange(len(rows))
    images = decoder.images(tokens.codes[rows, 0])
    images = np.concatenate([images, np.full_like(images[:1], 255)])[places.ravel()]
    names = [*captions(tokens.labels[rows], description), ""]
    left_out = len(classes) - MOST_CLASSES
    more = f" {left_out} more classes are not shown." if left_out > 0 else ""
    return Sheet(
        title="Samples",
        text=f"The first samples{' of each class' if of_classes else ''}, in the order they were drawn.{more}",
        images=images,
        captions=tuple(names[place] for place in places.ravel()),
        columns=columns,
    )


def completions(gpt: LoadedGPT, cache: TokenCache, split: str, decoder: Decoder) -> Sheet:
    """Held-out rows, the upper half of their tokens, and what the GPT makes of it, three times."""
    count = min(COMPLETIONS, cache.rows(split))
    tokens = cache.read_split(split, [0])
    codes = tokens.codes[:count, 0].astype(np.int64)
    known = codes.copy()
    known[:, codes.shape[1] // 2 :] = -1
    config = gpt.model.config
    labels = torch.from_numpy(labels_of_rows(tokens, cache.description)[:count])
    if not config.num_classes:
        labels = torch.tensor([no_label(config)] * count)
    drawn = []
    for seed in range(3):
        passes = sample_codes(
            gpt.model, Asked.of_one_seed(labels, seed, SamplingOptions(), torch.from_numpy(known)), "fp32"
        )
        drawn.append(np.concatenate([part.numpy() for part, _ in passes]))
    images = [decoder.images(each) for each in (codes, *drawn)]
    shown = images[0].copy()
    shown[:, :, shown.shape[2] // 2 :] = GREY
    by_row = np.stack([images[0], shown, *images[1:]], axis=1)
    return Sheet(
        title="Completions",
        text="Each row: a held-out image as its tokens show it, its upper half, and three completions of that.",
        images=by_row.reshape(-1, *by_row.shape[2:]),
        captions=("held out", "known", *("drawn",) * 3) * count,
        columns=by_row.shape[1],
    )


def worst_reconstructions(references: References, model: VQGAN, device: torch.device) -> Sheet:
    """Held-out images beside what the VQ-GAN makes of them, the worst first."""
    images = references.held_out.drawn(MOST_RECONSTRUCTED)
    originals = torch.from_numpy(images.images(range(len(images))))
    with torch.inference_mode():
        decoded = reconstruct(model, originals.to(device))[0].cpu()
    decibels = psnr(originals, decoded)
    worst = decibels.argsort()[:RECONSTRUCTIONS]
    pairs = torch.stack([originals[worst], decoded[worst]], dim=1).flatten(0, 1).numpy()
    said = [word for value in decibels[worst].tolist() for word in ("image", f"{value:.1f} dB")]
    return Sheet(
        title="Reconstructions, the worst first",
        text=f"Of {len(images)} held-out images those with the lowest PSNR, each beside its "
        f"reconstruction. The median of all is {decibels.median():.1f} dB, the worst {decibels.min():.1f} dB.",
        images=to_displayable(pairs, SEED),
        captions=tuple(said),
        columns=COLUMNS,
    )


def nearest_training_rows(samples: TokenCache, training: TokenCache, decoder: Decoder) -> Sheet:
    """The first samples, each beside the training image with the most equal tokens."""
    rows = np.arange(min(NEAREST, samples.rows(samples.split_names[0])))
    codes = first_views(samples, samples.split_names[0], rows)
    found = nearest_rows(codes, training, "train", "samples", silent)
    ascending = np.unique(found.rows)
    stored = np.concatenate([tokens.codes for tokens in rows_by_shard(training, "train", ascending)])
    nearest = stored[np.searchsorted(ascending, found.rows), found.views]
    pairs = np.stack([codes, nearest.astype(codes.dtype)], axis=1).reshape(-1, *codes.shape[1:])
    said = [word for number in found.distances.tolist() for word in ("sample", f"{number} differ")]
    return Sheet(
        title="Nearest training images",
        text=f"The first samples, each beside the training image, as its tokens show it, that differs from it in the "
        f"fewest of its {codes[0].size} tokens. A copy differs in none.",
        images=decoder.images(pairs),
        captions=tuple(said),
        columns=COLUMNS,
    )


def code_tiles(counts: NDArray[np.int64], grid: tuple[int, int], decoder: Decoder) -> Sheet:
    """What each code in use looks like, the most frequent first: an image of that code alone, and its share."""
    used = np.argsort(-counts, kind="stable")[: min(MOST_TILES, int((counts > 0).sum()))]
    codes = np.broadcast_to(used[:, None, None], (len(used), *grid))
    tiles = decoder.images(np.ascontiguousarray(codes))
    height, width = (side // cells for side, cells in zip(tiles.shape[2:], grid, strict=True))
    top, left = (cells // 2 * side for cells, side in zip(grid, (height, width), strict=True))
    shares = counts[used] / max(1, counts.sum())
    return Sheet(
        title="The codes",
        text="The patch that each code stands for among codes of its own kind, and its share of the training tokens.",
        images=tiles[:, :, top : top + height, left : left + width],
        captions=tuple(f"{share:.1%}" for share in shares),
        columns=16,
    )


def calibration_map(path: Path) -> Sheet:
    """The picture that `vqgpt evaluate gpt` drew. Raises InputError if it is none."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no picture ({error})", "evaluate the GPT again") from None
    return Sheet(
        title="Calibration",
        text="Where the GPT is surer than it should be (entropy below the loss), and where its loss is high, by cell "
        "of the grid, over held-out images.",
        images=pixels[None],
        captions=("",),
        columns=1,
    )
