"""What runs a stage on the stream of a lane: execution contexts of TensorRT, and CUDA graphs of them.

A graph is the launches of a stage, recorded once and replayed with a single call.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from s3diff_runtime.engines.tensorrt.api import Shape, TensorRt
from s3diff_runtime.engines.tensorrt.cuda import Cuda, Handle
from s3diff_runtime.engines.tensorrt.lanes import DeviceTensor, Lane
from s3diff_runtime.errors import JobError

MOST_GRAPHS = 4
"""Of one stage in one lane: tiles, those at the edges, pictures that are not cut, another batch. The least
recently used leaves. Each holds a context, and with it memory."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bindings:
    """Everything that a run of a stage reads and writes."""

    inputs: Mapping[str, DeviceTensor]
    outputs: Mapping[str, DeviceTensor]
    scratch: int
    """Address of the memory that the stage uses while it runs."""
    scratch_size: int

    def tensors(self) -> tuple[tuple[str, DeviceTensor], ...]:
        """Inputs and outputs by name."""
        return *self.inputs.items(), *self.outputs.items()

    def key(self) -> tuple[object, ...]:
        """Equal for runs of the same shapes at the same addresses."""
        return self.scratch, *((tensor.address, tensor.shape) for _, tensor in self.tensors())


class StageContext:
    """An execution context on the stream of a lane. It holds one profile, and one set of shapes at a time."""

    def __init__(self, api: TensorRt, engine: Any, lane: Lane, profile: int) -> None:  # noqa: ANN401
        self._api, self._stream = api, lane.stream
        self._context = api.make_context(engine, profile, int(lane.stream))
        self._most_scratch = engine.get_device_memory_size_for_profile_v2(profile)

    def set_shapes(self, inputs: Mapping[str, DeviceTensor]) -> int:
        """Set the shapes of the inputs; bytes of scratch memory that they lead to."""
        for name, tensor in inputs.items():
            doing = f"setting {name} to {list(tensor.shape)}"
            self._api.ask(doing, self._context.set_input_shape, name, tensor.shape)
        doing = "finding the memory that the shapes need"
        size = self._api.ask(doing, self._context.update_device_memory_size_for_shapes)
        if not size and self._most_scratch:  # how TensorRT says that it failed
            raise self._api.failure(doing)
        return int(size)

    def shape_of(self, tensor: str) -> Shape:
        """Of an output, once those of the inputs are set."""
        return tuple(self._context.get_tensor_shape(tensor))

    def bind(self, bindings: Bindings) -> None:
        """Tell TensorRT where everything is."""
        self.set_shapes(bindings.inputs)
        self._context.set_device_memory(bindings.scratch, bindings.scratch_size)
        for name, tensor in bindings.tensors():
            doing = f"binding the tensor {name}"
            self._api.ask(doing, self._context.set_tensor_address, name, tensor.address)

    def enqueue(self) -> None:
        """Queue the stage, as it was bound."""
        self._api.ask("queueing the stage", self._context.execute_async_v3, int(self._stream))

    def require_capturable(self) -> None:
        """Raise `JobError` where TensorRT says that the stage, as it was bound, cannot be captured."""
        if self._api.flavour.compiles_on_device:
            self._api.ask("asking for a capture", self._context.is_stream_capturable, int(self._stream))


class GraphCache:
    """The graphs of one stage in one lane, each for the shapes and addresses that it was captured with.

    Work runs without a graph the first time, because most shapes never come again. When it comes again at the
    same addresses it gets a context of its own, of which a graph is captured behind it; from then on the
    graph is launched. Graphs go when a buffer of the lane was freed, for then their addresses may be
    another's. `most` graphs are kept, and as many keys of work that came once.
    """

    def __init__(self, cuda: Cuda, stream: Handle, most: int = MOST_GRAPHS) -> None:
        self._cuda, self._stream, self._most = cuda, stream, most
        self._graphs: OrderedDict[Hashable, tuple[Handle, StageContext]] = OrderedDict()
        self._came_once: deque[Hashable] = deque(maxlen=most)
        self._generation = 0
        self._refused = False

    def launch(self, key: Hashable, generation: int) -> bool:
        """Queue the graph of `key`, shapes and addresses of the work; False when there is none.

        `generation` is that of the lane's buffers.
        """
        if generation != self._generation:
            self._drop(len(self._graphs))
            self._came_once.clear()
            self._generation = generation
        if key not in self._graphs:
            return False
        self._graphs.move_to_end(key)
        self._cuda.launch(self._graphs[key][0], self._stream)
        return True

    def context_for(self, key: Hashable, make: Callable[[], StageContext]) -> StageContext | None:
        """A new context for work that comes again, to run it with and then to `capture`.

        None for work that comes for the first time, and where graphs or contexts cannot be made.
        """
        if self._refused:
            return None
        if key not in self._came_once:
            self._came_once.append(key)
            return None
        try:
            return make()
        except JobError as error:
            self._refuse(error)
            return None

    def capture(self, key: Hashable, context: StageContext) -> None:
        """Keep a graph of the work that a context of its own has just run; it must not change any more."""
        try:
            context.require_capturable()
            graph = self._cuda.capture(self._stream, context.enqueue)
        except JobError as error:
            self._refuse(error)
            return
        self._came_once.remove(key)
        self._graphs[key] = graph, context
        self._drop(len(self._graphs) - self._most)

    def _refuse(self, error: JobError) -> None:
        """Never again: a graph only saves time, and the work itself is queued or can be."""
        _logger.info("running without CUDA graphs: %s", error)
        self._refused = True
        self._drop(len(self._graphs))
        self._cuda.synchronize(self._stream)  # the context that was to be captured may be running

    def _drop(self, count: int) -> None:
        """Free the least recently used graphs, and then their contexts."""
        if count > 0:
            self._cuda.synchronize(self._stream)  # one of them may be running
        for _ in range(count):
            graph, _context = self._graphs.popitem(last=False)[1]
            graph.close()
