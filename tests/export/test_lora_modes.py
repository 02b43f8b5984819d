"""The one-step UNet under each LoRA mode against the network, in PyTorch, before any graph is made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from tests.export.models import DEGRADATIONS, error, tiny_network
from tests.training.small import SMALL_RANKS
from torch import Tensor, nn

from s3diff_export.graphs import fused
from s3diff_export.graphs.attention import PlainAttention, query_scales
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.stages import layers_of_mode, stage_graphs
from s3diff_export.graphs.unet import OneStepUNet
from s3diff_runtime.bundle.manifest import Bin
from s3diff_runtime.errors import RequestError
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.vocabulary import Precision
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import UNET_TARGETS, NetworkConfig
from s3diff_training.network.lora import ModulatedLoRA, ModulationSlot, Slot, lora_layers
from s3diff_training.network.model import S3Diff
from s3diff_training.network.modulation import Modulation

MODES = tuple(LORA_MODES)
PRECISIONS = [pytest.param((torch.float32, 1e-5), id="fp32"), pytest.param((torch.float64, 1e-12), id="fp64")]
HERE = Bin(name="b", noise=0.2, blur=0.4)
OTHER_PROMPTS = ["a lighthouse in the rain", "blur"]


@pytest.fixture(scope="module")
def exact_networks(networks: dict[str, S3Diff]) -> dict[int, S3Diff]:
    """Return the float64 twin of every network, by the identity of the float32 one."""
    return {id(network): copy.deepcopy(network).double() for network in networks.values()}


@pytest.fixture(params=PRECISIONS)
def case(
    request: pytest.FixtureRequest, network: S3Diff, exact_networks: dict[int, S3Diff]
) -> tuple[S3Diff, torch.dtype, float]:
    """Return a network, its dtype, and the error that the dtype allows."""
    dtype, limit = request.param
    return (exact_networks[id(network)] if dtype == torch.float64 else network), dtype, limit


def inputs(network: S3Diff, dtype: torch.dtype, images: int) -> tuple[Tensor, Tensor, Modulation]:
    """Latents, the checkpoint's two prompts, and the matrices of a different degradation for each image."""
    multiple = network.multiple // network.vae_factor
    channels = network.vae.config.latent_channels
    latent = torch.randn(images, channels, multiple, 2 * multiple, generator=torch.Generator().manual_seed(3))
    prompts = network.encode_prompts([network.config.positive_prompt, network.config.negative_prompt])
    embedding = network.modulation.embedding
    assert embedding is not None
    hidden = embedding(DEGRADATIONS[:images].to(dtype))  # the network itself would round the scores to fp32
    heads = (network.modulation.vae, network.modulation.unet)
    return latent.to(dtype), prompts, Modulation(*(head(hidden) if head else None for head in heads))


@torch.no_grad()
def one_step(
    network: S3Diff, mode: LoraMode, dtype: torch.dtype, prompts: Tensor | None, modulation: Tensor
) -> tuple[OneStepUNet, Callable[[Tensor], AbstractContextManager[None]]]:
    """Make the UNet under test, merged at the first image's matrices; and what holds those of a call."""
    slot = ModulationSlot()
    holding: Callable[[Tensor], AbstractContextManager[None]] = slot.holding
    if LORA_MODES[mode].gives_weights:
        layers, weight_slot = lora_layers(network.unet), Slot[Mapping[str, Tensor]]()
        make = fused.make_layers(weight_slot, {layer: name for name, layer in layers.items()}, dtype)
        weights = fused.LayerWeights(tuple(layers.values()), query_scales(network.unet), dtype)
        holding = lambda matrices: weight_slot.holding(dict(zip(layers, weights(matrices), strict=True)))  # noqa: E731
    else:
        with slot.holding(modulation[:1]):
            make = layers_of_mode(mode)(slot, dtype)
    by_image = slot if mode == "dynamic" else None
    unet = OneStepUNet(network.unet, network.one_step.timestep, make, by_image, dtype, prompts).eval()
    return unet, holding


@pytest.mark.parametrize("runtime_prompts", [False, True], ids=["folded", "runtime"])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_both_prompts_of_a_batch(
    case: tuple[S3Diff, torch.dtype, float], mode: LoraMode, runtime_prompts: bool
) -> None:
    network, dtype, limit = case
    latent, prompts, modulation = inputs(network, dtype, images=2)
    assert modulation.unet is not None
    matrices = modulation.unet
    if mode != "dynamic":  # one degradation for the whole batch
        matrices = matrices[:1]
        modulation = Modulation(None, matrices.expand(2, -1, -1, -1))
    truth = torch.cat(network.predict_noise_pair(latent, prompts[:1], prompts[1:], modulation))

    unet, holding = one_step(network, mode, dtype, None if runtime_prompts else prompts, matrices)
    with holding(matrices):
        found = unet(latent, prompts if runtime_prompts else None)
    assert error(found, truth) <= limit
    assert error(truth[:2], truth[2:]) > 100 * limit  # the prompts differ, so their order shows
    assert error(truth[:1], truth[1:2]) > 100 * limit


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_one_prompt(case: tuple[S3Diff, torch.dtype, float], mode: LoraMode) -> None:
    network, dtype, limit = case
    latent, prompts, modulation = inputs(network, dtype, images=1)
    assert modulation.unet is not None
    unet, holding = one_step(network, mode, dtype, prompts[:1], modulation.unet)
    with holding(modulation.unet):
        found = unet(latent)
    assert error(found, network.predict_noise(latent, prompts[:1], modulation)) <= limit


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_runtime_prompts_may_change(network: S3Diff, mode: LoraMode) -> None:
    latent, prompts, modulation = inputs(network, torch.float32, images=1)
    assert modulation.unet is not None
    unet, holding = one_step(network, mode, torch.float32, None, modulation.unet)
    other = network.encode_prompts(OTHER_PROMPTS)
    results = []
    for given in (prompts, other):
        truth = torch.cat(network.predict_noise_pair(latent, given[:1], given[1:], modulation))
        with holding(modulation.unet):
            results.append(unet(latent, given))
        assert error(results[-1], truth) <= 1e-5
    assert error(*results) > 1e-3


@torch.no_grad()
def test_merged_is_one_degradation_and_the_others_are_any(network: S3Diff) -> None:
    latent, prompts, modulation = inputs(network, torch.float32, images=2)
    assert modulation.unet is not None
    here, there = (Modulation(None, modulation.unet[i : i + 1]) for i in range(2))
    truth = [network.predict_noise(latent[:1], prompts[:1], one) for one in (here, there)]
    merged, _ = one_step(network, "merged", torch.float32, prompts[:1], here.unet)  # type: ignore[arg-type]
    assert error(merged(latent[:1]), truth[0]) <= 1e-5
    assert error(merged(latent[:1]), truth[1]) > 1e-3
    exact: tuple[LoraMode, ...] = ("dynamic", "fused")
    for mode in exact:
        unet, holding = one_step(network, mode, torch.float32, prompts[:1], modulation.unet)
        for one, expected in zip((here, there), truth, strict=True):
            assert one.unet is not None
            with holding(one.unet):
                assert error(unet(latent[:1]), expected) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_what_the_prompts_share_runs_once(networks: dict[str, S3Diff], mode: LoraMode) -> None:
    """Until the first cross-attention the batch is that of the images, afterwards that times the prompts."""
    network = networks["f4"]
    latent, prompts, modulation = inputs(network, torch.float32, images=1)
    assert modulation.unet is not None
    unet, holding = one_step(network, mode, torch.float32, prompts, modulation.unet)
    batches: dict[str, int] = {}
    handles = []
    for name in ("conv_in", "down_blocks.0", "down_blocks.1.resnets.0", "mid_block.resnets.0", "conv_out"):

        def note(
            module: nn.Module, given: object, result: Tensor | tuple[Tensor, ...], name: str = name
        ) -> None:
            batches[name] = (result if isinstance(result, Tensor) else result[0]).shape[0]

        handles.append(unet.get_submodule(name).register_forward_hook(note))
    with holding(modulation.unet):
        unet(latent)
    for handle in handles:  # a twin shares its hooks with the original, which other tests use
        handle.remove()
    assert batches == {
        "conv_in": 1,
        "down_blocks.0": 1,
        "down_blocks.1.resnets.0": 1,
        "mid_block.resnets.0": 2,
        "conv_out": 2,
    }


def test_folded_prompts_leave_no_keys_to_compute(networks: dict[str, S3Diff]) -> None:
    network = networks["sd"]
    _, prompts, modulation = inputs(network, torch.float32, images=1)
    assert modulation.unet is not None
    folded = {
        mode: [
            module.folded
            for name, module in one_step(network, mode, torch.float32, prompts, modulation.unet)[
                0
            ].named_modules()
            if isinstance(module, PlainAttention) and name.endswith("attn2")
        ]
        for mode in MODES
    }
    assert folded["merged"]
    assert all(folded["merged"])
    assert not any(folded["dynamic"] + folded["fused"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@torch.no_grad()
def test_the_network_stays_as_it_was(network: S3Diff, mode: LoraMode, precision: Precision) -> None:
    """Bit for bit, module for module: it serves as the truth afterwards."""
    tensors = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    modules = {name: id(module) for name, module in network.named_modules()}
    latent, prompts, modulation = inputs(network, torch.float32, images=1)
    before = network.predict_noise(latent, prompts[:1], modulation)
    weights: tuple[Tensor, ...] = ()
    for graph in stage_graphs(network, GraphOptions(mode, precision), [HERE]):
        if graph.stage == "unet_weights" and precision == "fp32":
            weights = graph.module(modulation.unet)
        if graph.stage == "unet" and precision == "fp32":
            matrices = [] if weights or mode == "merged" else [modulation.unet]
            graph.module(latent, torch.tensor(1.07), *matrices, *weights)
    assert {name: id(module) for name, module in network.named_modules()} == modules
    for name, tensor in network.state_dict().items():
        pointer, kept = tensors[name]
        assert tensor.data_ptr() == pointer, name
        assert torch.equal(tensor, kept), name
    assert torch.equal(network.predict_noise(latent, prompts[:1], modulation), before)


def test_stages_share_their_memory_with_the_network(networks: dict[str, S3Diff]) -> None:
    """A full-size network is exported without a second copy of its weights."""
    network = networks["sd"]
    own = {parameter.data_ptr() for parameter in network.parameters()}
    for graph in stage_graphs(network, GraphOptions("dynamic", "fp32")):
        copied = [
            name
            for name, parameter in graph.module.named_parameters()
            if parameter.data_ptr() not in own
            and not (name.endswith("conv1.base_layer.bias") or ".to_q." in name)
        ]
        assert copied == [], graph.stage


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"start_step": 200}, "start_step"),
        ({"skip_connections": True}, "skip connections"),
        ({"unet_targets": (*UNET_TARGETS, "time_emb_proj")}, "time path"),
        ({"unet_targets": (*UNET_TARGETS, "linear_1")}, "time path"),
    ],
    ids=["starts from noise", "skips", "LoRA on a block's time", "LoRA on the time embedding"],
)
def test_networks_that_no_graph_can_hold_are_refused(
    bases: dict[str, BaseModel], change: dict[str, object], named: str
) -> None:
    config = replace(SMALL_RANKS, **change)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=named):
        list(stage_graphs(tiny_network(bases["sd"], config), GraphOptions("dynamic")))


def test_all_that_is_wrong_is_said_at_once(bases: dict[str, BaseModel]) -> None:
    config = NetworkConfig(rank_unet=2, rank_vae=2, start_step=1, skip_connections=True)
    with pytest.raises(RequestError, match=r"start_step.*skip connections"):
        list(stage_graphs(tiny_network(bases["f4"], config), GraphOptions()))
    with pytest.raises(RequestError, match=r"lora_mode is 'x'.*precision is 'int8'"):
        GraphOptions("x", "int8")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="one bin"):
        list(stage_graphs(tiny_network(bases["f4"]), GraphOptions("merged")))


def test_a_layer_without_its_matrices_says_so(networks: dict[str, S3Diff]) -> None:
    lora = next(module for module in networks["f4"].unet.modules() if isinstance(module, ModulatedLoRA))
    layer = fused.make_layers(Slot(), {lora: "it"}, torch.float32)(lora)
    assert isinstance(layer, nn.Module)
    with pytest.raises(ValueError, match="without its weight"):
        layer(torch.zeros(1, 1, 1, 1))
