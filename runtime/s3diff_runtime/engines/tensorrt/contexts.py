"""Execution contexts of TensorRT: what runs a stage on the stream of a lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s3diff_runtime.engines.tensorrt.api import Shape, TensorRt
from s3diff_runtime.engines.tensorrt.lanes import DeviceTensor, Lane


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
    """An execution context on the stream of a lane. It holds one set of shapes at a time."""

    def __init__(self, api: TensorRt, engine: Any, lane: Lane) -> None:  # noqa: ANN401
        self._api, self._stream = api, lane.stream
        self._context = api.make_context(engine)

    def set_shapes(self, inputs: Mapping[str, DeviceTensor]) -> int:
        """Set the shapes of the inputs; bytes of scratch memory that they lead to."""
        for name, tensor in inputs.items():
            self._api.require(
                self._context.set_input_shape(name, tensor.shape), f"setting {name} to {list(tensor.shape)}"
            )
        return int(self._context.update_device_memory_size_for_shapes())

    def shape_of(self, tensor: str) -> Shape:
        """Of an output, once those of the inputs are set."""
        return tuple(self._context.get_tensor_shape(tensor))

    def bind(self, bindings: Bindings) -> None:
        """Tell TensorRT where everything is."""
        self.set_shapes(bindings.inputs)
        self._context.set_device_memory(bindings.scratch, bindings.scratch_size)
        for name, tensor in bindings.tensors():
            self._api.require(
                self._context.set_tensor_address(name, tensor.address), f"binding the tensor {name}"
            )

    def enqueue(self) -> None:
        """Queue the stage, as it was bound."""
        self._api.require(self._context.execute_async_v3(int(self._stream)), "queueing the stage")
