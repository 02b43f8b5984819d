"""The TensorRT engine: checks and loads plans, and runs them one after another on a lane of the device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import ValidationError

from s3diff_runtime.bundle.engine_records import EngineSet, EngineSidecar, sidecar_path
from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import Value
from s3diff_runtime.engines.tensorrt.api import IoTensor, Shape, TensorRt
from s3diff_runtime.engines.tensorrt.cuda import Cuda
from s3diff_runtime.engines.tensorrt.graphs import GraphCache
from s3diff_runtime.engines.tensorrt.identity import rebuild_command
from s3diff_runtime.engines.tensorrt.lanes import DeviceTensor, Lane, LanePool, lane_of, on_lane
from s3diff_runtime.errors import BundleError, JobError, OutOfMemory

_MOST_PLANS = 1024
"""Sets of shapes that a context remembers; each is a few hundred bytes."""


class TensorRtEngine:
    """Opens the engines of one set of a bundle on one GPU.

    Args:
        bundle: that holds them.
        engines: the set; that it fits the GPU and the installed TensorRT was checked.
        api: TensorRT.
        cuda: the GPU.
    """

    def __init__(self, bundle: Bundle, engines: EngineSet, api: TensorRt, cuda: Cuda) -> None:
        """See the class."""
        self.name: str = engines.identity.flavour
        self.device = f"cuda:{cuda.gpu.index}"
        self._bundle, self._engines, self._api, self._cuda = bundle, engines, api, cuda
        self._lanes = LanePool(cuda)

    def lane(self, clock: Clock) -> AbstractContextManager[Lane]:
        """See `Engine.lane`. A chain that holds a lane must not ask for another one."""
        return self._lanes.lane(clock)

    def open(self, graph: Path, stage: Stage) -> TensorRtSession:
        """Load an engine: `graph` is the path of its `.engine`, which lies in the bundle.

        The very bytes that are loaded are hashed first, whatever was checked before: a plan is executable.

        Raises:
            BundleError: when the engine or its sidecar is not what the manifest says.
            OutOfMemory: when the GPU has no room for it.
        """
        name = graph.relative_to(self._bundle.folder).as_posix()
        sidecar = self._sidecar(name)
        self._require(name, sidecar.identity == self._engines.identity, "was built as its manifest says")
        at = self._engines.graphs.get(sidecar.stage, {}).get(sidecar.graph)
        self._require(name, at == name, f"is {sidecar.graph} of stage {sidecar.stage}")
        self._require(name, sidecar.sha256 == self._bundle.manifest.files[name].sha256, "is what was built")
        for kind, has, wanted in (
            ("inputs", sidecar.inputs, stage.inputs),
            ("outputs", sidecar.outputs, stage.outputs),
        ):
            self._require(name, has == wanted, f"has the {kind} {_named(wanted)}")
        self._cuda.activate()
        try:
            engine = self._api.deserialize(self._bundle.read(name))
        except OutOfMemory:
            raise
        except JobError as error:
            raise BundleError(f"{name}: {error}; {rebuild_command(self._engines.identity)}") from error
        session = TensorRtSession(self._api, engine, self._cuda, self._lanes, sidecar.stage)
        self._require_tensors(name, session.tensors, stage)
        return session

    def _sidecar(self, name: str) -> EngineSidecar:
        path = sidecar_path(name)
        try:
            return EngineSidecar.model_validate_json(self._bundle.read(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise BundleError(
                f"{path} does not describe an engine ({where}: {first['msg']}); "
                f"{rebuild_command(self._engines.identity)}"
            ) from error

    def _require_tensors(self, name: str, found: list[IoTensor], stage: Stage) -> None:
        has = {(tensor.name, tensor.dtype, tensor.is_input) for tensor in found}
        wanted = {(tensor.name, tensor.dtype, True) for tensor in stage.inputs}
        wanted |= {(tensor.name, tensor.dtype, False) for tensor in stage.outputs}
        differing = ", ".join(sorted(f"{tensor} {dtype}" for tensor, dtype, _ in has ^ wanted))
        self._require(name, has == wanted, f"has the tensors of its manifest (they differ in {differing})")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise BundleError(
                f"engine {name} does not agree with its sidecar: expected that it {expected}; "
                f"{rebuild_command(self._engines.identity)}"
            )


@dataclass(frozen=True)
class _Plan:
    """What a set of input shapes leads to."""

    outputs: dict[str, tuple[Shape, str]]
    scratch: int


class _Seat:
    """What one session needs in one lane: a context, what shapes lead to, and graphs."""

    def __init__(self, api: TensorRt, engine: Any, cuda: Cuda, lane: Lane) -> None:  # noqa: ANN401
        self._api, self._lane = api, lane.stream
        self._context = api.make_context(engine)
        self._plans: dict[tuple[Shape, ...], _Plan] = {}
        self.graphs = GraphCache(cuda, lane.stream)

    def plan(self, inputs: Mapping[str, DeviceTensor], outputs: list[IoTensor]) -> _Plan:
        """Shapes of the outputs, and the memory that the stage needs while it runs."""
        shapes = tuple(tensor.shape for tensor in inputs.values())
        if shapes not in self._plans:
            if len(self._plans) == _MOST_PLANS:
                self._plans.clear()
            scratch = self._set_shapes(inputs)
            found = {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in outputs}
            unknown = [name for name, shape in found.items() if min(shape, default=1) < 1]
            self._api.require(not unknown, f"finding the shape of {', '.join(unknown)}")
            dtypes = {tensor.name: tensor.dtype for tensor in outputs}
            self._plans[shapes] = _Plan({name: (found[name], dtypes[name]) for name in found}, scratch)
        return self._plans[shapes]

    def bind(
        self,
        inputs: Mapping[str, DeviceTensor],
        outputs: Mapping[str, DeviceTensor],
        scratch: int,
        size: int,
    ) -> None:
        """Tell TensorRT where everything is."""
        self._set_shapes(inputs)
        self._context.set_device_memory(scratch, size)
        for name, tensor in (*inputs.items(), *outputs.items()):
            self._api.require(
                self._context.set_tensor_address(name, tensor.address), f"binding the tensor {name}"
            )

    def enqueue(self) -> None:
        """Queue the stage, as it was bound."""
        self._api.require(self._context.execute_async_v3(int(self._lane)), "queueing the stage")

    def _set_shapes(self, inputs: Mapping[str, DeviceTensor]) -> int:
        """Set the shapes of the inputs; bytes of scratch memory that they lead to."""
        for name, tensor in inputs.items():
            self._api.require(
                self._context.set_input_shape(name, tensor.shape), f"setting {name} to {list(tensor.shape)}"
            )
        return int(self._context.update_device_memory_size_for_shapes())


class TensorRtSession:
    """A stage on the GPU. Outputs stay in the lane of the inputs.

    When every input is an array, the session takes a lane for this one run, and the outputs are arrays.

    Attributes:
        tensors: inputs and outputs of the engine.
    """

    def __init__(self, api: TensorRt, engine: Any, cuda: Cuda, lanes: LanePool, stage: str) -> None:  # noqa: ANN401
        """Wrap a deserialised engine."""
        self.tensors = api.tensors(engine)
        self._api, self._engine, self._cuda, self._lanes, self._stage = api, engine, cuda, lanes, stage
        self._inputs = [tensor for tensor in self.tensors if tensor.is_input]
        self._outputs = [tensor for tensor in self.tensors if not tensor.is_input]
        self._seats: WeakKeyDictionary[Lane, _Seat] = WeakKeyDictionary()
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
            inputs = {tensor.name: on_lane(lane, tensor.name, given[tensor.name]) for tensor in self._inputs}
            self._check(inputs)
            seat = self._seat(lane)
            plan = seat.plan(inputs, self._outputs)
            outputs = {name: lane.place(name, *described) for name, described in plan.outputs.items()}
            scratch = lane.scratch(plan.scratch)
            tensors = (*inputs.values(), *outputs.values())
            key = (scratch, *((tensor.address, tensor.shape) for tensor in tensors))
            if not seat.graphs.launch(key, lane.generation):
                seat.bind(inputs, outputs, scratch, plan.scratch)
                seat.graphs.run(key, seat.enqueue)
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

    def _seat(self, lane: Lane) -> _Seat:
        with self._lock:
            if lane not in self._seats:
                self._seats[lane] = _Seat(self._api, self._engine, self._cuda, lane)
            return self._seats[lane]


def _named(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
