"""Graphs in the operators that OpenVINO's kernels for CPUs run fastest; what they compute stays.

Its convolutions keep channels last in memory, and what needs them first makes it turn every activation twice.
"""

from __future__ import annotations

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

_SPATIAL = np.array([1, 2, 3], np.int64)
"""Axes of `[N, C, H, W]` that a norm of one group takes together."""
_DOUBLING = {
    "mode": "nearest",
    "nearest_mode": "floor",
    "coordinate_transformation_mode": "asymmetric",
    "shape_calculation_mode": "scales",
}
_KEEPING = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}
_SUMS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
"""`[4, 3]`: which rows of a kernel meet the same pixel where every pixel is there twice."""
_THROUGH = ("Convert", "Reshape", "Unsqueeze")
"""What a constant may have passed."""


def refit(model: openvino.Model) -> None:
    """Rewrite norms of one group, split projections and convolutions of doubled pixels, in place."""
    for node in model.get_ordered_ops():
        match node.get_type_name():
            case "MVN":
                _keep_channels_last(node)
            case "Split" | "VariadicSplit":
                _project_halves(node)
            case "Interpolate":
                _convolve_undoubled(node)
    model.validate_nodes_and_infer_types()


def is_network(model: openvino.Model) -> bool:
    """Whether a graph has convolutions of several channels: enough work for low precision to pay.

    Those of one channel interpolate: they are little work, and their results are rounded to grey levels.
    """
    return any(
        node.get_type_name() == "Convolution" and node.get_input_partial_shape(1)[1] != 1
        for node in model.get_ops()
    )


def held_bytes(model: openvino.Model) -> int:
    """Bytes of a graph's constants, which are its weights."""
    return sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")


def _keep_channels_last(norm: openvino.Node) -> None:
    """Normalise `[N, C, H, W]` as it lies, not as `[N, 1, C H W]`.

    A norm of several groups has to stay: no axes of a tensor with its channels last are one group's.
    """
    flat = norm.input_value(0).get_node()
    if flat.get_type_name() != "Reshape":
        return
    image, shape = flat.input_value(0), flat.get_output_partial_shape(0)
    if len(image.get_partial_shape()) != 4 or len(shape) != 3 or shape[1] != 1:
        return
    last = norm
    for kind, neutral in (("Multiply", 1), ("Add", 0), ("Reshape", None)):
        readers = [port.get_node() for port in last.output(0).get_target_inputs()]
        readers = [node for node in readers if node.get_type_name() != "ShapeOf"]
        if [node.get_type_name() for node in readers] != [kind]:
            return
        last = readers[0]
        if neutral is not None and not any(_is_all(value, neutral) for value in last.input_values()):
            return
    settings = norm.get_attributes()
    twin = ops.mvn(image, ops.constant(_SPATIAL), True, settings["eps"], settings["eps_mode"].lower())
    last.output(0).replace(twin.output(0))


def _project_halves(split: openvino.Node) -> None:
    """Compute the two halves of a projection apart, and so without a copy of them.

    What follows a half (GELU, a product) then runs within its own projection.
    """
    whole, sides = split.input_value(0), [output.get_partial_shape() for output in split.outputs()]
    axis = _data(split.input_value(1))
    if len(sides) != 2 or len(sides[0]) != 3 or sides[0] != sides[1] or axis is None or axis not in (-1, 2):
        return
    halves = _halves(whole)
    if halves is not None:
        for output, half in zip(split.outputs(), halves, strict=True):
            output.replace(half)


def _halves(whole: openvino.Output) -> list[openvino.Output] | None:
    """The two halves of a sum of projections along its last axis; None for anything else."""
    node = whole.get_node()
    match node.get_type_name():
        case "Constant":
            data: NDArray[np.generic] = node.get_data()
            if data.ndim == 0 or data.shape[-1] == 1:
                return [whole, whole]
            return [_constant(half).output(0) for half in np.split(data, 2, -1)]
        case "Add" | "Multiply":
            make = ops.add if node.get_type_name() == "Add" else ops.multiply
            left, right = map(_halves, node.input_values())
            if left is None or right is None:
                return None
            return [make(*pair).output(0) for pair in zip(left, right, strict=True)]
        case "MatMul":
            settings, weights = node.get_attributes(), _halves(node.input_value(1))
            if weights is None or settings["transpose_a"] or settings["transpose_b"]:
                return None
            return [ops.matmul(node.input_value(0), weight, False, False).output(0) for weight in weights]
        case "Transpose" if whole.get_partial_shape().is_static and len(whole.get_shape()) == 2:
            return list(ops.split(whole, 1, 2).outputs())  # a weight that is an input
    return None


def _convolve_undoubled(doubling: openvino.Node) -> None:
    """Convolve what is about to be enlarged by two before it is, where nothing else reads the enlarged."""
    factors = _data(doubling.input_value(1))
    if not _DOUBLING.items() <= doubling.get_attributes().items() or factors is None:
        return
    if factors.tolist() != [1, 1, 2, 2]:
        return
    readers = [port.get_node() for port in doubling.output(0).get_target_inputs()]
    found = (_transposed(reader, doubling.input_value(0)) for reader in readers)
    twins = [twin for twin in found if twin is not None]
    if len(twins) == len(readers):
        for reader, twin in zip(readers, twins, strict=True):
            reader.output(0).replace(twin.output(0))


def _transposed(convolution: openvino.Node, image: openvino.Output) -> openvino.Node | None:
    """What a convolution of 3 x 3 makes of an image enlarged by two; None for another, or other weights.

    Which is what a transposed one of 4 x 4 makes of the image: 4 x 4 products for each of its pixels, where
    each of the four enlarged ones took 3 x 3. The kernel holds sums of the other's.
    """
    kind, kernel = convolution.get_type_name(), None
    if kind == "Convolution" and _KEEPING.items() <= convolution.get_attributes().items():
        kernel = _data(convolution.input_value(1))
    if kernel is None or kernel.shape[2:] != (3, 3):
        return None
    sums = np.einsum("ka,lb,oiab->iokl", _SUMS, _SUMS, kernel.astype(np.float32)).astype(kernel.dtype)
    strides, pads, dilations = [2, 2], [1, 1], [1, 1]
    return ops.convolution_backprop_data(image, _constant(sums), strides, None, pads, pads, dilations)


def _constant(data: NDArray[np.generic]) -> openvino.Node:
    """Of float16 that does not lie in one piece, OpenVINO makes a constant of int16."""
    return ops.constant(np.ascontiguousarray(data))


def _is_all(value: openvino.Output, number: float) -> bool:
    data = _data(value)
    return data is not None and bool(np.all(data == number))


def _data(value: openvino.Output) -> NDArray[np.generic] | None:
    node = value.get_node()
    while node.get_type_name() in _THROUGH:
        node = node.input_value(0).get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None
