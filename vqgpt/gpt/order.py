"""The order in which a code grid is read as a sequence, and its inverse.

Grids are stored in raster order always; this is applied when tokens are loaded, and undone when they are sampled.
"""

import torch
from torch import Tensor

from vqgpt.config.gpt import Order


def scan_order(order: Order, grid: tuple[int, int]) -> Tensor:
    """(T,) int64: position t of the sequence holds the code at raster index `scan_order(...)[t]`."""
    positions = torch.arange(grid[0] * grid[1]).view(grid)
    if order == "s-pattern":  # boustrophedon: odd rows are read right to left
        positions[1::2] = positions[1::2].flip(1)
    return positions.flatten()


def grid_to_sequence(codes: Tensor, scan: Tensor) -> Tensor:
    """(..., h, w) -> (..., T). Inverse of `sequence_to_grid`."""
    return codes.flatten(-2)[..., scan]


def sequence_to_grid(tokens: Tensor, scan: Tensor, grid: tuple[int, int]) -> Tensor:
    """(..., T) -> (..., h, w). Inverse of `grid_to_sequence`."""
    return tokens[..., torch.argsort(scan)].unflatten(-1, grid)
