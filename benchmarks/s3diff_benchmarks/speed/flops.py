"""Counts the arithmetic and the memory traffic of ONNX graphs, without weights and without running them."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass
from onnxscript.optimizer import fold_constants

from s3diff_runtime.bundle.manifest import Manifest, scale_key
from s3diff_runtime.errors import JobError
from s3diff_runtime.lora_modes import LORA_MODES
from s3diff_runtime.stages import picture_stages
from s3diff_runtime.vocabulary import ColorFix

Shape = tuple[int, ...]

_COLOR_FIX: ColorFix = "wavelet"
"""Which of the finishing stages is counted: the default."""
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
    traffic: int
    """Bytes of weights, inputs and outputs, each once: the least that must move, whatever stays in caches."""
    outputs: Mapping[str, Shape]

    @classmethod
    def of_all(cls, works: Collection[Self]) -> Self:
        """Several graphs as one."""
        return cls(sum(work.flops for work in works), sum(work.traffic for work in works), outputs={})

    @property
    def intensity(self) -> float:
        """FLOP for each byte of `traffic`."""
        return self.flops / self.traffic


def bundle_work(folder: Path, manifest: Manifest, batch: int, height: int, width: int) -> dict[str, Work]:
    """The work of every stage of a bundle for a batch of images, sides in low-resolution pixels.

    A stage that has a graph for each bin is counted once, as they differ in weights alone; of those for each
    scale the one of the usual scale counts, because the stages after it see its result. The text encoder,
    which runs when prompts change, is left out.

    Raises:
        JobError: when a graph cannot be read, or the shape of a layer cannot be found.
    """
    degradations = 1 if LORA_MODES[manifest.lora_mode].one_degradation else batch
    shapes: dict[str, Shape] = {
        "image": (batch, height, width, 3),
        "degradation": (degradations, 2),
        "guidance": (),
        "pixel_scale": (batch,),
        "semantic_scale": (batch,),
    }
    found: dict[str, Work] = {}
    for name in ("estimator", *picture_stages(_COLOR_FIX)):
        stage = manifest.stages.get(name)
        if stage is None:
            continue
        for tensor in stage.inputs:
            if tensor.name not in shapes:  # prompts: as many as the graph wants
                shapes[tensor.name] = tuple(side for side in tensor.shape if isinstance(side, int))
        graph = folder / stage.graphs.get(scale_key(manifest.scale), next(iter(stage.graphs.values())))
        found[name] = count(graph, {tensor.name: shapes[tensor.name] for tensor in stage.inputs})
        shapes = {**found[name].outputs, **shapes}
    return found


def count(graph: Path, inputs: Mapping[str, Shape]) -> Work:
    """The work of one graph, whose external data need not be there, for inputs of these shapes.

    Raises:
        JobError: when the file is no ONNX, an input has no such rank, or the shape of a counted layer cannot
            be found: a count that is too small is worse than none.
    """
    try:
        model = ir.load(graph)
        InlinePass()(model)
    except Exception as error:  # protobuf and the file system have no common base
        raise JobError(f"cannot read {graph}: {error}") from error
    for value in model.graph.inputs:
        shape, axes = inputs.get(str(value.name)), 0 if value.shape is None else len(value.shape)
        if shape is None or len(shape) != axes:
            raise JobError(f"{graph.name}: input {value.name} has {axes} axes, got the shape {shape}")
        value.shape = ir.Shape(shape)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value]
    # Shapes depend on integers that the graph computes (amounts of padding, sizes to resize to), so these are
    # computed on the way.
    fold_constants(model, onnx_shape_inference=True, should_fold=_is_small)
    moved = (*model.graph.inputs, *model.graph.outputs)
    return Work(
        flops=sum(_flops(node, f"{graph.name}, {node.op_type} {node.name}") for node in model.graph),
        traffic=sum(tensor.nbytes for tensor in weights) + sum(_bytes(each, graph.name) for each in moved),
        outputs={str(value.name): _shape(value, graph.name) for value in model.graph.outputs},
    )


def _is_small(node: ir.Node) -> bool:
    """Whether a node may be computed; what weights go into is not, as they are not even read."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    shapes = [value.shape for value in values if value.shape is not None and value.shape.is_static()]
    small = len(shapes) == len(values) and all(math.prod(shape.numpy()) <= _FEW for shape in shapes)
    return small and node.op_type not in _COUNTED


def _flops(node: ir.Node, where: str) -> int:
    if node.op_type in _UNCOUNTABLE:
        raise JobError(f"{where}: the work of {node.op_type} cannot be counted")
    if node.op_type not in _COUNTED:
        return 0
    first, second, result = (_shape(value, where) for value in (*node.inputs[:2], node.outputs[0]))
    match node.op_type:
        case "Conv":  # each output element sums over the kernel and the channels of its group
            return 2 * math.prod(result) * math.prod(second[1:])
        case "ConvTranspose":  # each input element is spread over the kernel and its group's outputs
            return 2 * math.prod(first) * math.prod(second[1:])
        case "Gemm":
            return 2 * math.prod(result) * first[0 if node.attributes.get_int("transA", 0) else 1]
        case _:
            return 2 * math.prod(result) * first[-1]


def _bytes(value: ir.Value, where: str) -> int:
    if value.dtype is None:
        raise JobError(f"{where}: the type of {value.name} cannot be found, so it is not counted")
    return int(math.prod(_shape(value, where)) * value.dtype.itemsize)


def _shape(value: ir.Value | None, where: str) -> Shape:
    if value is None or value.shape is None or not value.shape.is_static():
        raise JobError(f"{where}: the shape of {value} cannot be found, so it is not counted")
    return tuple(value.shape.numpy())
