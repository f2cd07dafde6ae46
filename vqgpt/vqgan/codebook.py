"""The codebook: how a latent finds its code, what a code means, and how the codes follow the latents in training.

By its loss (van den Oord et al. 2017), or by moving averages: their start, their update, the revival of unused codes.
Letters: B batch, D code dimension, K codebook size, h w grid, M = B*h*w latent vectors. All of it runs in float32,
whatever the precision of the networks around it. Sums over the ranks of a distributed training are taken here, so every
rank has the same codebook.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.runtime.device import from_main, sum_over_ranks
from vqgpt.vqgan.architecture import VQGANConfig

COMMITMENT_WEIGHT = 0.25
SCORES_PER_PASS = 2**24  # distances held at once, in numbers: 64 MB
KMEANS_ITERATIONS = 10
FEWEST_USES = 1e-5  # of a code, on average, below which its mean means nothing


class Codebook(nn.Module):
    """K learned vectors; a latent vector is replaced by one of them (van den Oord et al. 2017, eq. 1).

    `config.lookup` says by which: the nearest, the nearest in direction (Yu et al. 2021, arXiv:2110.04627: both sides
    are l2-normalised), the largest of learned logits (GumbelVQ of taming-transformers, without its noise), or the
    largest dot product (IBQ, Shi et al. 2024, arXiv:2412.02692). With a list of used codes, the buffer `used`, only
    those exist, and codes are indices into the list.
    """

    used: Tensor | None

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.lookup = config.lookup
        largest = 1 / config.n_embed  # not nn.Embedding's own start: without data, that imports torch's compiler
        vectors = torch.empty(config.n_embed, config.embed_dim).uniform_(-largest, largest)
        self.embedding = nn.Embedding.from_pretrained(vectors, freeze=False)
        self.register_buffer("used", torch.arange(config.used_codes) if config.used_codes else None)
        if self.lookup == "logits":
            self.proj = nn.Conv2d(config.embed_dim, config.n_embed, 1)

    def vectors(self) -> Tensor:
        """What each code means, (K, D)."""
        weight = self.embedding.weight if self.used is None else self.embedding.weight[self.used]
        return F.normalize(weight, dim=1) if self.lookup == "cosine" else weight

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor) -> None:
        """Let the codes mean (K, D)."""
        self.embedding.weight[slice(None) if self.used is None else self.used] = vectors

    def comparable(self, latents: Tensor) -> Tensor:
        """Latents (B, D, h, w) as they are compared to the codes."""
        return F.normalize(latents, dim=1) if self.lookup == "cosine" else latents

    @torch.no_grad()
    def latents_to_codes(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) float32 -> codes (B, h, w) int64; a tie goes to the lowest."""
        batch, _, height, width = latents.shape
        vectors = to_vectors(self.comparable(latents))
        with torch.autocast(latents.device.type, enabled=False):
            match self.lookup:
                case "nearest" | "cosine":
                    codes = nearest_codes(vectors, self.vectors())
                case "logits":
                    codes = self._largest_logit(vectors)
                case "dot":
                    codes = _largest_product(vectors, self.vectors(), bias=None)
                case _:
                    assert_never(self.lookup)
        return codes.view(batch, height, width)

    def _largest_logit(self, vectors: Tensor) -> Tensor:
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        assert bias is not None
        if self.used is not None:
            weight, bias = weight[self.used], bias[self.used]
        return _largest_product(vectors, weight, bias)

    def codes_to_latents(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, D, h, w) float32, in channels_last memory."""
        return F.embedding(codes, self.vectors()).permute(0, 3, 1, 2)


def to_vectors(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D), in raster order."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def moments_of(vectors: Tensor) -> Tensor:
    """Of vectors (M, D): M, their sum and the sum of their products, as (1, v)^T (1, v) summed, (1+D, 1+D)."""
    padded = F.pad(vectors, (1, 0), value=1.0)
    return padded.T @ padded


def covariance_of(moments: Tensor) -> Tensor:
    """(D, D), from `moments_of` or a sum of them."""
    means = moments / moments[0, 0].clamp(min=1)
    return means[1:, 1:] - torch.outer(means[0, 1:], means[0, 1:])


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(M, D), (K, D) -> (M,) int64: argmin over k of |v - e_k|^2, without the |v|^2 that all k share."""
    with torch.autocast(vectors.device.type, enabled=False):
        squares = codebook.square().sum(dim=1)
        passes = vectors.split(max(1, SCORES_PER_PASS // len(codebook)))
        return torch.cat([torch.addmm(squares, rows, codebook.T, alpha=-2).argmin(dim=1) for rows in passes])


def _largest_product(vectors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(M, D), (K, D), (K,) -> (M,) int64: argmax over k of v . w_k + b_k."""
    passes = vectors.split(max(1, SCORES_PER_PASS // len(weight)))
    return torch.cat([F.linear(rows, weight, bias).argmax(dim=1) for rows in passes])


def commitment_loss(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls the encoder to the codes: mean |z - sg[e]|^2, third term of eq. 3 in van den Oord et al. 2017."""
    return F.mse_loss(latents, quantized.detach())


def codebook_loss(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls the codes to the encoder: mean |sg[z] - e|^2, second term of eq. 3 in van den Oord et al. 2017."""
    return F.mse_loss(quantized, latents.detach())


def codebook_term(latents: Tensor, quantized: Tensor, trained_by: Literal["ema", "loss"]) -> Tensor:
    """The commitment loss, and the codebook's own loss where gradients train it."""
    term = COMMITMENT_WEIGHT * commitment_loss(latents, quantized)
    return term + codebook_loss(latents, quantized) if trained_by == "loss" else term


class EMACodebook:
    """Moves each code to the moving average of its latents (van den Oord et al. 2017, appendix A.1).

    A code whose average use falls below `revive_below` of an equal share is put onto a random latent of the batch, and
    its statistics are reset with it: a stale average would otherwise pull it back at the next step.
    """

    def __init__(self, codebook: Codebook, decay: float, revive_below: float, vectors_per_step: int) -> None:
        """Start from the codes as they are, as if each had its equal share of the vectors of a step."""
        self.codebook = codebook
        codebook.embedding.weight.requires_grad_(False)
        self.decay = decay
        self.revive_below = revive_below
        vectors = codebook.vectors()
        share = vectors_per_step / len(vectors)
        self.counts = torch.full((len(vectors),), share, device=vectors.device)
        self.sums = vectors.detach() * share

    def state_dict(self) -> dict[str, Tensor]:
        """The running statistics: counts (K,), sums (K, D)."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, counted: bool = True) -> None:
        """Move the codes towards the latents (B, D, h, w) that chose them, codes (B*h*w,), and revive unused ones.

        A rank whose latents are another's too has `counted` false.
        """
        vectors = to_vectors(latents)
        batch_counts = torch.bincount(codes, minlength=len(self.counts)).to(self.counts) * counted
        batch_sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors * counted)
        batch_counts, batch_sums = sum_over_ranks(batch_counts), sum_over_ranks(batch_sums)
        self.counts.lerp_(batch_counts, 1 - self.decay)
        self.sums.lerp_(batch_sums, 1 - self.decay)
        means = self.sums / self.counts.clamp(min=FEWEST_USES)[:, None]
        means = torch.where(self.counts[:, None] > FEWEST_USES, means, self.codebook.vectors())
        share = batch_counts.sum() / len(self.counts)
        unused = self.counts < self.revive_below * share
        rows = torch.randint(len(vectors), (len(unused),), device=vectors.device)
        means = torch.where(unused[:, None], from_main(vectors[rows]), means)
        self.counts.copy_(torch.where(unused, share, self.counts))
        self.sums.copy_(torch.where(unused[:, None], means * share, self.sums))
        self.codebook.set_vectors(means)


@torch.no_grad()
def start_codebook(codebook: Codebook, latents: Tensor, start: str) -> None:
    """Put the codes where `start` says, given some latents (B, D, h, w): kmeans, latents, or uniform (as they are)."""
    vectors = to_vectors(codebook.comparable(latents))
    num_codes = len(codebook.vectors())
    if start == "kmeans":
        codebook.set_vectors(kmeans(vectors, num_codes, spherical=codebook.lookup == "cosine"))
    elif start == "latents":
        codebook.set_vectors(random_rows(vectors, num_codes))
    codebook.embedding.weight.copy_(from_main(codebook.embedding.weight))


def kmeans(vectors: Tensor, num_codes: int, spherical: bool) -> Tensor:
    """(M, D) -> (num_codes, D): Lloyd's algorithm from random rows; an empty cluster restarts at another row.

    With `spherical`, vectors and means have length 1. Draws from torch's random numbers.
    """
    means = random_rows(vectors, num_codes)
    for _ in range(KMEANS_ITERATIONS):
        codes = nearest_codes(vectors, means)
        counts = torch.bincount(codes, minlength=num_codes)
        sums = torch.zeros_like(means).index_add_(0, codes, vectors)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], random_rows(vectors, num_codes))
        means = F.normalize(means, dim=1) if spherical else means
    return means


def random_rows(vectors: Tensor, count: int) -> Tensor:
    """`count` random rows of (M, D), different ones as long as there are enough."""
    order = torch.randperm(len(vectors), device=vectors.device)
    return vectors[order.repeat(-(-count // len(vectors)))[:count]]
