"""The codebook: how a latent finds its code, what a code means, and the losses between them.

Letters: B batch, D code dimension, K codebook size, h w grid, M = B*h*w latent vectors.
All of it runs in float32, whatever the precision of the networks around it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.vqgan.options import VQGANConfig

COMMITMENT_WEIGHT = 0.25
SCORES_PER_PASS = 2**24  # distances held at once, in numbers: 64 MB


class Codebook(nn.Module):
    """K learned vectors; a latent vector is replaced by one of them (van den Oord et al. 2017, eq. 1).

    `config.lookup` says by which: the nearest, the nearest in direction (Yu et al. 2021, arXiv:2110.04627: both sides
    are l2-normalised), or the largest of learned logits (GumbelVQ of taming-transformers, without its noise). With a
    list of used codes, the buffer `used`, only those exist, and codes are indices into the list.
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
            codes = nearest_codes(vectors, self.vectors()) if self.lookup != "logits" else self._largest_logit(vectors)
        return codes.view(batch, height, width)

    def _largest_logit(self, vectors: Tensor) -> Tensor:
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        assert bias is not None
        if self.used is not None:
            weight, bias = weight[self.used], bias[self.used]
        passes = vectors.split(max(1, SCORES_PER_PASS // len(weight)))
        return torch.cat([F.linear(rows, weight, bias).argmax(dim=1) for rows in passes])

    def codes_to_latents(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, D, h, w) float32, in channels_last memory."""
        return F.embedding(codes, self.vectors()).permute(0, 3, 1, 2)


def to_vectors(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D), in raster order."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(M, D), (K, D) -> (M,) int64: argmin over k of |v - e_k|^2, without the |v|^2 that all k share."""
    with torch.autocast(vectors.device.type, enabled=False):
        squares = codebook.square().sum(dim=1)
        passes = vectors.split(max(1, SCORES_PER_PASS // len(codebook)))
        return torch.cat([torch.addmm(squares, rows, codebook.T, alpha=-2).argmin(dim=1) for rows in passes])


def commitment_loss(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls the encoder to the codes: mean |z - sg[e]|^2, third term of eq. 3 in van den Oord et al. 2017."""
    return F.mse_loss(latents, quantized.detach())


def codebook_loss(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls the codes to the encoder: mean |sg[z] - e|^2, second term of eq. 3 in van den Oord et al. 2017."""
    return F.mse_loss(quantized, latents.detach())
