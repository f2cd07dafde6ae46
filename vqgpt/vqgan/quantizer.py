"""The codebook: nearest-code lookup, its losses, and its exponential-moving-average update.

Letters: B batch, D code dimension, K codebook size, h w grid, M = B*h*w latent vectors.
All of it runs in float32, whatever the precision of the networks around it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COMMITMENT_WEIGHT = 0.25


class Codebook(nn.Module):
    """K learned vectors; a latent vector is replaced by the nearest of them (van den Oord et al. 2017, eq. 1)."""

    def __init__(self, num_codes: int, dimension: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, dimension)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def latents_to_codes(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) float32 -> indices of the nearest codes (B, h, w) int64; a tie goes to the lowest index."""
        batch, _, height, width = latents.shape
        return nearest_codes(to_vectors(latents), self.embedding.weight).view(batch, height, width)

    def codes_to_latents(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, D, h, w) float32, in channels_last memory."""
        return self.embedding(codes).permute(0, 3, 1, 2)


def to_vectors(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D), in raster order."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(M, D), (K, D) -> (M,) int64: argmin over k of |v - e_k|^2, without the |v|^2 that all k share."""
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.addmm(codebook.square().sum(dim=1), vectors, codebook.T, alpha=-2).argmin(dim=1)


def commitment_loss(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls the encoder to the codes: mean |z - sg[e]|^2, third term of eq. 3 in van den Oord et al. 2017."""
    return F.mse_loss(latents, quantized.detach())


def codebook_loss(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls the codes to the encoder: mean |sg[z] - e|^2, second term of eq. 3 in van den Oord et al. 2017."""
    return F.mse_loss(quantized, latents.detach())


class EMACodebook:
    """Lets a codebook follow the latents by exponential moving averages (van den Oord et al. 2017, appendix A.1).

    A code whose average use falls below `revive_below` of an equal share is put onto a random latent of the batch, and
    its statistics are reset with it: a stale average would otherwise pull it back at the next step.
    """

    def __init__(self, codebook: Codebook, decay: float = 0.95, revive_below: float = 0.05) -> None:
        self.weight = codebook.embedding.weight
        self.weight.requires_grad_(False)
        self.decay = decay
        self.revive_below = revive_below
        self.counts = torch.zeros(len(self.weight), device=self.weight.device)
        self.sums = torch.zeros_like(self.weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The running statistics: counts (K,), sums (K, D)."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])

    @torch.no_grad()
    def seed(self, latents: Tensor) -> None:
        """Put every code onto a random latent of (B, D, h, w): the start of training."""
        self._place(torch.ones_like(self.counts, dtype=torch.bool), to_vectors(latents))

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Move the codes towards the latents (B, D, h, w) that chose them, codes (B, h, w), and revive unused ones."""
        vectors, codes = to_vectors(latents), codes.flatten()
        self.counts.lerp_(torch.bincount(codes, minlength=len(self.counts)).to(self.counts), 1 - self.decay)
        batch_sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.sums.lerp_(batch_sums, 1 - self.decay)
        self.weight.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        self._place(self.counts < self.revive_below * len(vectors) / len(self.counts), vectors)

    def _place(self, chosen: Tensor, vectors: Tensor) -> None:
        """Put the `chosen` codes (K,) bool onto random rows of `vectors` (M, D), as if each had its equal share."""
        rows = torch.randint(len(vectors), (len(self.counts),), device=vectors.device)
        share = len(vectors) / len(self.counts)
        self.weight.copy_(torch.where(chosen[:, None], vectors[rows], self.weight))
        self.counts.masked_fill_(chosen, share)
        self.sums.copy_(torch.where(chosen[:, None], self.weight * share, self.sums))
