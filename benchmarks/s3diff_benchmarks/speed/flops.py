"""Counts the arithmetic and the memory traffic of ONNX graphs, without weights and without running them.

Graphs are walked in order with concrete shapes. Shapes depend on integers that the graph computes (amounts of
padding, sizes to resize to), so these are computed on the way; nothing else is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import JobError

Shape = tuple[int, ...]

_FEW = 64
"""Elements up to which a tensor may be a shape, an axis or an amount, and is computed."""
_COUNTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_UNCOUNTABLE = frozenset(
    {"If", "Loop", "Scan", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
"""Operators whose work this module does not know; none is in our graphs."""


@dataclass(frozen=True)
class Work:
    """What one run of a graph takes."""

    flops: int
    """Of convolutions and matrix products; one multiplication with its addition is 2."""
    parameters: int
    """Elements of all weights."""
    traffic: int
    """Bytes of weights, inputs and outputs, each once: the least that must move, whatever stays in caches."""
    outputs: Mapping[str, Shape]

    @property
    def intensity(self) -> float:
        """FLOP for each byte of `traffic`."""
        return self.flops / self.traffic


def bundle_work(
    folder: Path, manifest: Manifest, batch: int, height: int, width: int, color_fix: str = "wavelet"
) -> dict[str, Work]:
    """The work of every stage for a batch of low-resolution images.

    A stage that has a graph for each bin is counted once, as they differ in weights alone. The text encoder,
    which runs when prompts change, is left out.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        batch, height, width: of the images, in low-resolution pixels.
        color_fix: which of the finishing stages runs.

    Raises:
        JobError: when a graph cannot be read, or the shape of a layer cannot be found.
    """
    one_for_all = manifest.lora_mode == "fused"
    shapes: dict[str, Shape] = {
        "image": (batch, height, width, 3),
        "degradation": (1 if one_for_all else batch, 2),
        "guidance": (),
    }
    found: dict[str, Work] = {}
    for name in ("estimator", "modulation", "vae_encoder", "unet", "vae_decoder", f"finish_{color_fix}"):
        stage = manifest.stages.get(name)
        if stage is None:
            continue
        for tensor in stage.inputs:
            if tensor.name not in shapes:  # prompts: as many as the graph wants
                shapes[tensor.name] = tuple(side for side in tensor.shape if isinstance(side, int))
        graph = folder / next(iter(stage.graphs.values()))
        found[name] = count(graph, {tensor.name: shapes[tensor.name] for tensor in stage.inputs})
        shapes |= {tensor: shape for tensor, shape in found[name].outputs.items() if tensor != "degradation"}
    return found


def count(graph: Path, inputs: Mapping[str, Shape]) -> Work:
    """The work of one graph.

    Args:
        graph: an ONNX file; its external data need not be there.
        inputs: the shape of every input.

    Raises:
        JobError: when the file is no ONNX, an input has no such rank, or the shape of a counted layer cannot
            be found: a count that is too small is worse than none.
    """
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf and the file system have no common base
        raise JobError(f"cannot read {graph}: {error}") from error
    return _Walk(onnx.inliner.inline_local_functions(model), graph.name, inputs).work()


@dataclass
class _Walk:
    """One pass over the nodes of a graph, in their order."""

    model: onnx.ModelProto
    name: str
    given: Mapping[str, Shape]
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Of small tensors that are known."""

    def work(self) -> Work:
        graph = self.model.graph
        for initializer in graph.initializer:
            self._add_constant(initializer)
        weights = {initializer.name for initializer in graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
        for value in inputs:
            self._add_input(value)
        flops = 0
        for node in graph.node:
            self._infer(node)
            flops += self._flops(node)
        outputs = {value.name: self._shape(value.name, "the graph") for value in graph.output}
        moved = [value.name for value in (*inputs, *graph.output)] + sorted(weights)
        return Work(
            flops=flops,
            parameters=sum(math.prod(tensor.dims) for tensor in graph.initializer),
            traffic=sum(self._bytes(name) for name in moved),
            outputs=outputs,
        )

    def _add_constant(self, tensor: onnx.TensorProto) -> None:
        self.types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if math.prod(tensor.dims) <= _FEW and not external:
            self.values[tensor.name] = onnx.numpy_helper.to_array(tensor)

    def _add_input(self, value: onnx.ValueInfoProto) -> None:
        shape, declared = self.given.get(value.name), value.type.tensor_type
        if shape is None or len(shape) != len(declared.shape.dim):
            raise JobError(
                f"{self.name}: input {value.name} has {len(declared.shape.dim)} axes, got the shape {shape}"
            )
        self.types[value.name] = onnx.helper.make_tensor_type_proto(declared.elem_type, list(shape))

    def _infer(self, node: onnx.NodeProto) -> None:
        """Find the types of a node's outputs, and their values where they are small and known."""
        if node.op_type in _UNCOUNTABLE:
            raise JobError(f"{self.name}: the work of {node.op_type} {node.name} cannot be counted")
        names = [name for name in node.input if name]
        types = {name: self.types[name] for name in names if name in self.types}
        data = {
            name: onnx.numpy_helper.from_array(self.values[name], name)
            for name in names
            if name in self.values
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset(node.domain), node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=list(self.model.opset_import)
            )
        except Exception as error:  # no schema, or shapes that do not fit: matters where work is counted
            if node.op_type in _COUNTED:
                raise JobError(f"{self.name}: no shape of {node.op_type} {node.name}: {error}") from error
            found = {}
        self.types |= found
        self._evaluate(node, names)

    def _evaluate(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        if node.op_type == "Shape":
            if self._known(names[0]):
                self._keep(node, [self._cut_shape(node)])
            return
        outputs = [name for name in node.output if name]
        small = all(self._known(name) and math.prod(self._dims(name)) <= _FEW for name in outputs)
        if small and (node.op_type == "Constant" or (names and all(name in self.values for name in names))):
            graph = onnx.helper.make_graph(
                [node],
                "node",
                [onnx.helper.make_value_info(name, self.types[name]) for name in names],
                [onnx.helper.make_value_info(name, self.types[name]) for name in outputs],
            )
            model = onnx.helper.make_model(graph, opset_imports=list(self.model.opset_import))
            self._keep(node, ReferenceEvaluator(model).run(None, {n: self.values[n] for n in names}))

    def _keep(self, node: onnx.NodeProto, values: Iterable[Any]) -> None:
        for name, value in zip([name for name in node.output if name], values, strict=True):
            self.values[name] = np.asarray(value)

    def _cut_shape(self, node: onnx.NodeProto) -> NDArray[np.int64]:
        """What `Shape` gives, with its attributes `start` and `end`."""
        limits = {attribute.name: attribute.i for attribute in node.attribute}
        dims = self._dims(node.input[0])[limits.get("start", 0) : limits.get("end")]
        return np.array(dims, np.int64)

    def _flops(self, node: onnx.NodeProto) -> int:
        if node.op_type not in _COUNTED:
            return 0
        where = f"{node.op_type} {node.name}"
        first, second = (self._shape(name, where) for name in node.input[:2])
        result = self._shape(node.output[0], where)
        match node.op_type:
            case "Conv":  # each output element sums over the kernel and the channels of its group
                return 2 * math.prod(result) * math.prod(second[1:])
            case "ConvTranspose":  # each input element is spread over the kernel and its group's outputs
                return 2 * math.prod(first) * math.prod(second[1:])
            case "Gemm":
                transposed = any(each.name == "transA" and each.i for each in node.attribute)
                return 2 * math.prod(result) * first[0 if transposed else 1]
            case _:
                return 2 * math.prod(result) * first[-1]

    def _known(self, name: str) -> bool:
        kind = self.types.get(name)
        return (
            kind is not None
            and kind.tensor_type.HasField("shape")
            and all(axis.HasField("dim_value") for axis in kind.tensor_type.shape.dim)
        )

    def _dims(self, name: str) -> Shape:
        return tuple(axis.dim_value for axis in self.types[name].tensor_type.shape.dim)

    def _shape(self, name: str, where: str) -> Shape:
        if not self._known(name):
            raise JobError(
                f"{self.name}: the shape of {name} at {where} cannot be found, so it is not counted"
            )
        return self._dims(name)

    def _bytes(self, name: str) -> int:
        kind = self.types[name].tensor_type
        width = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        return int(math.prod(self._shape(name, "the graph")) * width)

    def _opset(self, domain: str) -> int:
        return next((int(each.version) for each in self.model.opset_import if each.domain == domain), 1)
