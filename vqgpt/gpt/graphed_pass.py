"""CUDA graphs of a step of sampling, so that a GPU does not wait for Python between the kernels of a token.

    a step that takes a position on the device -> a replay per position

A graph repeats kernels on the same memory: what changes is read from and written to buffers that stay where they are.
The position is one of them. How many cached positions attention reads is fixed in a graph, so there are several, one
for every `STRIDE` positions. Written by PyTorch's notes on CUDA graphs. Knows nothing of what the step does.
"""

from collections.abc import Callable

import torch

STRIDE = 64  # a smaller one reads less that is masked, and captures more graphs
WARM_UPS = 3  # so that libraries are loaded, and have chosen and allocated what they need, before a capture


class GraphedSteps:
    """Graphs of `step(position (1,) int64, seen)` for all positions, in memory that they share.

    `step` reads and writes static memory on `device`, allocates as it likes, and must not wait for it. It is called
    for each graph before its capture, so that what it wrote must be set anew afterwards.
    """

    def __init__(self, step: Callable[[torch.Tensor, int], None], positions: int, device: torch.device) -> None:
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            for first in range(0, positions, STRIDE):
                seen = min(first + STRIDE, positions)
                self.position.fill_(first)
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(WARM_UPS):
                        step(self.position, seen)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                # thread_local: a thread that reads ahead for a training may allocate meanwhile
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    step(self.position, seen)
                    self.position += 1
                self.graphs.append(graph)

    def start(self, position: int) -> None:
        """The next replay is of this position; each goes to the one after it."""
        self.position.fill_(position)

    def replay(self, position: int) -> None:
        """Queue the step of a position, which follows the last one replayed; does not wait for it."""
        self.graphs[position // STRIDE].replay()
