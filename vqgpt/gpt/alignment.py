"""Alignment of the GPT's streams with the codebook, a loss of training alone (reAR, He et al. 2025, arXiv:2510.04450).

    streams after blocks (B, T, D), codes (B, T)  ->  minus the mean cosines to the vectors that codes mean

After the first block the stream is to tell the vector of the code that was read, and after three quarters of the depth
that of the code to come, each through an MLP that is dropped after the training.
Letters: B images, T tokens per image, D width, K codebook size, E code dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.options import GPTConfig

HIDDEN = 4  # widths of the network


class Alignment(nn.Module):
    """Two MLPs, the codebook (K, E) float32, and the weight of the loss."""

    codebook: Tensor

    def __init__(self, config: GPTConfig, codebook: Tensor, weight: float) -> None:
        super().__init__()
        self.weight = weight
        width, dimension = config.options.embed_dim_t, codebook.shape[1]
        self.late = late_block(config)
        self.of_read, self.of_next = (_mlp(width, HIDDEN * width, dimension) for _ in range(2))
        self.register_buffer("codebook", codebook, persistent=False)

    def forward(self, streams: Sequence[Tensor], codes: Tensor, shown: Tensor) -> Tensor:
        """Minus the weighted sum of both mean cosines.

        `streams` are those after each block; `shown` is what was read in place of `codes`. A token that was not read as
        it is counts 0 in the first mean.
        """
        wanted = F.embedding(codes, self.codebook)
        read = _cosines(self.of_read(streams[0][:, 1:]), wanted[:, :-1])
        as_it_is = (shown == codes)[:, :-1]
        coming = _cosines(self.of_next(streams[self.late]), wanted)
        mean_of_read = (read * as_it_is).sum() / max(1, read.numel())  # of one token there is none that was read
        return -self.weight * (mean_of_read + coming.mean())


def late_block(config: GPTConfig) -> int:
    """The number of the block at three quarters of the depth."""
    return max(0, round(0.75 * config.options.n_layer) - 1)


def _mlp(width: int, hidden: int, dimension: int) -> nn.Sequential:
    layers = nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dimension)
    return nn.Sequential(*layers)


def _cosines(found: Tensor, wanted: Tensor) -> Tensor:
    with torch.autocast(found.device.type, enabled=False):
        return F.cosine_similarity(found.float(), wanted, dim=-1)
