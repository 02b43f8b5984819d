"""Every stage in every LoRA mode builds through TensorRT-RTX, in fp16, for free batches and sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tests.export.engine_bundles import OPTIONS, contents, make_bundle, replace_file
from tests.export.models import Files

from s3diff_export.build import BuildRequest, build
from s3diff_export.engines.adding import add_engines
from s3diff_export.engines.building import EngineSource, require_builder
from s3diff_export.engines.options import BatchRange, EngineOptions, SizeRange, stage_shapes
from s3diff_runtime.bundle.engine_records import EngineSidecar
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import BuildError
from s3diff_training.weights import ModelSource

ADA = EngineOptions("tensorrt-rtx", compute_capabilities=("8.9",), optimization_level=0)
_TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def merged(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a merged bundle once; tests that change it take a copy."""
    return make_bundle(files, "merged", tmp_path_factory.mktemp("merged"))


@pytest.mark.parametrize("mode", OPTIONS)
def test_every_stage_builds(mode: str, files: Files, merged: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(merged, tmp_path / "b")) if mode == "merged" else None
    bundle = bundle or make_bundle(files, mode, tmp_path)
    graphs = Manifest.read(bundle).stages
    assert mode == "merged" or "modulation" in graphs
    added = add_engines(bundle, ADA)
    manifest = Manifest.read(bundle, check="hashes")
    assert manifest == added.manifest
    (engines,) = manifest.engines
    assert {stage: set(each) for stage, each in engines.graphs.items()} == {
        stage: set(each.graphs) for stage, each in graphs.items()
    }
    assert engines.name.startswith(f"tensorrt-rtx-{engines.identity.version}-sm89-")
    for report in added.engines:
        assert report.bytes > 2**15 and report.seconds > 0 and report.peak_memory and not report.reused
        sidecar = EngineSidecar.model_validate_json((bundle / report.path).with_suffix(".json").read_bytes())
        assert (sidecar.stage, sidecar.graph, sidecar.size) == (report.stage, report.graph, report.bytes)
        assert sidecar.identity == engines.identity
        assert sidecar.inputs == graphs[report.stage].inputs
        for spec in sidecar.inputs:  # what is free in the graph is free in the engine
            least, _, most = sidecar.shapes[spec.name]
            for axis, low, high in zip(spec.shape, least, most, strict=True):
                assert low == high == axis if isinstance(axis, int) else low < high, (report.stage, spec)


def test_a_graph_that_tensorrt_cannot_read_names_stage_and_node(merged: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(merged, tmp_path / "b"))
    spec = Manifest.read(bundle).stages["estimator"]
    image, scores = (spec.inputs[0], spec.outputs[0])
    node = helper.make_node("NoSuchOperator", [image.name], [scores.name], name="/branch/odd")
    graph = helper.make_graph(
        [node],
        "estimator",
        [helper.make_tensor_value_info(image.name, TensorProto.UINT8, image.shape)],
        [helper.make_tensor_value_info(scores.name, TensorProto.FLOAT, scores.shape)],
    )
    replace_file(bundle, spec.graphs["shared"], onnx.ModelProto.SerializeToString(helper.make_model(graph)))
    before = contents(bundle)
    expected = (
        r"cannot read the graph of stage estimator at node /branch/odd \(NoSuchOperator\): .*Plugin not"
    )
    with pytest.raises(BuildError, match=expected):
        add_engines(bundle, ADA)
    assert contents(bundle) == before
    assert not (bundle / "engines").exists()


def test_an_interruption_stops_the_build_and_leaves_nothing(merged: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(merged, tmp_path / "b"))
    before, told = contents(bundle), []

    def interrupt(step: str) -> None:
        told.append(step)
        if step.startswith("building unet") and "%" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_engines(bundle, ADA, progress=interrupt)
    assert contents(bundle) == before
    assert not (bundle / "engines").exists()
    assert any(step.startswith("building vae_encoder") for step in told)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensorrt")]


def test_a_profile_that_contradicts_itself_tells_what_tensorrt_says(merged: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(merged)
    stage, profile = manifest.stages["finish_wavelet"], ADA.profile(manifest.multiple)
    shapes = stage_shapes(manifest, stage, profile)
    other = stage_shapes(
        manifest, stage, EngineOptions("tensorrt-rtx", batch=BatchRange(7, 8, 9)).profile(manifest.multiple)
    )
    builder = require_builder(ADA)
    with pytest.raises(
        BuildError, match=r"could not build stage finish: .*batch.*Profile.*smaller --max-size"
    ):
        builder.build(
            EngineSource(
                merged / stage.graphs["shared"],
                stage,
                {**shapes, "enlarged": other["enlarged"]},
                "finish",
                "fp16",
            ),
            tmp_path / "never.engine",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Make a random model of SD-Turbo's size."""
    folder = tmp_path_factory.mktemp("full")
    subprocess.run([sys.executable, _TOOLS / "make_full_size.py", folder], check=True)
    return ModelSource(False, str(folder / "base"), folder / "s3diff.pkl", folder / "de_net.pth")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merged", "fused"])
def test_full_size_stages(mode: str, full_size: ModelSource, tmp_path: Path) -> None:
    """Prints what each stage took; needs 12 GiB of memory and as much disk."""
    bundle = tmp_path / "full.bundle"
    build(BuildRequest(bundle, full_size, verify=False, **OPTIONS[mode]))
    sizes = SizeRange(max=(128, 128))
    added = add_engines(bundle, EngineOptions("tensorrt-rtx", sizes, compute_capabilities=("8.9",)))
    print(json.dumps(added.to_dict()["engines"], indent=1))  # noqa: T201
    by_stage = {report.stage: report for report in added.engines}
    weights = (bundle / "onnx").rglob("unet.onnx.data")
    assert by_stage["unet"].bytes > next(iter(weights)).stat().st_size
