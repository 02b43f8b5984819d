"""A stage on the GPU: checks what it is given, and queues its work on a lane."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import Value
from s3diff_runtime.engines.tensorrt.api import IoTensor, Shape, TensorRt
from s3diff_runtime.engines.tensorrt.cuda import Cuda
from s3diff_runtime.engines.tensorrt.graphs import Bindings, GraphCache, StageContext
from s3diff_runtime.engines.tensorrt.lanes import DeviceTensor, Lane, LanePool, lane_of, on_lane
from s3diff_runtime.errors import JobError

_MOST_PLANS = 1024
"""Sets of shapes that a lane remembers of a stage; each is a few hundred bytes."""


@dataclass(frozen=True)
class ShapePlan:
    """What a set of input shapes leads to."""

    outputs: dict[str, tuple[Shape, str]]
    """Shape and dtype."""
    scratch: int
    """Bytes that the stage needs while it runs."""


class StageInLane:
    """Runs a stage in one lane: with a graph where it has one, else with a context that serves all shapes.

    A graph is bound to the shapes of the context that it was captured from, so each has a context of its own.
    All use the scratch memory of the lane, one after another.
    """

    def __init__(self, api: TensorRt, engine: Any, cuda: Cuda, lane: Lane) -> None:  # noqa: ANN401
        self._api, self._engine = api, engine
        self._context = StageContext(api, engine, lane)
        self._plans: dict[tuple[Shape, ...], ShapePlan] = {}
        self._graphs = GraphCache(cuda, lane.stream)

    def plan(self, inputs: Mapping[str, DeviceTensor], outputs: list[IoTensor]) -> ShapePlan:
        """Shapes of the outputs, and the memory that the stage needs while it runs."""
        shapes = tuple(tensor.shape for tensor in inputs.values())
        if shapes not in self._plans:
            if len(self._plans) == _MOST_PLANS:
                self._plans.clear()
            scratch = self._context.set_shapes(inputs)
            found = {tensor.name: (self._context.shape_of(tensor.name), tensor.dtype) for tensor in outputs}
            unknown = [name for name, (shape, _) in found.items() if min(shape, default=1) < 1]
            self._api.require(not unknown, f"finding the shape of {', '.join(unknown)}")
            self._plans[shapes] = ShapePlan(found, scratch)
        return self._plans[shapes]

    def run(self, bindings: Bindings, lane: Lane) -> None:
        """Queue the stage on the lane's stream."""
        key = bindings.key()
        if self._graphs.launch(key, lane.generation):
            return
        own = self._graphs.context_for(key, lambda: StageContext(self._api, self._engine, lane))
        context = own or self._context
        context.bind(bindings)
        context.enqueue()  # also before a capture: it settles what a change of shapes has left to do
        if own is not None:
            self._graphs.capture(key, own)


class TensorRtSession:
    """A stage on the GPU. Outputs stay in the lane of the inputs.

    When every input is an array, the session takes a lane for this one run, and the outputs are arrays.

    Attributes:
        tensors: inputs and outputs of the engine.
    """

    def __init__(self, api: TensorRt, engine: Any, cuda: Cuda, lanes: LanePool, stage: str) -> None:  # noqa: ANN401
        self.tensors = api.tensors(engine)
        self._api, self._engine, self._cuda, self._lanes, self._stage = api, engine, cuda, lanes, stage
        self._inputs = [tensor for tensor in self.tensors if tensor.is_input]
        self._outputs = [tensor for tensor in self.tensors if not tensor.is_input]
        self._in_lanes: WeakKeyDictionary[Lane, StageInLane] = WeakKeyDictionary()
        self._lock = Lock()

    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """See `Session.run`. Work is only queued: what fails on the device shows when a result is fetched."""
        given = dict(inputs)
        lane = lane_of(given)
        if lane is not None:
            return dict(self._run(lane, given))
        with self._lanes.lane(Clock()) as own:
            return {name: np.asarray(value) for name, value in self._run(own, given).items()}

    def _run(self, lane: Lane, given: dict[str, Value]) -> dict[str, DeviceTensor]:
        self._api.messages.clear()
        try:
            lane.keep(self)
            inputs = {tensor.name: on_lane(lane, tensor.name, given[tensor.name]) for tensor in self._inputs}
            self._check(inputs)
            stage = self._in_lane(lane)
            plan = stage.plan(inputs, self._outputs)
            outputs = {name: lane.place(name, *described) for name, described in plan.outputs.items()}
            stage.run(Bindings(inputs, outputs, lane.scratch(plan.scratch), plan.scratch), lane)
            return outputs
        except JobError as error:
            raise type(error)(f"stage {self._stage} failed on the GPU: {error}") from error

    def _check(self, inputs: Mapping[str, DeviceTensor]) -> None:
        """TensorRT's own words for a wrong shape or type name neither what it expected nor a remedy."""
        for spec in self._inputs:
            tensor = inputs[spec.name]
            within = len(tensor.shape) == len(spec.least) and all(
                low <= side <= high
                for low, side, high in zip(spec.least, tensor.shape, spec.most, strict=True)
            )
            if tensor.dtype != spec.dtype or not within:
                raise JobError(
                    f"{spec.name} is {tensor.dtype} {list(tensor.shape)}, and the engine takes {spec.dtype} "
                    f"from {list(spec.least)} to {list(spec.most)}; build engines with a wider profile"
                )

    def _in_lane(self, lane: Lane) -> StageInLane:
        with self._lock:
            if lane not in self._in_lanes:
                self._in_lanes[lane] = StageInLane(self._api, self._engine, self._cuda, lane)
            return self._in_lanes[lane]
