"""What an object holds, on one line, in place of all its numbers: a dataclass with arrays says `__repr__ = one_line`.

Must not import torch or numpy.
"""

import reprlib
from dataclasses import fields
from typing import Any


class Brief(reprlib.Repr):
    """An array by its type and shape, a network by its size, the first few of many elements."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr1(self, x: Any, level: int) -> str:
        """What `reprlib` calls for each value."""
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return f"{x.dtype} {tuple(x.shape)}"
        if hasattr(x, "parameters"):
            return f"{type(x).__name__} of {num_parameters(x):,} parameters"
        return super().repr1(x, level).replace("\n", " ")


def num_parameters(network: Any) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def one_line(self: Any) -> str:
    """The representation of a dataclass."""
    values = (f"{item.name}={Brief().repr(getattr(self, item.name))}" for item in fields(self))
    return f"{type(self).__name__}({', '.join(values)})"
