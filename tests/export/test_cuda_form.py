"""The form for ONNX Runtime on CUDA computes what the plain graph does, by its operators' definitions."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from diffusers.models.attention_processor import Attention
from tests.export.cuda_operators import evaluator
from tests.export.models import tiny_base, tiny_network

from s3diff_export.graphs.cuda_form import write_cuda_form
from s3diff_export.graphs.onnx_export import export_onnx
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.stages import stage_graphs
from s3diff_runtime.bundle.manifest import Bin
from s3diff_runtime.bundle.opening import cuda_form_of
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode

STAGES = ("vae_encoder", "unet", "vae_decoder")
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
HERE = Bin(name="here", noise=0.4, blur=0.6)


@pytest.fixture(scope="module", params=LORA_MODES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of a mode with their forms."""
    mode: LoraMode = request.param
    folder = tmp_path_factory.mktemp(mode)
    for graph in stage_graphs(tiny_network(tiny_base("sd")), GraphOptions(mode, "fp16"), [HERE]):
        if graph.stage in (*STAGES, "estimator"):
            export_onnx(graph, folder / f"{graph.stage}.onnx")
            write_cuda_form(folder / f"{graph.stage}.onnx")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_the_form_computes_what_the_graph_does(folder: Path, stage: str) -> None:
    plain = onnxruntime.InferenceSession(str(folder / f"{stage}.onnx"), providers=["CPUExecutionProvider"])
    rng, feeds = np.random.default_rng(3), dict[str, Any]()
    sides = {"latent_height": 16, "latent_width": 8, "decoded_height": 64, "decoded_width": 32}
    sides |= {"upscaled_height": 96, "upscaled_width": 52}
    for each in plain.get_inputs():
        shape = [{"batch": 2, "height": 24, "width": 13, **sides}.get(side, side) for side in each.shape]
        feeds[each.name] = np.asarray(rng.standard_normal(shape) * 0.2, DTYPES[each.type])
    expected = plain.run(None, feeds)
    found = evaluator(str(folder / cuda_form_of(f"{stage}.onnx"))).run(None, feeds)
    for truth, result in zip(expected, found, strict=True):
        assert truth.std() > 0
        error = np.linalg.norm(truth.astype(float) - result.astype(float)) / np.linalg.norm(
            truth.astype(float)
        )
        assert error < 2e-2  # each rounds to fp16 where it likes; random weights magnify it


def test_nothing_of_the_plain_operators_is_left(folder: Path) -> None:
    for stage in STAGES:
        model = onnx.load(folder / cuda_form_of(f"{stage}.onnx"), load_external_data=False)
        kinds = Counter(node.op_type for node in model.graph.node)
        assert kinds["NhwcConv"]
        assert not kinds["Conv"] + kinds["InstanceNormalization"] + kinds["Softmax"] + kinds["Sigmoid"]
        assert {each.location for each in _external(model)} <= {f"{stage}.onnx.data"}
        assert (folder / cuda_form_of(f"{stage}.onnx")).stat().st_size < 2**20


def test_attention_is_the_pattern_that_engines_fuse(folder: Path) -> None:
    """MatMul, Softmax, MatMul; before them nothing but reshapes to constant shapes, up to the projections."""
    network = tiny_network(tiny_base("sd"))
    for stage, part in zip(STAGES, (network.vae.encoder, network.unet, network.vae.decoder), strict=True):
        graph = onnx.load(folder / f"{stage}.onnx", load_external_data=False).graph
        made = {output: node for node in graph.node for output in node.output}
        constants = {tensor.name for tensor in graph.initializer}
        constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
        assert len(softmaxes) == sum(isinstance(each, Attention) for each in part.modules())
        assert not [node for node in graph.node if node.op_type == "Sqrt"]
        for softmax in softmaxes:
            scores = made[softmax.input[0]]
            (attended,) = (node for node in graph.node if softmax.output[0] in node.input)
            assert (scores.op_type, attended.op_type) == ("MatMul", "MatMul")
            for tensor in (*scores.input, attended.input[1]):
                while tensor in made and made[tensor].op_type in ("Reshape", "Transpose"):
                    assert constants.issuperset(made[tensor].input[1:])
                    tensor = made[tensor].input[0]
                assert tensor in constants or made[tensor].op_type in ("MatMul", "Gemm", "Add")


def test_graphs_in_fp32_have_no_form(folder: Path, tmp_path: Path) -> None:
    assert (folder / "estimator.onnx").exists()
    assert not (folder / cuda_form_of("estimator.onnx")).exists()
    for graph in stage_graphs(tiny_network(tiny_base("sd")), GraphOptions("dynamic", "fp32")):
        if graph.stage == "unet":
            export_onnx(graph, tmp_path / "unet.onnx")
            write_cuda_form(tmp_path / "unet.onnx")
    assert (tmp_path / "unet.onnx").exists()
    assert not (tmp_path / cuda_form_of("unet.onnx")).exists()


def _external(model: onnx.ModelProto) -> list[Any]:
    tensors = [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    return [onnx.external_data_helper.ExternalDataInfo(each) for each in tensors]
