"""The exported stages in ONNX Runtime against the network: modes, precisions, batches, sizes, variants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tests.export.models import DEGRADATIONS, error, photographs, tiny_network
from tests.training.small import SMALL_RANKS
from torch import Tensor

from s3diff_export.graphs.onnx_export import export_onnx
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.stages import StageGraph, stage_graphs
from s3diff_runtime.bundle.manifest import SHARED, Bin, Stage
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.stages import kind_of
from s3diff_runtime.vocabulary import SCALE, ColorFix
from s3diff_training.data import from_uint8
from s3diff_training.network.base import BaseModel
from s3diff_training.network.bicubic import bicubic_upscale
from s3diff_training.network.color import correct_color
from s3diff_training.network.config import ENCODER_AND_DECODER_TARGETS, NetworkConfig
from s3diff_training.network.model import S3Diff

Array = NDArray[Any]
BIN = Bin(name="here", noise=0.9, blur=0.15)
"""At the first of `DEGRADATIONS`, whose axes are (blur, noise)."""
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}
"""Of relative errors. Random weights magnify fp16's rounding: PyTorch's own half precision is 1e-2 away here.
The gate of `build` holds trained weights to 5e-3."""
IMAGES = {"1 of 48x64": (1, 48, 64), "3 of 37x53": (3, 37, 53), "2 of 5x1": (2, 5, 1), "1 of 1x1": (1, 1, 1)}
DATA_STAGES = ("vae_encoder", "unet", "vae_decoder")
WEIGHTS = ("vae_weights", "unet_weights")
FIXES: tuple[ColorFix, ...] = get_args(ColorFix)


class InTorch:
    """Stands for a session: runs a stage's module as it is, to test what needs no graph."""

    def __init__(self, graph: StageGraph) -> None:
        self.graph = graph

    @torch.no_grad()
    def run(self, inputs: dict[str, Array]) -> dict[str, Tensor]:
        """Outputs by name."""
        outputs = self.graph.module(*(torch.from_numpy(value) for value in inputs.values()))
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        return dict(zip((spec.name for spec in self.graph.outputs), found, strict=True))


@dataclass
class Exported:
    """The stages of one network under one set of options, open in ONNX Runtime or as they are in PyTorch."""

    network: S3Diff
    options: GraphOptions
    folder: Path
    graphs: dict[str, StageGraph] = field(default_factory=dict)
    sessions: dict[str, Any] = field(default_factory=dict)

    def export(self, wanted: Sequence[str] | None = None) -> Exported:
        """Write and open the stages; None takes all."""
        engine = OnnxEngine(threads=1)
        for graph in stage_graphs(self.network, self.options, [BIN], scales=[SCALE]):
            if wanted is None or graph.stage in wanted:
                path = self.folder / f"{graph.stage}.onnx"
                export_onnx(graph, path)
                stage = Stage(inputs=graph.inputs, outputs=graph.outputs, graphs={SHARED: path.name})
                self.graphs[graph.stage] = graph
                self.sessions[graph.stage] = engine.open(path, stage)
        return self

    def in_torch(self) -> Exported:
        """Keep the stages as modules."""
        for graph in stage_graphs(self.network, self.options, [BIN], scales=[SCALE]):
            self.graphs[graph.stage], self.sessions[graph.stage] = graph, InTorch(graph)
        return self

    def inputs(self, stage: str) -> list[str]:
        """The names of a stage's inputs, in order."""
        return [spec.name for spec in self.graphs[stage].inputs]

    def __call__(self, stage: str, given: dict[str, Any], **more: Any) -> dict[str, Array]:  # noqa: ANN401
        """Run a stage on what it takes of the given tensors; checks types and shapes against its spec."""
        named = {**given, **more}
        for maker in WEIGHTS:
            if any(kind_of(name) == maker for name in self.inputs(stage)):
                named |= self(maker, named)
        feeds = {name: np.asarray(named[name]) for name in self.inputs(stage)}
        outputs = {name: np.asarray(value) for name, value in self.sessions[stage].run(feeds).items()}
        sizes: dict[str, int] = {}
        for spec, value in [(spec, outputs[spec.name]) for spec in self.graphs[stage].outputs]:
            assert value.dtype == spec.dtype
            for axis, size in zip(spec.shape, value.shape, strict=True):
                assert size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
        return outputs


Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a network once for each set of options."""
    made: dict[tuple[int, GraphOptions], Exported] = {}

    def make(network: S3Diff, only: Sequence[str] | None = None, **options: Any) -> Exported:  # noqa: ANN401
        key = (id(network), GraphOptions(**options))
        if key not in made:
            made[key] = Exported(network, key[1], tmp_path_factory.mktemp("onnx")).export(only)
        return made[key]

    return make


@torch.no_grad()
def truth_of(network: S3Diff, images: Array, degradation: Tensor) -> dict[str, Tensor]:
    """Inputs and outputs of all stages, by the names of the graphs; one degradation or one per image."""
    batch = torch.stack([from_uint8(image) for image in images])
    each = degradation.expand(len(batch), -1)
    modulation = network.modulation(each)
    texts = [network.config.positive_prompt, network.config.negative_prompt]
    prompts = network.encode_prompts(texts)
    latent = network.encode(network.prepare(batch), modulation).latent
    positive, negative = network.predict_noise_pair(latent, prompts[:1], prompts[1:], modulation)
    x0 = network.one_step.denoise(latent, negative + 1.07 * (positive - negative))
    decoded = network.decode(x0, modulation)
    height, width = (4 * side for side in batch.shape[-2:])
    low = bicubic_upscale(batch).clamp(0, 1)
    upscaled = {
        f"upscaled_{fix}": (correct_color((decoded[..., :height, :width] + 1) / 2, low, fix) * 255)
        .permute(0, 2, 3, 1)
        .round()
        for fix in FIXES
    }
    matrices = {
        f"{part}_modulation": matrix[: len(degradation)]
        for part, matrix in (("vae", modulation.vae), ("unet", modulation.unet))
        if matrix is not None
    }
    return {
        "image": torch.from_numpy(images),
        "enlarged": low,
        "degradation": network.estimator(batch),
        "applied": degradation,
        "tokens": network.tokenize(texts),
        "prompts": prompts,
        "latent": latent,
        "epsilon_positive": positive,
        "epsilon_negative": negative,
        "x0": x0,
        "decoded": decoded,
        **matrices,
        **upscaled,
    }


def degradations(mode: str, images: int) -> Tensor:
    """A mixed batch for `dynamic`, one point for the others."""
    if mode != "dynamic":
        return DEGRADATIONS[:1]
    return DEGRADATIONS[torch.arange(images) % 2]


def epsilon_error(exported: Exported, truth: dict[str, Tensor], prompt: str, **more: Any) -> float:  # noqa: ANN401
    """Relative error of the noise behind the x0 that the UNet's stage gives at guidance 1 or 0."""
    scale = np.float32(1 if prompt == "positive" else 0)
    x0 = exported("unet", truth, guidance=scale, **more)["x0"].astype(np.float64)
    alpha = exported.network.one_step.alpha_cumprod
    epsilon = (truth["latent"].double().numpy() - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)
    return error(epsilon, truth[f"epsilon_{prompt}"])


def assert_stages_agree(exported: Exported, truth: dict[str, Tensor]) -> None:
    """Every stage on PyTorch's own inputs."""
    limit = LIMITS[exported.options.precision]
    for prompt in ("positive", "negative"):
        assert epsilon_error(exported, truth, prompt) <= limit, prompt
    for stage, name in (("vae_encoder", "latent"), ("vae_decoder", "decoded")):
        assert error(exported(stage, truth)[name], truth[name]) <= limit, stage
    x0 = exported("unet", truth, guidance=np.float32(1.07))["x0"]
    assert error(x0, truth["x0"]) <= 2 * limit


def assert_fp32_stages_agree(exported: Exported, truth: dict[str, Tensor]) -> None:
    """The stages that are fp32 whatever the precision."""
    assert error(exported("estimator", truth)["degradation"], truth["degradation"]) <= 1e-4
    assert error(exported("enlarge", truth)["enlarged"], truth["enlarged"]) <= 1e-5
    for fix in FIXES:
        upscaled = exported(f"finish_{fix}", truth)["upscaled"]
        assert np.abs(upscaled - truth[f"upscaled_{fix}"].numpy()).max() <= 1, fix
    if "modulation" in exported.graphs:
        found = exported("modulation", {"degradation": truth["applied"]})
        for name, value in found.items():
            assert error(value, truth[name]) <= 1e-4


QUICK = [
    ("f4", "merged", "fp32"),
    ("f4", "dynamic", "fp32"),
    ("f4", "fused", "fp16"),
    ("sd", "dynamic", "fp32"),
]
SLOW = [("f4", "merged", "fp16"), ("f4", "dynamic", "fp16"), ("f4", "fused", "fp32"), ("sd", "fused", "fp32")]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("layout", "mode", "precision"), CASES)
def test_every_stage_at_any_batch_and_size(
    networks: dict[str, S3Diff], export: Export, layout: str, mode: str, precision: str
) -> None:
    exported = export(networks[layout], lora_mode=mode, precision=precision)
    for seed, size in enumerate(IMAGES.values()):
        truth = truth_of(exported.network, photographs(*size, seed), degradations(mode, size[0]))
        assert_stages_agree(exported, truth)
        assert_fp32_stages_agree(exported, truth)


@pytest.mark.parametrize(("mode", "precision"), [("dynamic", "fp32"), ("fused", "fp16"), ("merged", "fp32")])
def test_the_graphs_are_valid_clean_and_typed(
    networks: dict[str, S3Diff], export: Export, mode: str, precision: str
) -> None:
    exported = export(networks["f4"], lora_mode=mode, precision=precision)
    for stage in exported.graphs:
        path = exported.folder / f"{stage}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        assert model.opset_import[0].version >= 18
        assert not [node for node in model.graph.node if node.op_type == "Identity"], stage
        used = {name for node in model.graph.node for name in node.input}
        used |= {output.name for output in model.graph.output}
        assert not [node.name for node in model.graph.node if not used & set(node.output)], stage
        assert {tensor.name for tensor in model.graph.initializer} <= used, stage
        types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
        half = onnx.TensorProto.FLOAT16
        assert (half in types) == (precision == "fp16" and stage in (*DATA_STAGES, *WEIGHTS)), stage
        locations = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert locations <= {f"{stage}.onnx.data"}
    assert {path.suffix for path in exported.folder.iterdir()} == {".onnx", ".data"}
    assert ("modulation" in exported.graphs) == (mode != "merged")
    tensors = {name for stage in exported.graphs for name in exported.inputs(stage)}
    assert ("unet_modulation" in tensors) == (mode != "merged")


def test_fused_takes_one_degradation_for_any_batch(networks: dict[str, S3Diff], export: Export) -> None:
    exported = export(networks["f4"], lora_mode="fused", precision="fp16")
    shapes = {spec.name: spec.shape[0] for stage in WEIGHTS for spec in exported.graphs[stage].inputs}
    assert shapes == {"vae_modulation": 1, "unet_modulation": 1}
    for maker, reader in zip(WEIGHTS, ("vae_encoder", "unet"), strict=True):
        weights = exported.graphs[maker].outputs
        assert set(weights) <= set(exported.graphs[reader].inputs)
        assert all(
            isinstance(side, int) and spec.dtype == "float16" for spec in weights for side in spec.shape
        )
    dynamic = export(networks["f4"], lora_mode="dynamic", precision="fp32")
    assert next(s for s in dynamic.graphs["unet"].inputs if s.name == "unet_modulation").shape[0] == "batch"


def test_merged_graphs_hold_the_degradation_of_their_bin(networks: dict[str, S3Diff], export: Export) -> None:
    exported = export(networks["f4"], lora_mode="merged", precision="fp32")
    elsewhere = truth_of(exported.network, photographs(1, 16, 24), DEGRADATIONS[1:])
    assert epsilon_error(exported, elsewhere, "positive") > 1e-2
    assert error(exported("vae_encoder", elsewhere)["latent"], elsewhere["latent"]) > 1e-3


def test_prompts_of_the_text_encoder_guide_the_unet(networks: dict[str, S3Diff], export: Export) -> None:
    network = networks["f4"]
    only = ("unet", "text_encoder")
    exported = export(network, only, lora_mode="dynamic", precision="fp32", prompts="runtime")
    truth = truth_of(network, photographs(2, 16, 24), DEGRADATIONS)
    prompts = exported("text_encoder", truth)["prompts"]
    assert error(prompts, truth["prompts"]) <= 1e-4
    assert epsilon_error(exported, truth, "negative", prompts=prompts) <= 1e-4
    swapped = prompts[::-1].copy()
    assert epsilon_error(exported, truth, "negative", prompts=swapped) > 1e-3


@pytest.mark.parametrize("prompts", ["folded", "runtime"])
def test_without_guidance_the_positive_prompt_alone(
    networks: dict[str, S3Diff], tmp_path: Path, prompts: str
) -> None:
    network = networks["f4"]
    options = GraphOptions("merged", "fp32", guidance="off", prompts=prompts)  # type: ignore[arg-type]
    exported = Exported(network, options, tmp_path).in_torch()
    assert "guidance" not in exported.inputs("unet")
    truth = truth_of(network, photographs(2, 16, 24), DEGRADATIONS[:1])
    assert epsilon_error(exported, truth, "positive", prompts=truth["prompts"][:1]) <= 1e-4


VARIANTS: dict[str, tuple[NetworkConfig, str]] = {
    "LoRA in the decoder, dynamic": (
        replace(SMALL_RANKS, vae_targets=ENCODER_AND_DECODER_TARGETS),
        "dynamic",
    ),
    "LoRA in the decoder, merged": (replace(SMALL_RANKS, vae_targets=ENCODER_AND_DECODER_TARGETS), "merged"),
    "no LoRA in the VAE": (replace(SMALL_RANKS, rank_vae=0), "fused"),
    "no LoRA in the UNet": (replace(SMALL_RANKS, rank_unet=0), "dynamic"),
    "no LoRA, merged": (replace(SMALL_RANKS, rank_unet=0, rank_vae=0), "merged"),
    "no modulation": (replace(SMALL_RANKS, modulation="none"), "dynamic"),
    "no modulation, merged": (replace(SMALL_RANKS, modulation="none"), "merged"),
    "shared modulation": (replace(SMALL_RANKS, modulation="shared"), "fused"),
    "the other order of the scores": (replace(SMALL_RANKS, degradation_axes=("noise", "blur")), "merged"),
}


def network_of(bases: dict[str, BaseModel], variant: str) -> tuple[S3Diff, GraphOptions]:
    """Make a network of another configuration, and options to export it."""
    config, mode = VARIANTS[variant]
    return tiny_network(bases["f4"], config), GraphOptions(mode, "fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_networks_of_the_ablations(bases: dict[str, BaseModel], variant: str, tmp_path: Path) -> None:
    network, options = network_of(bases, variant)
    stages = Exported(network, options, tmp_path).in_torch()
    config, mode = network.config, options.lora_mode
    images = 2 if mode == "dynamic" else 1
    batch = degradations(mode, images)
    if config.degradation_axes == ("noise", "blur"):
        batch = batch.flip(1)
    assert_stages_agree(stages, truth_of(network, photographs(images, 16, 24), batch))

    readers = (stage for stage in (*DATA_STAGES, *WEIGHTS) if stage in stages.graphs)
    asked = {name for stage in readers for name in stages.inputs(stage) if name.endswith("_modulation")}
    modulated = mode != "merged" and config.modulation != "none"
    ranks = {"vae_modulation": config.rank_vae, "unet_modulation": config.rank_unet}
    assert asked == {name for name, rank in ranks.items() if rank and modulated}
    in_decoder = "vae_modulation" in stages.inputs("vae_decoder")
    assert in_decoder == (modulated and config.vae_targets == ENCODER_AND_DECODER_TARGETS)
    assert bool(asked) == ("modulation" in stages.graphs)


def test_a_decoder_with_lora_as_a_graph(bases: dict[str, BaseModel], tmp_path: Path) -> None:
    network, options = network_of(bases, "LoRA in the decoder, dynamic")
    exported = Exported(network, options, tmp_path).export(("vae_decoder",))
    for size in ((1, 16, 24), (3, 37, 53)):
        truth = truth_of(network, photographs(*size), degradations("dynamic", size[0]))
        assert error(exported("vae_decoder", truth)["decoded"], truth["decoded"]) <= 1e-4
