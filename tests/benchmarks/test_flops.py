"""Counted work: of graphs whose work is known, and of graphs that cannot be counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.fake_bundle import write_fake_bundle

from s3diff_benchmarks.speed.flops import bundle_work, count
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import JobError
from s3diff_runtime.lora_modes import LORA_MODES


def graph(
    path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], x: list[int | str]
) -> Path:
    """An ONNX file with one input x and one output y."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def weight(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "weights", "shape", "flops"),
    [
        # 2 · outputs · kernel · channels of a group
        (
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
            {"w": weight(5, 3, 3, 3)},
            (2, 3, 8, 6),
            2 * (2 * 5 * 8 * 6) * (3 * 3 * 3),
        ),
        (
            helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2]),
            {"w": weight(4, 1, 1, 1)},
            (1, 2, 8, 8),
            2 * (4 * 4 * 4) * 1,
        ),
        # every input element spreads over kernel and outputs
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            {"w": weight(3, 5, 2, 2)},
            (1, 3, 4, 4),
            2 * (3 * 4 * 4) * (5 * 2 * 2),
        ),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weight(7, 9)}, (2, 3, 7), 2 * (2 * 3 * 9) * 7),
        (
            helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
            {"w": weight(6, 9)},
            (6, 4),
            2 * (4 * 9) * 6,
        ),
        (helper.make_node("Relu", ["x"], ["y"]), {}, (4, 4), 0),
    ],
    ids=["conv", "grouped conv", "transposed conv", "matmul", "gemm", "relu"],
)
def test_operators(
    tmp_path: Path, node: onnx.NodeProto, weights: dict[str, np.ndarray], shape: tuple[int, ...], flops: int
) -> None:
    axes: list[int | str] = [f"axis{number}" for number in range(len(shape))]
    work = count(graph(tmp_path / "graph.onnx", [node], weights, axes), {"x": shape})
    assert work.flops == flops


def test_traffic_is_weights_inputs_and_outputs_once(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    work = count(graph(tmp_path / "graph.onnx", [node], {"w": weight(7, 9)}, ["n", 7]), {"x": (3, 7)})
    assert work.traffic == 4 * (7 * 9 + 3 * 7 + 3 * 9)
    assert work.intensity == work.flops / work.traffic
    assert work.outputs == {"y": (3, 9)}


def test_shapes_that_the_graph_computes_are_followed(tmp_path: Path) -> None:
    """Half as wide, by a shape computed from the input's."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Div", ["shape", "divisors"], ["halved"]),
        helper.make_node("Expand", ["one", "halved"], ["spread"]),
        helper.make_node("MatMul", ["spread", "w"], ["y"]),
    ]
    weights = {"divisors": np.array([1, 2]), "one": weight(1, 1), "w": weight(4, 5)}
    work = count(graph(tmp_path / "graph.onnx", nodes, weights, ["n", "m"]), {"x": (3, 8)})
    assert work.flops == 2 * (3 * 5) * 4


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    """A count that is too small is worse than none."""
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    path = graph(tmp_path / "graph.onnx", [node], {"w": weight(4, 4)}, ["n", 4])
    with pytest.raises(JobError, match="the work of MatMulInteger"):
        count(path, {"x": (2, 4)})
    with pytest.raises(JobError, match="input x has 2 axes, got the shape"):
        count(path, {"x": (2, 4, 4)})
    own = helper.make_node("Shuffle", ["x"], ["shuffled"], domain="ours")
    nodes = [own, helper.make_node("MatMul", ["shuffled", "w"], ["y"])]
    path = graph(tmp_path / "graph.onnx", nodes, {"w": weight(4, 4)}, ["n", 4])
    with pytest.raises(JobError, match=r"MatMul.*the shape of .*shuffled.* cannot be found"):
        count(path, {"x": (2, 4)})
    path.write_bytes(b"no graph")
    with pytest.raises(JobError, match="cannot read"):
        count(path, {"x": (2, 4)})


def test_weights_beside_the_graph_are_not_read(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path, "dynamic", external_data=True)
    manifest = Manifest.read(folder)
    work = bundle_work(folder, manifest, 1, 16, 24)
    assert work["unet"].traffic > 0
    for data in folder.rglob("*.data"):
        data.unlink()
    assert bundle_work(folder, manifest, 1, 16, 24) == work


def test_one_degradation_serves_a_batch_of_fused_weights(tmp_path: Path) -> None:
    """Each mode is fed the modulation that it takes: of every image, or of one."""
    for mode in LORA_MODES:
        folder = write_fake_bundle(tmp_path / mode, mode)
        work = bundle_work(folder, Manifest.read(folder), 3, 16, 24)
        assert work["estimator"].outputs == {"degradation": (3, 2)}
        if "modulation" in work:
            batch = 1 if LORA_MODES[mode].one_degradation else 3
            assert {shape[0] for shape in work["modulation"].outputs.values()} == {batch}


def test_work_of_a_bundle_grows_with_its_images(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path, "dynamic")
    manifest = Manifest.read(folder)
    one, four = (bundle_work(folder, manifest, batch, 16, 24) for batch in (1, 4))
    assert list(one) == ["estimator", "modulation", "vae_encoder", "unet", "vae_decoder", "finish_wavelet"]
    assert one["finish_wavelet"].outputs == {"upscaled": (1, 64, 96, 3)}
    assert four["finish_wavelet"].outputs == {"upscaled": (4, 64, 96, 3)}
    assert all(four[stage].traffic > one[stage].traffic for stage in one)
