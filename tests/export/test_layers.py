"""Layer by layer comparisons find the layer where a graph goes wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export.engine_bundles import make_bundle, replace_file
from tests.export.models import Files, photographs

from s3diff_export.cli import cli, run
from s3diff_export.verification import layers
from s3diff_export.verification.layers import compare_layers, engine_of_all_layers, raised_to_fp32
from s3diff_export.verification.parity import Gates
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.errors import RequestError

IMAGE = photographs(1, 20, 24, seed=3)[0]


@pytest.fixture(scope="module")
def fused(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a fused bundle in fp16."""
    return make_bundle(files, "fused", tmp_path_factory.mktemp("fused"))


@pytest.fixture
def bundle(fused: Path, tmp_path: Path) -> Path:
    """Return a bundle of the test's own."""
    return Path(shutil.copytree(fused, tmp_path / "own.bundle"))


def broken_at(model: onnx.ModelProto, operator: str) -> str:
    """Let fp16 overflow behind the last layer of a kind, by a factor and its inverse; where it does."""
    graph = model.graph
    index, node = [(i, node) for i, node in enumerate(graph.node) if node.op_type == operator][-1]
    name, end = node.output[0], f"{node.output[0]}_before"
    node.output[0] = end
    for constant, value in (("up", 4e4), ("down", 1 / 4e4)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float16), constant))
    up = helper.make_node("Mul", [end, "up"], ["scaled_up"], name="/overflows")
    graph.node.insert(index + 1, up)
    graph.node.insert(index + 2, helper.make_node("Mul", ["scaled_up", "down"], [name], name="/back"))
    return up.name


def test_a_sound_bundle_has_no_diverging_layer(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command, which needs no weights and writes nothing."""
    before = (fused / "manifest.json").read_bytes()
    # A softmax magnifies what rounding to fp16 does to large scores, as those of random weights are.
    assert run(cli, ["verify", str(fused), "--layers", "--gate-stage", "0.06", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert (fused / "manifest.json").read_bytes() == before
    assert [report["stage"] for report in reports] == [
        "vae_weights",
        "unet_weights",
        "vae_encoder",
        "unet",
        "vae_decoder",
    ]
    for report in reports:
        assert report["passed"] and report["first"] is None
        assert report["limit"] == 6e-2
        assert report["count"] > 50
        errors = [layer["relative"] for layer in report["worst"]]
        assert len(errors) == 10 and errors == sorted(errors, reverse=True)
        assert 1e-4 < errors[0] < report["limit"]  # rounding to fp16 is seen, and it is no more than that


def test_the_layer_that_overflows_is_found(bundle: Path) -> None:
    model = onnx.load(bundle / "onnx/vae_decoder.onnx", load_external_data=False)
    name = broken_at(model, "Conv")
    replace_file(bundle, "onnx/vae_decoder.onnx", model.SerializeToString())
    report = compare_layers(Bundle.open(bundle), IMAGE, Gates())[-1]
    assert report.stage == "vae_decoder" and not report
    assert report.first is not None and report.first.name == name
    assert report.first.operator == "Mul" and not np.isfinite(report.first.relative)


def test_a_layer_above_the_gate_fails_the_command(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["verify", str(fused), "--layers", "--gate-stage", "1e-6"]) == 1
    errors = capsys.readouterr().err
    assert "first above" in errors  # the table is folded to the width
    assert "of vae_weights leaves its truth: relative error" in errors.splitlines()[-1]
    assert "limit 1e-06" in errors.splitlines()[-1]


def _latent(bundle: Path) -> dict[str, np.ndarray]:
    channels = Manifest.read(bundle).latent_channels
    rng = np.random.default_rng(0)
    return {"x0": rng.standard_normal((1, channels, 8, 8), np.float32)}


def test_passes_are_cut_to_fit_into_memory(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fused / "onnx/vae_decoder.onnx"
    whole = list(layers._precision_errors(path, _latent(fused)))
    monkeypatch.setattr(layers, "_BUDGET", 2**16)
    monkeypatch.setattr(layers, "_FIRST_PASS", 40)
    assert list(layers._precision_errors(path, _latent(fused))) == whole
    assert len({layer.tensor for layer in whole}) == len(whole)


def test_raising_leaves_no_half_precision_and_changes_no_weight(fused: Path) -> None:
    path = fused / "onnx/unet.onnx"
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    model = raised_to_fp32(onnx.load(path))
    assert len(model.graph.initializer) == len(before)
    for tensor in model.graph.initializer:
        assert tensor.data_type != TensorProto.FLOAT16
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), before[tensor.name])
    casts = [a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute]
    assert casts and TensorProto.FLOAT16 not in casts


def test_a_network_of_all_layers_builds_through_rtx(fused: Path) -> None:
    feed = _latent(fused)
    network, config = engine_of_all_layers(fused / "onnx/vae_decoder.onnx", feed, "tensorrt-rtx")
    from polygraphy.backend.trt import EngineBytesFromNetwork  # after the flavour was chosen

    assert EngineBytesFromNetwork(network, config)().nbytes > 2**16
    built = network()[1]
    assert built.num_outputs > 50
    assert {"decoded"} < {built.get_output(number).name for number in range(built.num_outputs)}


def test_an_engine_needs_a_gpu(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(runtime: object) -> int:
        raise layers.S3DiffError("no usable GPU was found")

    monkeypatch.setattr(layers, "count_gpus", none)
    with pytest.raises(RequestError, match="--layers --engine tensorrt-rtx runs engines: no usable GPU"):
        compare_layers(Bundle.open(fused), IMAGE, Gates(), "tensorrt-rtx")


def test_an_fp32_bundle_has_nothing_to_compare(fused: Path) -> None:
    manifest = Manifest.read(fused).model_copy(update={"precision": "fp32"})
    with pytest.raises(RequestError, match="computes in fp32 already"):
        compare_layers(Bundle(fused, manifest), IMAGE, Gates())
