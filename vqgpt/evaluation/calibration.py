"""Whether a GPT's probabilities can be relied on: its loss, its own entropy, and how often its first choice is right.

    token cache, GPT -> Predictions of rows of a split -> calibration by cell of the grid, loss by class
    token cache      -> what the same rows cost by the frequencies of codes alone

Of several views the first counts, as in validation. Rows pass shard by shard: per-token figures are summed, never kept.
All figures are in bits. Must not import the VQ-GAN and image data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.errors import InputError, NonFiniteError
from vqgpt.evaluation.likelihood import labels_of
from vqgpt.gpt.model import GPT
from vqgpt.gpt.order import sequence_to_grid
from vqgpt.gpt.scoring import logits_of_images
from vqgpt.options.codec import one_line
from vqgpt.progress import Progress, Report
from vqgpt.tokens import Description, SplitTokens, TokenCache
from vqgpt.tokens.reader import rows_by_shard

BINS = 15  # of the probability of the most probable code
UNLABELLED = "no class"

# From where on a figure is a finding.
SMALLEST_LEAD = 0.01  # bits per token below the best baseline
LARGEST_GAP = 0.1  # bits per token between the splits
LARGEST_BIAS = 0.1  # bits per token between entropy and loss
LARGEST_CALIBRATION_ERROR = 0.05


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a GPT predicted of n rows of a split, each token from those before it in the row.

    rows (n,) are their numbers, labels (n,) or (n, L) those of the cache, bits (n,) float64 their loss in bits per
    token. The others are means over the rows for each cell of the grid, (h, w) float64: the loss and the entropy in
    bits, the share of tokens where the most probable code was the right one, and the probability of that code.
    bins (3, BINS) float64 is what `reliability` makes of all tokens.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.integer]
    bits: NDArray[np.float64]
    loss: NDArray[np.float64]
    entropy: NDArray[np.float64]
    share_right: NDArray[np.float64]
    confidence: NDArray[np.float64]
    bins: NDArray[np.float64]

    __repr__ = one_line


def check_splits(cache: TokenCache, *splits: str) -> None:
    """Raise InputError if the cache lacks one of the splits, or has no rows in it."""
    for split in splits:
        if not cache.rows(split):
            raise InputError(f"{cache.path}: split {split!r} is empty", "tokenize a dataset with images in it")


def evenly_spaced(rows: int, limit: int) -> NDArray[np.int64]:
    """The numbers of at most `limit` of `rows` rows, in order, the first among them; 0 is no limit."""
    count = min(limit or rows, rows)
    return np.arange(count, dtype=np.int64) * rows // max(1, count)


def predict(
    cache: TokenCache, split: str, rows: NDArray[np.int64], model: GPT, precision: str, report: Report
) -> Predictions:
    """What the model predicts of these rows, by their labels where both know the same kind, else without.

    Raises NonFiniteError if a prediction is not finite.
    """
    bits, labels = [], []
    sums = torch.zeros(4, model.config.block_size, dtype=torch.float64)
    bins = np.zeros((3, BINS))
    done = 0
    for tokens in rows_by_shard(cache, split, rows):
        labels.append(tokens.labels)
        grids = torch.from_numpy(tokens.codes[:, 0].astype(np.int32))
        given = labels_of(tokens, cache.description, model.config)
        for logits, sequences in logits_of_images(model, grids, given, precision):
            found = _per_token(logits, sequences)
            if not found.isfinite().all():
                raise NonFiniteError(
                    f"the GPT's predictions of split {split!r} of {cache.path} are not all finite",
                    "give another GPT; if it is right elsewhere, try --precision fp32",
                )
            bits.append(found[0].mean(dim=1).numpy())
            sums += found.sum(dim=1)
            bins += reliability(found[3].numpy(), found[2].numpy())
            done += len(sequences)
            report(Progress(task=f"predict {split}", done=done, total=len(rows), unit="rows"))
    loss, entropy, share_right, confidence = (
        sequence_to_grid(sums, model.cells.cpu(), model.config.grid) / len(rows)
    ).numpy()
    return Predictions(
        rows=rows,
        labels=np.concatenate(labels),
        bits=np.concatenate(bits),
        loss=loss,
        entropy=entropy,
        share_right=share_right,
        confidence=confidence,
        bins=bins,
    )


def _per_token(logits: Tensor, sequences: Tensor) -> Tensor:
    """Logits (n, T, K) for tokens (n, T) -> (4, n, T) float64 on the CPU.

    Loss and entropy in bits, whether the most probable code is the token (1 or 0), and its probability.
    """
    log_p = logits.log_softmax(dim=-1)
    loss = -log_p.gather(-1, sequences[..., None])[..., 0] / math.log(2)
    highest, code = log_p.max(dim=-1)
    entropy = -log_p.exp().mul_(log_p).sum(dim=-1) / math.log(2)
    return torch.stack([loss, entropy, (code == sequences).float(), highest.exp()]).cpu().double()


def reliability(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """How predictions spread over BINS bins of confidence ((m - 1) / BINS, m / BINS], of equal width: (3, BINS).

    Of each prediction, the probability of its most probable code, and 1 if that was right, else 0; any shape. In each
    bin: how many there are, the sum of their confidence, and how many were right.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1).ravel()
    weights = (None, confidence.ravel(), right.ravel())
    return np.stack([np.bincount(place, weight, BINS).astype(np.float64) for weight in weights])


def expected_calibration_error(bins: NDArray[np.float64]) -> float:
    """The mean distance between confidence and accuracy, bin by bin: equation 3 of Guo et al. 2017, arXiv:1706.04599.

    `bins` are of `reliability`, of at least one prediction.
    """
    count, confidence, right = bins
    return float(np.abs(right - confidence).sum() / count.sum())


def calibration_figures(predictions: Predictions) -> dict[str, Any]:
    """The calibration of some predictions in JSON form; what is by cell is nested lists (h, w)."""
    edges = np.arange(BINS + 1) / BINS
    table = []
    for lower, upper, (count, confidence, right) in zip(edges[:-1], edges[1:], predictions.bins.T, strict=True):
        means = {"confidence": confidence, "share_right": right}
        figures = {name: float(total / count) if count else None for name, total in means.items()}
        table.append({"above": float(lower), "up_to": float(upper), "tokens": int(count), **figures})
    return {
        "expected_calibration_error": expected_calibration_error(predictions.bins),
        "reliability": table,
        "loss_bits": predictions.loss.tolist(),
        "entropy_bits": predictions.entropy.tolist(),
        "entropy_minus_loss_bits": (predictions.entropy - predictions.loss).tolist(),
        "share_right": predictions.share_right.tolist(),
        "confidence": predictions.confidence.tolist(),
    }


def count_by_position(cache: TokenCache, split: str, report: Report) -> NDArray[np.int64]:
    """How often each code is at each raster position in the first views of a whole split, (T, K)."""
    size, total = cache.description.codebook_size, cache.rows(split)
    counts = np.zeros((math.prod(cache.description.grid), size), np.int64)
    done = 0
    for shard in sorted(cache.manifest.shards[split]):
        for position, column in enumerate(_columns(cache.read_split(split, [shard]))):
            counts[position] += np.bincount(column, minlength=size)
        done += cache.manifest.shards[split][shard].rows
        report(Progress(task="count codes", done=done, total=total, unit="rows"))
    return counts


def baselines(
    cache: TokenCache, split: str, rows: NDArray[np.int64], counts: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """Cross-entropy of rows, in bits per token, by models that see no other token; `counts` (T, K) are of training.

    All codes alike; each by how often it occurs; and by how often it occurs at its position. The latter two are
    smoothed by adding one (Laplace): of n codes, one that occurs c times has the probability (c + 1) / (n + K).
    """
    anywhere = smoothed_bits(counts.sum(axis=0))
    by_code, by_position, tokens = 0.0, 0.0, 0
    for part in rows_by_shard(cache, split, rows):
        for position, column in enumerate(_columns(part)):
            by_code += float(anywhere[column].sum())
            by_position += float(smoothed_bits(counts[position])[column].sum())
            tokens += len(column)
    figures = {
        "uniform": math.log2(counts.shape[1]),
        "unigram": by_code / tokens,
        "unigram_by_position": by_position / tokens,
    }
    return {name: {"bits_per_token": bits} for name, bits in figures.items()}


def smoothed_bits(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each code costs, in bits, (K,), that occurred `counts` (K,) times, one added to each."""
    return np.log2(counts.sum() + len(counts)) - np.log2(counts + 1.0)


def _columns(tokens: SplitTokens) -> NDArray[np.unsignedinteger]:
    """The codes of the first view by raster position, (T, n)."""
    return np.ascontiguousarray(tokens.codes[:, 0].reshape(len(tokens.codes), -1).T)


def loss_by_class(predictions: Predictions, description: Description) -> dict[str, dict[str, Any]]:
    """Rows and bits per token of each class that occurs, in their order; rows without one last.

    Where two classes share a name, each name has its number before it. The labels are classes.
    """
    names = [*description.class_names, UNLABELLED]  # -1 is the last
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names)]
    places = predictions.labels % len(names)
    return {
        names[place]: {
            "rows": int((places == place).sum()),
            "bits_per_token": float(predictions.bits[places == place].mean()),
        }
        for place in np.unique(places).tolist()
    }


def findings(
    held_out: Predictions, gap: float, interval: Sequence[float], by_frequencies: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """What looks wrong, a sentence each.

    `gap` is how many bits per token held-out rows cost more than training rows, `interval` its lowest and its highest
    value; `by_frequencies` is what `baselines` gives.
    """
    bits, found = float(held_out.bits.mean()), []
    best = min(by_frequencies, key=lambda name: by_frequencies[name]["bits_per_token"])
    lowest = by_frequencies[best]["bits_per_token"]
    if bits > lowest - SMALLEST_LEAD:
        found.append(
            f"the GPT predicts held-out rows no better than {_in_words(best)} "
            f"({bits:.2f} against {lowest:.2f} bits per token)"
        )
    lowest_gap, highest_gap = interval
    if gap > LARGEST_GAP and lowest_gap > 0:
        found.append(f"overfitting: held-out rows cost {gap:.2f} bits per token more than training rows")
    if gap < -LARGEST_GAP and highest_gap < 0:
        found.append(
            f"held-out rows cost {-gap:.2f} bits per token less than training rows: "
            "the two splits hold images of different kinds"
        )
    bias = float((held_out.entropy - held_out.loss).mean())
    if bias < -LARGEST_BIAS:
        found.append(f"overconfident: held-out tokens cost {-bias:.2f} bits more than the GPT's own entropy says")
    if bias > LARGEST_BIAS:
        found.append(f"underconfident: held-out tokens cost {bias:.2f} bits less than the GPT's own entropy says")
    error = expected_calibration_error(held_out.bins)
    if error > LARGEST_CALIBRATION_ERROR:
        found.append(
            f"the probability of the most probable code is off by {error:.2f} on average (expected calibration error)"
        )
    return found


def _in_words(baseline: str) -> str:
    return {
        "uniform": "a uniform distribution does",
        "unigram": "the frequencies of codes do",
        "unigram_by_position": "the frequencies of codes by position do",
    }[baseline]
