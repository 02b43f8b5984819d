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

    profile: int
    """Of the engine, which serves them."""
    outputs: dict[str, tuple[Shape, str]]
    """Shape and dtype."""
    scratch: int
    """Bytes that the stage needs while it runs."""


class StageInLane:
    """Runs a stage in one lane: with a graph where it has one, else with the context of a profile.

    A graph is bound to the shapes of the context that it was captured from, so each has a context of its own.
    All use the scratch memory of the lane, one after another.
    """

    def __init__(self, api: TensorRt, engine: Any, cuda: Cuda, lane: Lane) -> None:  # noqa: ANN401
        self._api, self._engine = api, engine
        self._contexts: dict[int, StageContext] = {}
        self._plans: dict[tuple[Shape, ...], ShapePlan] = {}
        self._graphs = GraphCache(cuda, lane.stream)

    def plan(
        self, inputs: Mapping[str, DeviceTensor], outputs: list[IoTensor], profile: int, lane: Lane
    ) -> ShapePlan:
        """Shapes of the outputs, and the memory that the stage needs while it runs."""
        shapes = tuple(tensor.shape for tensor in inputs.values())
        if shapes not in self._plans:
            if len(self._plans) == _MOST_PLANS:
                self._plans.clear()
            context = self._context(profile, lane)
            scratch = context.set_shapes(inputs)
            found = {tensor.name: (context.shape_of(tensor.name), tensor.dtype) for tensor in outputs}
            unknown = [name for name, (shape, _) in found.items() if min(shape, default=1) < 1]
            if unknown:
                raise self._api.failure(f"finding the shape of {', '.join(unknown)}")
            self._plans[shapes] = ShapePlan(profile, found, scratch)
        return self._plans[shapes]

    def run(self, bindings: Bindings, profile: int, lane: Lane) -> None:
        """Queue the stage on the lane's stream."""
        key = bindings.key()
        if self._graphs.launch(key, lane.generation):
            return
        own = self._graphs.context_for(key, lambda: StageContext(self._api, self._engine, lane, profile))
        context = own or self._context(profile, lane)
        context.bind(bindings)
        context.enqueue()  # also before a capture: it settles what a change of shapes has left to do
        if self._api.kernels is not None:
            self._api.kernels.may_have_grown()
        if own is not None:
            self._graphs.capture(key, own)

    def _context(self, profile: int, lane: Lane) -> StageContext:
        if profile not in self._contexts:
            self._contexts[profile] = StageContext(self._api, self._engine, lane, profile)
        return self._contexts[profile]


class TensorRtSession:
    """A stage on the GPU. Outputs stay in the lane of the inputs.

    When every input is an array, the session takes a lane for this one run, and the outputs are arrays.

    Attributes:
        inputs, outputs: of the engine.
    """

    def __init__(self, api: TensorRt, engine: Any, cuda: Cuda, lanes: LanePool, stage: str) -> None:  # noqa: ANN401
        tensors = api.tensors(engine)
        self.inputs = [tensor for tensor in tensors if tensor.is_input]
        self.outputs = [tensor for tensor in tensors if not tensor.is_input]
        self._api, self._engine, self._cuda, self._lanes, self._stage = api, engine, cuda, lanes, stage
        self._profiles: int = engine.num_optimization_profiles
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
        try:
            lane.keep(self)
            inputs = {tensor.name: on_lane(lane, tensor.name, given[tensor.name]) for tensor in self.inputs}
            stage = self._in_lane(lane)
            plan = stage.plan(inputs, self.outputs, self._profile(inputs), lane)
            outputs = {name: lane.place(name, *described) for name, described in plan.outputs.items()}
            bindings = Bindings(inputs, outputs, lane.scratch(plan.scratch), plan.scratch)
            stage.run(bindings, plan.profile, lane)
            return outputs
        except JobError as error:
            raise type(error)(f"stage {self._stage} failed on the GPU: {error}") from error

    def _profile(self, inputs: Mapping[str, DeviceTensor]) -> int:
        """The first profile that serves the inputs: those for exact shapes stand before the one for all.

        TensorRT's own words for a wrong shape or type name neither what it expected nor a remedy.
        """
        for profile in range(self._profiles):
            if all(spec.takes(inputs[spec.name].shape, profile) for spec in self.inputs):
                break
        for spec in self.inputs:
            tensor = inputs[spec.name]
            if tensor.dtype != spec.dtype or not spec.takes(tensor.shape, profile):
                least, most = spec.limits[profile]
                raise JobError(
                    f"{spec.name} is {tensor.dtype} {list(tensor.shape)}, and the engine takes {spec.dtype} "
                    f"from {list(least)} to {list(most)}; build engines with a wider profile"
                )
        return profile

    def _in_lane(self, lane: Lane) -> StageInLane:
        with self._lock:
            if lane not in self._in_lanes:
                self._in_lanes[lane] = StageInLane(self._api, self._engine, self._cuda, lane)
            return self._in_lanes[lane]
