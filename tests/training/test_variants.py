"""The paper's variants, as options of one class: each computes what it says and survives a checkpoint.

The measure is a plain diffusers model whose weights have the updates folded in, `W + s B C^T A`, run by the
formulas of the paper; the folding and the formulas are written here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.small import (
    SMALL_RANKS,
    block_index,
    fresh,
    lora_names,
    random_checkpoint,
    random_photograph,
    relative,
)
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError
from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import build_network, read_checkpoint, write_checkpoint
from s3diff_training.network.base import BaseModel
from s3diff_training.network.color import correct_color
from s3diff_training.network.config import DECODER_TARGETS, ENCODER_AND_DECODER_TARGETS, NetworkConfig
from s3diff_training.network.lora import lora_layers
from s3diff_training.network.model import S3Diff
from s3diff_training.network.modulation import Modulation

LEVELS = 4
SCALING_FACTOR = 0.18215
VARIANTS: dict[str, dict[str, Any]] = {
    "released": {},
    "no LoRA at all": {"rank_unet": 0, "rank_vae": 0},
    "UNet only (Table 4)": {"rank_vae": 0},
    "encoder only": {"rank_unet": 0},
    "decoder too (Table 4)": {"vae_targets": ENCODER_AND_DECODER_TARGETS},
    "decoder instead": {"vae_targets": DECODER_TARGETS},
    "own choice of layers": {"vae_targets": r".*\.resnets\.\d+\.conv1$", "unet_targets": ("to_q", "conv2")},
    "skip connections (Table 4)": {"skip_connections": True},
    "skips and decoder LoRA": {"skip_connections": True, "vae_targets": ENCODER_AND_DECODER_TARGETS},
    "shared modulation (Table 5)": {"modulation": "shared"},
    "no modulation (Table 5)": {"modulation": "none"},
    "ranks (Table 7)": {"rank_unet": 2, "rank_vae": 7},
    "another alpha": {"lora_alpha": 3.0},
    "start step 250 (Table 8)": {"start_step": 250},
    "start step 500 (Table 8)": {"start_step": 500},
    "other prompts and guidance": {"positive_prompt": "sharp", "negative_prompt": "dull", "guidance": 1.9},
    "positive prompt alone": {"guidance": 1.0},
    "few frequencies": {"fourier_features": 5},
    "axes the other way": {"degradation_axes": ("noise", "blur")},
}


@dataclass(frozen=True)
class Variant:
    """A network of a variant, with what it was made of."""

    base: BaseModel
    checkpoint: Checkpoint
    network: S3Diff


def make(base: BaseModel, **options: Any) -> Variant:  # noqa: ANN401
    checkpoint = random_checkpoint(base, SMALL_RANKS.but(**options), seed=5)
    return Variant(base, checkpoint, build_network(fresh(base), checkpoint))


@pytest.fixture(scope="module")
def lr() -> Tensor:
    return random_photograph(1, 16, 16, seed=8)


@pytest.fixture(scope="module")
def released(sd_base: BaseModel) -> Variant:
    return make(sd_base)


# --- what the formulas give -----------------------------------------------------------------------


def folded(variant: Variant, part: str, modulation: Tensor | None) -> nn.Module:
    """Return the base's `unet` or `vae` with every update of one image added to its weight."""
    model: nn.Module = copy.deepcopy(getattr(variant.base, part))
    config, tensors = variant.checkpoint.config, variant.checkpoint.tensors
    for name in lora_names(tensors):
        if not name.startswith(f"{part}."):
            continue
        a, b = (tensors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in "AB")
        rank = len(a)
        c = torch.eye(rank) if modulation is None else modulation[0, block_index(name, LEVELS)]
        weight = model.get_parameter(f"{name.removeprefix(f'{part}.')}.weight")
        update = config.lora_alpha / rank * (b @ c.double().T @ a)
        weight.data += update.reshape(weight.shape).float()
    if part == "unet" and config.rank_unet:
        own = {side: tensors[f"unet.conv_in.{side}"] for side in ("weight", "bias")}
        model.get_submodule("conv_in").load_state_dict(own)
    return model


@torch.no_grad()
def by_the_formulas(variant: Variant, lr: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Return x0 and the uncorrected image for one low-resolution image."""
    config, network = variant.checkpoint.config, variant.network
    modulation = network.modulation(network.estimator(lr))
    vae: Any = folded(variant, "vae", modulation.vae)
    unet: Any = folded(variant, "unet", modulation.unet)
    if config.skip_connections:
        connect(vae, variant.checkpoint)

    mean, log_variance = vae.quant_conv(vae.encoder(network.prepare(lr))).chunk(2, dim=1)
    latent, timestep, generator = mean, 999, torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
        latent = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
    latent = SCALING_FACTOR * latent
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, dim=0)
    if config.start_step is not None:
        timestep = config.start_step
        noise = torch.randn(latent.shape, generator=generator)
        latent = (alphas[timestep].sqrt() * latent + (1 - alphas[timestep]).sqrt() * noise).float()
    texts = network.encode_prompts([config.positive_prompt, config.negative_prompt])
    positive, negative = (
        unet(latent, timestep, encoder_hidden_states=text[None]).sample.double() for text in texts
    )
    epsilon = negative + config.guidance * (positive - negative)
    x0 = ((latent - (1 - alphas[timestep]).sqrt() * epsilon) / alphas[timestep].sqrt()).float()
    image = vae.decoder(vae.post_quant_conv(x0 / SCALING_FACTOR)).clamp(-1, 1)
    return x0, image / 2 + 0.5


def connect(vae: nn.Module, checkpoint: Checkpoint) -> None:
    """Add what enters each encoder level, through its 1x1 convolution, to what enters its decoder level."""
    encoder_levels = vae.get_submodule("encoder.down_blocks")
    decoder_levels = vae.get_submodule("decoder.up_blocks")
    entered: dict[int, Tensor] = {}

    def join(level: int) -> None:
        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            entered[level] = inputs[0]

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            weight = checkpoint.tensors[f"skips.convs.{LEVELS - 1 - level}.weight"]
            return (inputs[0] + F.conv2d(entered[level], weight), *inputs[1:])

        encoder_levels.get_submodule(str(level)).register_forward_pre_hook(keep)
        decoder_levels.get_submodule(str(LEVELS - 1 - level)).register_forward_pre_hook(add)

    for level in range(LEVELS):
        join(level)


# --- every variant --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_computes_what_it_says_and_survives_a_checkpoint(
    sd_base: BaseModel, released: Variant, lr: Tensor, name: str, tmp_path: Path
) -> None:
    variant = make(sd_base, **VARIANTS[name])
    seed = None if variant.checkpoint.config.start_step is None else 21
    restored = variant.network.restore(lr, seed=seed, color_fix="none")
    x0, image = by_the_formulas(variant, lr, seed)
    # fp32 in another order of sums is up to 2e-4 off, by machine: x0 amplifies errors of epsilon 15 times
    assert relative(restored.forward.x0, x0) < 5e-4
    assert relative(restored.image, image) < 5e-4
    if name not in ("released", "axes the other way"):  # else the option would reach nothing
        assert relative(restored.forward.x0, released.network.restore(lr).forward.x0) > 1e-3

    write_checkpoint(variant.checkpoint, tmp_path / "variant.safetensors")
    again = read_checkpoint(tmp_path / "variant.safetensors")
    assert again.config == variant.checkpoint.config
    assert again.tensors.keys() == variant.checkpoint.tensors.keys()
    assert all(again.tensors[key].equal(tensor) for key, tensor in variant.checkpoint.tensors.items())


def test_the_order_of_the_axes_reaches_the_modulation(
    sd_base: BaseModel, released: Variant, lr: Tensor
) -> None:
    swapped = make(sd_base, degradation_axes=("noise", "blur")).network
    ours, theirs = (
        network.restore(lr, noise=0.9, blur=0.1).forward.x0 for network in (swapped, released.network)
    )
    assert relative(ours, theirs) > 1e-3
    assert ours.equal(released.network.restore(lr, noise=0.1, blur=0.9).forward.x0)


# --- where the LoRA is, and what C it gets --------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "vae_sides", "vae_blocks"),
    [
        ({}, {"encoder"}, 6),
        ({"vae_targets": ENCODER_AND_DECODER_TARGETS}, {"encoder", "decoder"}, 12),
        ({"vae_targets": DECODER_TARGETS}, {"decoder"}, 12),
        ({"vae_targets": r".*conv2$"}, {"encoder", "decoder"}, 12),
        ({"rank_vae": 0}, set(), 0),
    ],
)
def test_lora_of_the_vae(
    sd_base: BaseModel, options: dict[str, Any], vae_sides: set[str], vae_blocks: int
) -> None:
    network = S3Diff(fresh(sd_base), SMALL_RANKS.but(**options))
    layers = lora_layers(network.vae)
    assert {name.split(".")[0] for name in layers} == vae_sides
    assert all(layer.block == block_index(f"vae.{name}", LEVELS) for name, layer in layers.items())
    modulation = network.modulation(torch.tensor([[0.2, 0.7]])).vae
    assert (0 if modulation is None else modulation.shape[1]) == vae_blocks


def test_lora_of_the_unet_uses_all_ten_blocks(released: Variant) -> None:
    layers = lora_layers(released.network.unet)
    assert all(layer.block == block_index(f"unet.{name}", LEVELS) for name, layer in layers.items())
    assert {layer.block for layer in layers.values()} == set(range(10))
    modulation = released.network.modulation(torch.tensor([[0.2, 0.7]])).unet
    assert modulation is not None
    assert modulation.shape == (1, 10, 5, 5)
    assert (modulation[:, 1:] - modulation[:, :1]).abs().amax((0, 2, 3)).min() > 1e-2


def test_shared_modulation_is_one_matrix_of_the_degradation(sd_base: BaseModel) -> None:
    network = make(sd_base, modulation="shared").network
    degradation = torch.tensor([[0.2, 0.7], [0.9, 0.1]])
    for modulation, head in zip(
        network.modulation(degradation), (network.modulation.vae, network.modulation.unet), strict=True
    ):
        assert modulation is not None
        assert head is not None
        assert modulation.equal(modulation[:, :1].expand_as(modulation))
        phase = (
            2 * math.pi * degradation[:, :, None] * network.state_dict()["modulation.embedding.frequencies"]
        )
        embedding = torch.cat([phase[:, 0].sin(), phase[:, 0].cos(), phase[:, 1].sin(), phase[:, 1].cos()], 1)
        hidden = head.degradation_mlp[0](embedding).relu()
        assert relative(modulation[:, 0].flatten(1), head.fuse(hidden)) < 1e-5
    assert not [name for name in network.state_dict() if "block" in name and name.startswith("modulation.")]


def test_without_modulation_the_degradation_changes_nothing(sd_base: BaseModel, lr: Tensor) -> None:
    network = make(sd_base, modulation="none").network
    assert network.modulation(torch.tensor([[0.2, 0.7]])) == Modulation(None, None)
    assert network.restore(lr, noise=0, blur=1).forward.x0.equal(
        network.restore(lr, noise=1, blur=0).forward.x0
    )
    assert not [name for name in network.trainable_names() if name.startswith("modulation.")]


def test_targets_that_match_nothing_are_refused(sd_base: BaseModel) -> None:
    with pytest.raises(RequestError, match="no layer of UNet2DConditionModel matches"):
        make(sd_base, unet_targets=("nonsense",))


# --- noise, prompts, degradation ------------------------------------------------------------------


def test_a_start_from_noise_needs_and_keeps_a_seed(sd_base: BaseModel, lr: Tensor) -> None:
    network = make(sd_base, start_step=250).network
    with pytest.raises(RequestError, match="pass a generator or a seed"):
        network.restore(lr)
    first, same, other = (network.restore(lr, seed=seed).forward.x0 for seed in (1, 1, 2))
    assert first.equal(same)
    assert relative(first, other) > 1e-3


def test_a_seed_samples_the_posterior(released: Variant, lr: Tensor) -> None:
    x0, _ = by_the_formulas(released, lr, seed=4)
    sampled = released.network.restore(lr, seed=4).forward.x0
    assert relative(sampled, x0) < 5e-4
    assert relative(sampled, released.network.restore(lr).forward.x0) > 1e-3


def test_prompts_per_image(released: Variant) -> None:
    images = random_photograph(2, 16, 16, seed=9)
    positive, negative = ["a cat on a sofa", "a brick wall"], ["noise", "jpeg"]
    network = released.network
    together = network.restore(images, positive_prompt=positive, negative_prompt=negative)
    for index in range(2):
        alone = network.restore(
            images[index : index + 1], positive_prompt=positive[index], negative_prompt=[negative[index]]
        )
        assert relative(together.forward.x0[index : index + 1], alone.forward.x0) < 1e-4
    swapped = network.restore(images, positive_prompt=positive[::-1], negative_prompt=negative)
    assert relative(swapped.forward.x0, together.forward.x0) > 1e-3


def test_an_empty_prompt_is_a_prompt(released: Variant, lr: Tensor) -> None:
    network = released.network
    empty = network.restore(lr, positive_prompt="")
    assert empty.forward.x0.equal(network.restore(lr, positive_prompt=[""]).forward.x0)
    assert relative(empty.forward.x0, network.restore(lr).forward.x0) > 1e-3


@pytest.mark.parametrize("prompts", [[], ["a", "b", "c"]])
def test_a_wrong_number_of_prompts_is_refused(released: Variant, prompts: Sequence[str]) -> None:
    with pytest.raises(RequestError, match=f"{len(prompts)} prompts for 2 images"):
        released.network.restore(random_photograph(2, 16, 16), positive_prompt=prompts)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.07, 3.0])
def test_guidance_is_linear_in_its_scale(released: Variant, lr: Tensor, scale: float) -> None:
    """Eq. 5 stays linear through the formula of x0: from scale 0 (negative) to 1 (positive) and beyond."""
    network = released.network
    negative, positive, scaled = (network.restore(lr, guidance=s).forward.x0 for s in (0.0, 1.0, scale))
    assert relative(scaled, negative + scale * (positive - negative)) < 1e-4
    assert relative(positive, negative) > 1e-2


@pytest.mark.parametrize("axes", [("blur", "noise"), ("noise", "blur")])
def test_degradation_by_hand(sd_base: BaseModel, lr: Tensor, axes: tuple[str, str]) -> None:
    network = make(sd_base, degradation_axes=axes).network
    estimate = network.restore(lr).degradation
    one = network.restore(lr, noise=0.25)
    assert one.degradation[0, axes.index("noise")] == 0.25
    assert one.degradation[0, axes.index("blur")] == estimate[0, axes.index("blur")]
    both = network.restore(lr, noise=0.25, blur=0.5, color_fix="none")
    given = torch.tensor([[{"noise": 0.25, "blur": 0.5}[axis] for axis in axes]])
    assert both.degradation.equal(given)
    texts = network.encode_prompts([network.config.positive_prompt, network.config.negative_prompt]).split(1)
    with torch.no_grad():
        forward = network(network.prepare(lr), given, *texts, network.config.guidance)
    assert both.forward.x0.equal(forward.x0)
    assert both.image.equal(correct_color((forward.decoded + 1) / 2, forward.decoded, "none"))
    assert relative(both.forward.x0, network.restore(lr).forward.x0) > 1e-3


def test_scores_outside_their_range_are_all_named(released: Variant, lr: Tensor) -> None:
    with pytest.raises(RequestError, match=r"got noise=1\.5, blur=-0\.1"):
        released.network.restore(lr, noise=1.5, blur=-0.1)
    with pytest.raises(RequestError, match="noise=nan"):
        released.network.restore(lr, noise=math.nan)


def test_a_wrong_configuration_names_every_field() -> None:
    wrong: dict[str, Any] = {
        "rank_unet": -1,
        "rank_vae": -2,
        "lora_alpha": 0.0,
        "modulation": "none at all",
        "start_step": 1000,
        "fourier_features": 0,
        "guidance": math.nan,
    }
    with pytest.raises(RequestError) as refusal:
        NetworkConfig(**wrong)
    assert [name for name in wrong if f"{name} is" not in str(refusal.value)] == []
    with pytest.raises(RequestError, match=r"degradation_axes is .*expected blur and noise"):
        NetworkConfig(degradation_axes=("noise", "noise"))
