"""Stages of other base models than the two usual ones: computed exactly, or refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tests.export.models import DEGRADATIONS, error, tiny_network
from tests.training.small import SMALL_RANKS
from torch import nn

from s3diff_export.graphs.onnx_export import export_onnx
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.stages import layers_of_mode, stage_graphs
from s3diff_export.graphs.unet import OneStepUNet
from s3diff_runtime.bundle.manifest import Bin
from s3diff_runtime.errors import RequestError
from s3diff_runtime.lora_modes import LoraMode
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.lora import ModulationSlot
from s3diff_training.network.model import S3Diff
from s3diff_training.network.modulation import Modulation

BIN = Bin(name="here", noise=0.9, blur=0.15)
"""At the first of `DEGRADATIONS`, whose axes are (blur, noise)."""
MODES: tuple[LoraMode, ...] = ("merged", "dynamic", "fused")
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

FOLLOWED: dict[str, dict[str, Any]] = {
    "convolutions around the attention, as in SD 1": {"use_linear_projection": False},
    "two layers in a block": {"layers_per_block": 2},
    "two layers in a transformer": {"transformer_layers_per_block": 2},
    "attention in the middle only": {
        "down_block_types": ("DownBlock2D",) * 4,
        "up_block_types": ("UpBlock2D",) * 4,
    },
    "self-attention first": {"down_block_types": ("AttnDownBlock2D", CROSS_DOWN, CROSS_DOWN, "DownBlock2D")},
    "three levels": {
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": (1, 2, 3),
        "down_block_types": ("DownBlock2D", CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", CROSS_UP, "UpBlock2D"),
    },
    "one group in the norms": {"norm_num_groups": 1},
    "another order of the time embedding": {"flip_sin_to_cos": False, "freq_shift": 1},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "moves its input": ({"center_input_sample": True}, "center_input_sample"),
    "bends the time embedding": ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn"),
    "another activation": ({"act_fn": "gelu"}, "act_fn gelu"),
    "scales by time": ({"resnet_time_scale_shift": "scale_shift"}, "time path"),
    "no middle": ({"mid_block_type": None}, "no middle block"),
    "attention without transformers": (
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        "outside of transformers",
    ),
    "attention on the way up only": (
        {"down_block_types": ("DownBlock2D",) * 4, "mid_block_type": "UNetMidBlock2D"},
        "no cross-attention before the up blocks",
    ),
}


def with_unet(base: BaseModel, **change: Any) -> BaseModel:  # noqa: ANN401
    """Give `base` another UNet, whose norms are random too."""
    settings = {name: value for name, value in base.unet.config.items() if not name.startswith("_")}
    return replace(base, unet=randomised(UNet2DConditionModel(**(settings | change))))


def with_vae(base: BaseModel, **change: Any) -> BaseModel:  # noqa: ANN401
    """Give `base` another VAE, whose norms are random too."""
    settings = {name: value for name, value in base.vae.config.items() if not name.startswith("_")}
    return replace(base, vae=randomised(AutoencoderKL(**(settings | change))))


@torch.no_grad()
def randomised(model: Any) -> Any:  # noqa: ANN401
    """Move the norms off ones and zeros."""
    for module in model.eval().modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
    return model


@pytest.mark.parametrize("change", FOLLOWED.values(), ids=FOLLOWED)
@torch.no_grad()
def test_other_unets_are_followed_exactly(bases: dict[str, BaseModel], change: dict[str, Any]) -> None:
    """Whatever runs before the first cross-attention runs once for both prompts, and nothing changes."""
    network = tiny_network(with_unet(bases["sd"], **change))
    prompts = network.encode_prompts(["a lighthouse", "blur"]).double()
    matrices = network.modulation(DEGRADATIONS).unet
    assert matrices is not None
    matrices = matrices.double()
    network.double()
    latent = torch.randn(2, 4, 8, 16, dtype=torch.float64)
    truth = torch.cat(
        network.predict_noise_pair(latent, prompts[:1], prompts[1:], Modulation(None, matrices))
    )

    slot = ModulationSlot()
    make = layers_of_mode("dynamic")(slot, torch.float64)
    unet = OneStepUNet(network.unet, network.one_step.timestep, make, slot, torch.float64, prompts).eval()
    with slot.holding(matrices):
        found = unet(latent)
    assert error(found, truth) <= 1e-12
    assert error(truth[:2], truth[2:]) > 1e-6  # the prompts matter


@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_unets_of_another_kind_are_refused(
    bases: dict[str, BaseModel], change: dict[str, Any], named: str
) -> None:
    network = tiny_network(with_unet(bases["sd"], **change))
    with pytest.raises(RequestError, match=named):
        list(stage_graphs(network, GraphOptions("dynamic", "fp32")))


VAES: dict[str, tuple[dict[str, Any], NetworkConfig]] = {
    "no quantising convolutions": ({"use_quant_conv": False, "use_post_quant_conv": False}, SMALL_RANKS),
    "no attention in the middle": ({"mid_block_add_attention": False}, SMALL_RANKS),
    "one group in the norms": ({"norm_num_groups": 1}, SMALL_RANKS),
    "LoRA on the quantising convolutions alone": ({}, replace(SMALL_RANKS, vae_targets="(post_)?quant_conv")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("change", "config"), VAES.values(), ids=VAES)
@torch.no_grad()
def test_other_vaes(
    bases: dict[str, BaseModel], change: dict[str, Any], config: NetworkConfig, mode: LoraMode
) -> None:
    network = tiny_network(with_vae(bases["f4"], **change), config)
    points = DEGRADATIONS if mode == "dynamic" else DEGRADATIONS[:1].expand(2, -1)
    modulation = network.modulation(points)
    assert modulation.vae is not None
    matrices = modulation.vae if mode == "dynamic" else modulation.vae[:1]
    image = torch.randint(0, 256, (2, 13, 22, 3), dtype=torch.uint8)
    enlarged = network.enlarge(image.permute(0, 3, 1, 2) / 255)
    latent = network.encode(network.pad(enlarged), modulation).latent
    decoded = network.decode(latent, modulation)
    for name, given, truth in (("vae_encoder", enlarged, latent), ("vae_decoder", latent, decoded)):
        graphs = {graph.stage: graph for graph in stage_graphs(network, GraphOptions(mode, "fp32"), [BIN])}
        graph, extra = graphs[name], {"vae_modulation": matrices}
        if weights := graphs.get("vae_weights"):
            extra |= dict(zip([spec.name for spec in weights.outputs], weights.module(matrices), strict=True))
        found = graph.module(given, *(extra[spec.name] for spec in graph.inputs[1:]))
        if name == "vae_decoder":
            found, contrast = found
            deviations = (truth - truth.mean((1, 2, 3), True)).abs().mean((1, 2, 3))
            assert (contrast > 0.999 * deviations).all()  # of what was not clamped yet
            assert (contrast < 2 * deviations).all()
        assert error(found, truth) <= 1e-5, name


def test_bytes_meet_nothing_but_casts(networks: dict[str, S3Diff], tmp_path: Path) -> None:
    """TensorRT takes uint8 only straight into a Cast or straight out of one, and einsum only since 10.12."""
    byte = onnx.TensorProto.UINT8
    network = networks["f4"]
    for graph in stage_graphs(network, GraphOptions("dynamic", "fp16")):
        if graph.stage not in ("estimator", "enlarge", "finish_wavelet", "finish_adain", "finish_none"):
            continue
        path = tmp_path / f"{graph.stage}.onnx"
        export_onnx(graph, path)
        model = onnx.load(str(path), load_external_data=False).graph
        edges = {
            value.name for value in (*model.input, *model.output) if value.type.tensor_type.elem_type == byte
        }
        assert edges, graph.stage
        beside = [node for node in model.node if edges & {*node.input, *node.output}]
        assert {node.op_type for node in beside} == {"Cast"}, graph.stage
        to_bytes = [
            node
            for node in model.node
            if node.op_type == "Cast" and any(a.name == "to" and a.i == byte for a in node.attribute)
        ]
        assert all(edges & set(node.output) for node in to_bytes), graph.stage
        assert "Einsum" not in {node.op_type for node in model.node}, graph.stage
