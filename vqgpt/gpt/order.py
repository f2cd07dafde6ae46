"""The order in which a code grid is read as a sequence, and its inverse.

    order, grid (h, w) -> the raster index of each token (T,); codes (..., h, w) <-> tokens (..., T)

Grids are stored in raster order always; this is applied when tokens are loaded, and undone when they are sampled.
A new order is its name in `Order` and its arm in `cells`. Options read the names, so that torch must not be imported at
the head of this module.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from torch import Tensor

Order = Literal["s-pattern", "raster", "hilbert"]
ORDER_HELP = (
    "Order in which the grid is read: 's-pattern' turns every other row round, 'raster' does not, 'hilbert' keeps "
    "neighbours together."
)

Cell = tuple[int, int]  # row, column


def scan_order(order: Order, grid: tuple[int, int]) -> "Tensor":
    """(T,) int64: position t of the sequence holds the code at raster index `scan_order(...)[t]`."""
    import torch

    return torch.tensor([row * grid[1] + column for row, column in cells(order, grid)])


def cells(order: Order, grid: tuple[int, int]) -> Iterable[Cell]:
    """Every cell of the grid once, in this order."""
    height, width = grid
    match order:
        case "raster":
            return ((row, column) for row in range(height) for column in range(width))
        case "s-pattern":  # boustrophedon: odd rows are read right to left
            return (
                (row, width - 1 - column if row % 2 else column) for row in range(height) for column in range(width)
            )
        case "hilbert":
            along, across = ((0, width), (height, 0)) if width >= height else ((height, 0), (0, width))
            return _hilbert((0, 0), along, across)
        case _:
            assert_never(order)


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


def grid_to_sequence(codes: "Tensor", scan: "Tensor") -> "Tensor":
    """(..., h, w) -> (..., T). Inverse of `sequence_to_grid`."""
    return codes.flatten(-2)[..., scan]


def sequence_to_grid(tokens: "Tensor", scan: "Tensor", grid: tuple[int, int]) -> "Tensor":
    """(..., T) -> (..., h, w). Inverse of `grid_to_sequence`."""
    return tokens[..., scan.argsort()].unflatten(-1, grid)
