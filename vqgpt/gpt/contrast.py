"""Fine-tuning by condition contrastive alignment (CCA, Chen et al. 2024, arXiv:2410.09347): guidance without its cost.

    codes (B, T), their labels and others (B,)  ->  a loss that makes images likelier by their own label than by another

What guidance does while sampling, with a second pass of the network, the network itself then has learned. Likelihoods
count relative to those of the network that the training started from. Letters: B images, T tokens per image.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgpt.gpt.model import GPT


class Contrast:
    """The loss for a network, which as it is now is the reference from here on."""

    def __init__(self, model: GPT, scale: float, weight: float) -> None:
        self.model, self.scale, self.weight = model, scale, weight
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)

    def loss(self, codes: Tensor, labels: Tensor, others: Tensor, cells: Tensor, views: Tensor) -> Tensor:
        """-(log sigmoid(b * gain) + w * log sigmoid(-b * gain of the other label)) / w, the mean over the images.

        b is the scale, w the weight of the negatives, and a gain the log-probability of an image by a label, minus that
        by the reference. Images of `labels` -1 have no other label: they count by their own gain alone.
        """
        wanted = -F.logsigmoid(self.scale * self._gains(codes, labels, cells, views))
        unwanted = -F.logsigmoid(-self.scale * self._gains(codes, others, cells, views))
        return (wanted + self.weight * unwanted * (labels >= 0)).mean() / self.weight

    def _gains(self, codes: Tensor, labels: Tensor, cells: Tensor, views: Tensor) -> Tensor:
        """Of images by these labels, in nats, (B,)."""
        with torch.no_grad():
            before = log_probabilities(self.reference, codes, labels, cells, views)
        return log_probabilities(self.model, codes, labels, cells, views) - before


def log_probabilities(model: GPT, codes: Tensor, labels: Tensor, cells: Tensor, views: Tensor) -> Tensor:
    """Of code sequences (B, T) by labels as `GPT.start` takes them, in nats, (B,)."""
    logits = model.predictions(codes, labels, cells, views)
    return -F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape).sum(dim=1)
