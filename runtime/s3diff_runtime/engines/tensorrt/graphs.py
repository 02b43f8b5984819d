"""CUDA graphs: the launches of a stage, recorded once and replayed with a single call."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

from s3diff_runtime.engines.tensorrt.cuda import Cuda, Handle
from s3diff_runtime.errors import JobError

MOST_GRAPHS = 16
"""Of one stage in one lane; the least recently used leaves. Each holds some hundred KiB of the device."""

_logger = logging.getLogger(__name__)


class GraphCache:
    """The graphs of one stage in one lane, each for the shapes and addresses that it was captured with.

    Work runs without a graph the first time, because most shapes never come again; the second time, at the
    same addresses, a graph is captured behind it; from then on the graph is launched. Graphs go when a buffer
    of the lane was freed, for then their addresses may be another's.

    Args:
        cuda: the GPU.
        stream: of the lane.
        most: graphs to keep.
    """

    def __init__(self, cuda: Cuda, stream: Handle, most: int = MOST_GRAPHS) -> None:
        """Starts empty."""
        self._cuda, self._stream, self._most = cuda, stream, most
        self._graphs: OrderedDict[Hashable, Handle | None] = OrderedDict()
        self._generation = 0
        self._refused = False

    def __len__(self) -> int:
        """Number of graphs that are captured."""
        return sum(graph is not None for graph in self._graphs.values())

    def launch(self, key: Hashable, generation: int) -> bool:
        """Queue the graph of `key`; False when there is none.

        Args:
            key: shapes and addresses of the work.
            generation: of the lane's buffers.
        """
        if generation != self._generation:
            self.clear()
            self._generation = generation
        graph = self._graphs.get(key)
        if graph is None:
            return False
        self._graphs.move_to_end(key)
        self._cuda.launch(graph, self._stream)
        return True

    def run(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Run work that has no graph, and see to its graph when it comes again.

        Raises:
            JobError: when `enqueue` does.
        """
        enqueue()  # also before a capture: it settles what a change of shapes has left to do
        if self._refused:
            return
        self._graphs[key] = self._captured(enqueue) if key in self._graphs else None
        self._graphs.move_to_end(key)
        if len(self._graphs) > self._most:
            _, oldest = self._graphs.popitem(last=False)
            self._drop([oldest])

    def clear(self) -> None:
        """Drop all graphs."""
        graphs, self._graphs = list(self._graphs.values()), OrderedDict()
        self._drop(graphs)

    def _captured(self, enqueue: Callable[[], None]) -> Handle | None:
        """A graph of the work; None, and never again one, where the work cannot be captured."""
        try:
            return self._cuda.capture(self._stream, enqueue)
        except JobError as error:  # a graph only saves time, and the work itself has been queued
            _logger.info("running without CUDA graphs: %s", error)
            self._refused = True
            self.clear()
            return None

    def _drop(self, graphs: list[Handle | None]) -> None:
        captured = [graph for graph in graphs if graph is not None]
        if captured:
            self._cuda.synchronize(self._stream)  # one of them may be running
        for graph in captured:
            graph.close()
