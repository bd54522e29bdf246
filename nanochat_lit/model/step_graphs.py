"""Decode steps as CUDA graphs: a thousand small kernels are started by one call.

A step of a small model keeps a GPU busy for less time than the host needs to start its kernels one by one.
"""

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from nanochat_lit.common.hardware import free_memory_bytes, memory_text

GRAPH_BYTES = 1 << 29
"""Free memory without which no graph is captured; the graphs of all shapes share their intermediate results."""

_log = logging.getLogger(__name__)


class StepGraphs:
    """Calls a function on a CUDA device by replaying a graph; other devices, and the first call of a shape, run it itself.

    Args:
        function: Works in place on tensors that stay where they are, never waits for the device, and returns a tensor.
        device: Where.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        self.function, self.device = function, device
        self.can_capture = device.type == "cuda"
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, shape: Hashable) -> Tensor:
        """The function's result, valid until the next call.

        Args:
            shape: All that the function's shapes depend on.
        """
        if shape in self._graphs:
            graph, result = self._graphs[shape]
            graph.replay()
            return result
        result = self.function()
        if self.can_capture:
            self._capture(shape)
        return result

    def _capture(self, shape: Hashable) -> None:
        """Record the function, which does not run it; it ran just before, so that libraries have what they need."""
        free = free_memory_bytes(self.device) or 0
        if free < GRAPH_BYTES:
            self._give_up(f"{memory_text(free)} of GPU memory is free, graphs want {memory_text(GRAPH_BYTES)}")
            return
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool):
                result = self.function()
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0])
            return
        self._graphs[shape] = graph, result

    def _give_up(self, reason: str) -> None:
        self.can_capture = False
        _log.warning("no CUDA graph for this decode step, which makes it slower: %s", reason)
