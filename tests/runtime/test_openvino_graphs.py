"""What is rewritten for OpenVINO's kernels computes what it computed, and what is not the same stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from s3diff_runtime.engines.openvino_graphs import is_network, refit

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def norm(image: openvino.Node, groups: int, scale: float = 1.0) -> openvino.Node:
    """GroupNorm as PyTorch exports it and OpenVINO reads it: InstanceNormalization between two reshapes."""
    flat = ops.reshape(image, np.array([0, groups, -1]), special_zero=True)
    normal = ops.mvn(flat, np.array([2]), True, 1e-5, "inside_sqrt")
    scaled = ops.multiply(normal, ops.reshape(np.full(groups, scale, np.float32), [1, groups, 1], False))
    shifted = ops.add(scaled, ops.reshape(np.zeros(groups, np.float32), [1, groups, 1], False))
    return ops.reshape(shifted, ops.shape_of(image), special_zero=False)


def network(groups: int, scale: float = 1.0) -> openvino.Model:
    image = ops.parameter([-1, 8, -1, -1], np.float32, name="image")
    convolve = lambda x: ops.convolution(x, weights(8, 8, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])  # noqa: E731
    affine = ops.add(ops.multiply(norm(convolve(image), groups, scale), weights(8, 1, 1)), weights(8, 1, 1))
    return openvino.Model([convolve(ops.swish(affine))], [image], "norm")


def projection(modulated: bool, constant: bool = True) -> openvino.Model:
    """GEGLU: a projection, with LoRA's branch or without, split in a value and its gate."""
    tokens = ops.parameter([-1, -1, 6], np.float32, name="tokens")
    inputs, given = [tokens], ops.parameter([16, 6], np.float32, name="weight")
    weight = weights(6, 16)
    if not constant:
        inputs.append(given)
    base = ops.matmul(tokens, weight if constant else ops.transpose(given, [1, 0]), False, False)
    whole = ops.add(weights(16), base)
    if modulated:
        branch = ops.matmul(ops.matmul(tokens, weights(6, 2), False, False), weights(2, 16), False, False)
        whole = ops.add(whole, ops.multiply(branch, np.float32(0.5)))
    value, gate = ops.variadic_split(whole, np.int64(-1), np.array([8, -1])).outputs()
    return openvino.Model([ops.multiply(value, ops.gelu(gate, "erf"))], inputs, "geglu")


def enlarging(
    *kernels: int, factor: float = 2.0, mode: str = "nearest", constant: bool = True
) -> openvino.Model:
    """Convolutions of what was enlarged, as exported: LoRA's branch reads the same as the layer itself."""
    image = ops.parameter([-1, 8, -1, -1], np.float16, name="image")
    given = [ops.parameter([4, 8, side, side], np.float16, name=f"kernel{side}") for side in kernels]
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    factors, axes = np.array([1, 1, factor, factor], np.float32), np.arange(4)
    large = ops.interpolate(image, factors, mode, "scales", axes=axes, **how)
    results = []
    for side, kernel in zip(kernels, given, strict=True):
        pads, weight = [side // 2] * 2, weights(4, 8, side, side).astype(np.float16)
        results.append(ops.convolution(large, weight if constant else kernel, [1, 1], pads, pads, [1, 1]))
    return openvino.Model(results, [image, *([] if constant else given)], "enlarging")


def computed(model: openvino.Model, *inputs: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(list(inputs))[0])


def operators(model: openvino.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


def test_a_norm_of_one_group_takes_channels_as_they_lie() -> None:
    model, image = network(1), 3 + weights(2, 8, 12, 10)
    before = computed(model, image)
    refit(model)
    assert not operators(model)["Reshape"]
    np.testing.assert_allclose(computed(model, image), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("groups", "scale"), [(2, 1.0), (1, 2.0)])
def test_other_norms_stay(groups: int, scale: float) -> None:
    model = network(groups, scale)
    before = operators(model)
    refit(model)
    assert operators(model) == before


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_halves_of_a_projection_are_computed_apart(modulated: bool, constant: bool) -> None:
    model = projection(modulated, constant)
    inputs = [weights(2, 5, 6)] + ([] if constant else [weights(16, 6)])
    before = computed(model, *inputs)
    refit(model)
    left = operators(model)
    assert (left["VariadicSplit"], left["Split"]) == (0, 0 if constant else 1)
    np.testing.assert_allclose(computed(model, *inputs), before, rtol=1e-5, atol=1e-5)


def test_a_split_of_something_else_stays() -> None:
    tokens = ops.parameter([-1, -1, 6], np.float32, name="tokens")
    left, right = ops.split(ops.relu(tokens), np.int64(2), 2).outputs()
    model = openvino.Model([ops.add(left, right)], [tokens], "split")
    refit(model)
    assert operators(model)["Split"] == 1


@pytest.mark.parametrize("readers", [1, 2])
def test_doubled_pixels_are_convolved_before_they_are_doubled(readers: int) -> None:
    model, image = enlarging(*[3] * readers), weights(2, 8, 5, 7).astype(np.float16)
    before = computed(model, image)
    refit(model)
    left = operators(model)
    assert (left["ConvolutionBackpropData"], left["Convolution"], left["Interpolate"]) == (readers, 0, 0)
    assert before.shape == (2, 4, 10, 14)
    # Sums of two or four of the kernel's values, rounded to float16 once more.
    np.testing.assert_allclose(computed(model, image), before, atol=2e-3 * np.abs(before).max())


@pytest.mark.parametrize(
    "model",
    [
        enlarging(3, factor=3.0),
        enlarging(3, mode="linear_onnx"),
        enlarging(3, 5),
        enlarging(3, constant=False),
    ],
    ids=["by-three", "linear", "another-reader", "weights-that-are-inputs"],
)
def test_other_enlarging_stays(model: openvino.Model) -> None:
    before = operators(model)
    refit(model)
    assert operators(model) == before


def test_what_interpolates_is_no_network() -> None:
    image = ops.parameter([-1, 1, -1, -1], np.float32, name="image")
    phases = ops.convolution(image, weights(16, 1, 5, 5), [1, 1], [2, 2], [2, 2], [1, 1])
    assert is_network(network(1))
    assert not is_network(openvino.Model([phases], [image], "interpolation"))
    assert not is_network(projection(modulated=True))
