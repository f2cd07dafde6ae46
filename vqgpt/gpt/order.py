"""The order in which a code grid is read as a sequence, and its inverse.

    order, grid (h, w) -> the cell of each token (T,), its index in raster order
    codes (..., h, w), cells (T,) or (..., T) <-> tokens (..., T)

Grids are stored in raster order always; a batch brings the cells that its tokens stand for, one order for all images or
one for each. A new order is its name in `FixedOrder` and its arm in `cells_of`. Options read the names, so that torch
must not be imported at the head of this module.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from torch import Tensor

FixedOrder = Literal["s-pattern", "raster", "hilbert", "spiral"]
Order = Literal[FixedOrder, "random"]
ORDER_HELP = (
    "Order in which the grid is read: 's-pattern' turns every other row round, 'raster' does not, 'hilbert' keeps "
    "neighbours together, 'spiral' goes round from a corner to the middle; 'random' is another one for each image, and "
    "makes a GPT that can be asked in any order."
)

Cell = tuple[int, int]  # row, column


def scan_order(order: FixedOrder, grid: tuple[int, int]) -> "Tensor":
    """(T,) int64: place t of the sequence holds the code of cell `scan_order(...)[t]`."""
    import torch

    return torch.tensor([row * grid[1] + column for row, column in cells_of(order, grid)])


def cells_of(order: FixedOrder, grid: tuple[int, int]) -> Iterable[Cell]:
    """Every cell of the grid once, in this order."""
    height, width = grid
    match order:
        case "raster":
            return ((row, column) for row in range(height) for column in range(width))
        case "s-pattern":  # boustrophedon: odd rows are read right to left
            return (
                (row, width - 1 - column if row % 2 else column) for row in range(height) for column in range(width)
            )
        case "spiral":
            return _spiral(height, width)
        case "hilbert":
            along, across = ((0, width), (height, 0)) if width >= height else ((height, 0), (0, width))
            return _hilbert((0, 0), along, across)
        case _:
            assert_never(order)


def _spiral(height: int, width: int) -> Iterator[Cell]:
    """The cells of the outermost ring, clockwise from the top left, then those of the next."""
    top, left, bottom, right = 0, 0, height - 1, width - 1
    while top <= bottom and left <= right:
        yield from ((top, column) for column in range(left, right + 1))
        yield from ((row, right) for row in range(top + 1, bottom + 1))
        if top < bottom and left < right:
            yield from ((bottom, column) for column in range(right - 1, left - 1, -1))
            yield from ((row, left) for row in range(bottom - 1, top, -1))
        top, left, bottom, right = top + 1, left + 1, bottom - 1, right - 1


def _hilbert(start: Cell, along: Cell, across: Cell) -> Iterator[Cell]:
    """The cells of a rectangle, each beside or diagonal to the one before it, nearby ones kept together.

    The generalised Hilbert curve of Cerveny (2018): the rectangle spanned by two vectors is cut into two or three,
    until they are lines. On a square whose side is a power of 2 it is Hilbert's own.
    """
    (x, y), (ax, ay), (bx, by) = start, along, across
    length, breadth = abs(ax + ay), abs(bx + by)
    step_a, step_b = (_sign(ax), _sign(ay)), (_sign(bx), _sign(by))
    if breadth == 1 or length == 1:
        (dx, dy), count = (step_a, length) if breadth == 1 else (step_b, breadth)
        yield from ((x + i * dx, y + i * dy) for i in range(count))
        return
    half_a, half_b = (ax // 2, ay // 2), (bx // 2, by // 2)
    if 2 * length > 3 * breadth:  # long: two parts, one after the other
        if sum(half_a) % 2 and length > 2:
            half_a = (half_a[0] + step_a[0], half_a[1] + step_a[1])
        yield from _hilbert(start, half_a, across)
        yield from _hilbert((x + half_a[0], y + half_a[1]), (ax - half_a[0], ay - half_a[1]), across)
        return
    if sum(half_b) % 2 and breadth > 2:
        half_b = (half_b[0] + step_b[0], half_b[1] + step_b[1])
    end = (x + ax - step_a[0] + half_b[0] - step_b[0], y + ay - step_a[1] + half_b[1] - step_b[1])
    yield from _hilbert(start, half_b, half_a)
    yield from _hilbert((x + half_b[0], y + half_b[1]), along, (bx - half_b[0], by - half_b[1]))
    yield from _hilbert(end, (-half_b[0], -half_b[1]), (half_a[0] - ax, half_a[1] - ay))


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def grid_to_sequence(codes: "Tensor", cells: "Tensor") -> "Tensor":
    """Codes (..., h, w), cells (T,), or (..., T) for each image its own -> (..., T). Inverse of `sequence_to_grid`."""
    tokens = codes.flatten(-2)
    return tokens[..., cells] if cells.ndim == 1 else tokens.gather(-1, cells)


def sequence_to_grid(tokens: "Tensor", cells: "Tensor", grid: tuple[int, int]) -> "Tensor":
    """(..., T), and the cells as there -> (..., h, w). Inverse of `grid_to_sequence`."""
    return grid_to_sequence(tokens.unflatten(-1, grid), cells.argsort(-1)).unflatten(-1, grid)


def known_first(known: "Tensor", cells: "Tensor") -> "Tensor":
    """Which codes of grids are known, (N, h, w) bool, and an order (T,) or (N, T) -> (N, T): the known ones, the rest.

    Both parts are in the order given.
    """
    cells = cells.expand(len(known), -1)
    return cells.gather(1, grid_to_sequence(known, cells).int().argsort(dim=1, descending=True, stable=True))


def cells_before(cells: "Tensor") -> "Tensor":
    """Those (..., T) whose codes the tokens at each place are: of the place before, and T for the start token."""
    from torch.nn import functional as F

    return F.pad(cells[..., :-1], (1, 0), value=cells.shape[-1])
