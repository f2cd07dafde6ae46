"""Work on a GPU that is done again and again, recorded as a CUDA graph: its kernels start without Python.

tensors of fixed shapes on a CUDA device -> tensors, which the next call overwrites
"""

from collections.abc import Callable

import torch
from torch import Tensor

Compute = Callable[..., tuple[Tensor, ...]]


class Recorded:
    """Computes as told the first time, which also readies the libraries; records the second time, and then repeats.

    `compute` takes tensors or None, and must not wait for the device.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.ready = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """What `compute` gives for these inputs."""
        if not self.ready:
            self.ready = True
            return self.compute(*inputs)
        if self.graph is None:
            self.inputs = [None if given is None else given.clone() for given in inputs]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may decode images meanwhile
                self.outputs = self.compute(*self.inputs)
        for ours, given in zip(self.inputs, inputs, strict=True):
            if ours is not None and given is not None:
                ours.copy_(given)
        self.graph.replay()
        return self.outputs
