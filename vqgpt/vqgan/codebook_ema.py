"""A codebook that follows the latents by moving averages: its start, its update, and the revival of unused codes.

Letters: D code dimension, K codebook size, M latent vectors. Sums over the ranks of a distributed training are taken
here, so that every rank has the same codebook.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.runtime.distributed import from_main, sum_over_ranks
from vqgpt.vqgan.quantizer import Codebook, nearest_codes, to_vectors

KMEANS_ITERATIONS = 10
FEWEST_USES = 1e-5  # of a code, on average, below which its mean means nothing


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
