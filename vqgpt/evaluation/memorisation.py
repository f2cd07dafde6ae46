"""Whether samples are copies of training images: by their tokens, by their pixels, and by their features.

    codes of samples (n, h, w), a token cache  ->  how many tokens differ from the nearest training row
    Features of samples, held-out images, training images  ->  AuthPct, C_T, equal pixels

Such numbers do not prove that nothing is memorised (Stein et al. 2023, arXiv:2306.04675): look at the closest pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.data.image_sets import drawn_rows
from vqgpt.evaluation.features import Features
from vqgpt.evaluation.neighbours import authentic, centred, copying_test, nearest_codes, nearest_of
from vqgpt.evaluation.samples import MOST_NEIGHBOURS, images_in_both
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.tokens import TokenCache
from vqgpt.tokens.reader import rows_by_shard

MOST_HELD_OUT = 2048  # rows whose distances are compared with those of samples


@dataclass(frozen=True, kw_only=True)
class NearestRows:
    """The nearest training row of each of n rows: the tokens that differ, its number and its view, (n,) each."""

    distances: NDArray[np.int64]
    rows: NDArray[np.int64]
    views: NDArray[np.int64]

    __repr__ = one_line


def nearest_rows(
    codes: NDArray[np.integer[Any]], training: TokenCache, split: str, what: str, report: Report
) -> NearestRows:
    """The rows of a split of a token cache that are nearest to codes (n, h, w), one shard in memory at a time."""
    grids = torch.from_numpy(codes.reshape(len(codes), -1).astype(np.float32))
    shards, shard_rows = sorted(training.manifest.shards[split]), training.description.shard_rows
    num_views = len(training.description.views)
    distances = torch.full((len(grids),), torch.iinfo(torch.int64).max)
    rows, views = torch.zeros(len(grids), dtype=torch.int64), torch.zeros(len(grids), dtype=torch.int64)
    for done, shard in enumerate(shards):
        stored = training.read_split(split, [shard]).codes
        others = torch.from_numpy(stored.reshape(-1, grids.shape[1]).astype(np.float32))
        found, where = nearest_codes(grids, others)
        nearer = found < distances
        distances = torch.where(nearer, found, distances)
        rows = torch.where(nearer, where // num_views + shard * shard_rows, rows)
        views = torch.where(nearer, where % num_views, views)
        report(Progress(task=f"nearest rows of {what}", done=done + 1, total=len(shards), unit="shards"))
    return NearestRows(distances=distances.numpy(), rows=rows.numpy(), views=views.numpy())


def token_figures(samples: NearestRows, held_out: NearestRows | None, tokens_per_image: int) -> dict[str, Any]:
    """How near samples are to training rows, beside how near held-out rows are, where there are some."""
    return {
        name: {
            "images": len(found.distances),
            "copies": int((found.distances == 0).sum()),
            "nearest_row_differs_in": float(found.distances.mean()),
            "of_tokens": tokens_per_image,
        }
        for name, found in (("samples", samples), ("held-out", held_out))
        if found is not None
    }


def first_views(cache: TokenCache, split: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.unsignedinteger]:
    """The codes (n, h, w) of rows of a split, given in rising order, in their first view."""
    return np.concatenate([tokens.codes[:, 0] for tokens in rows_by_shard(cache, split, rows)])


def held_out_codes(training: TokenCache, split: str) -> NDArray[np.unsignedinteger]:
    """Codes (n, h, w) of up to 2048 held-out rows, in the first view."""
    return first_views(training, split, drawn_rows(training.rows(split), MOST_HELD_OUT))


def feature_figures(
    samples: Features, held_out: Features, training: Features, digests: NDArray[np.uint8]
) -> dict[str, Any]:
    """AuthPct of the samples, and of held-out images for comparison; C_T; and the shares of images that are copies.

    Over at most 10,000 images of each set. Copies in all pixels are looked for among the images that have the `digests`
    (M, 16).
    """
    near = [each.values[drawn_rows(len(each.values), MOST_NEIGHBOURS)] for each in (samples, held_out, training)]
    of_samples, of_held_out = authentic(near[:2], near[2])
    return {
        "training_images": training.count,
        "searched_for_equals": len(digests),
        "equal_to_a_training_image": float(images_in_both(samples, digests).mean()),
        "equal_held_out": float(images_in_both(held_out, digests).mean()),
        "authentic": float(of_samples.mean()),
        "authentic_held_out": float(of_held_out.mean()),
        "copying_test": copying_test(*near),
    }


def closest_pairs(samples: Features, training: Features, count: int) -> list[tuple[int, int, float]]:
    """The `count` samples that are nearest to a training image.

    Each as (number of the sample, number of the training image, distance).
    """
    of_samples, of_training = centred(samples.values, training.values)
    distances, rows = nearest_of(of_samples, of_training)
    order = distances.argsort(stable=True)[:count].tolist()
    return [(int(samples.rows[row]), int(training.rows[rows[row]]), float(distances[row].sqrt())) for row in order]
