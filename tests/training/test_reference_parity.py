"""Parity with what the released code computes on a small random model (shared/reference)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.released_parity import Deviation, compare_with_reference, reference_network, worst_of_each
from tests.training.small import relative
from torch import Tensor

from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_training.network.lora import lora_layers
from s3diff_training.network.model import S3Diff

QUANTITIES = {
    "prepared image": 1e-5,
    "degradation estimate": 1e-5,
    "prompt, positive": 1e-5,
    "prompt, negative": 1e-5,
    "modulation, encoder": 1e-5,
    "modulation, UNet": 1e-5,
    "latent": 1e-5,
    "ε, positive": 1e-5,
    "ε, negative": 1e-5,
    "x0, positive alone": 1e-4,
    "x0, guided": 1e-4,
    "image, colour fix wavelet": 1e-4,
    "image, colour fix adain": 1e-4,
    "image, colour fix none": 1e-4,
}


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference"


@pytest.fixture(scope="module")
def description(reference: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((reference / "reference.json").read_text())
    return content


@pytest.fixture(scope="module")
def truth(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "reference.safetensors")


@pytest.fixture(scope="module")
def network(reference: Path) -> S3Diff:
    return reference_network(reference)


@pytest.fixture(scope="module")
def deviations(network: S3Diff, reference: Path) -> list[Deviation]:
    return compare_with_reference(network, reference)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_matches_the_released_code(
    deviations: list[Deviation], description: dict[str, Any], quantity: str
) -> None:
    errors = {one.case + ".": one.relative for one in deviations if one.quantity == quantity}
    assert list(errors) == [case["key"] for case in description["cases"]]
    assert {case: error for case, error in errors.items() if not error <= QUANTITIES[quantity]} == {}
    assert all(one for one in deviations if one.quantity == quantity)


def test_nothing_else_is_compared(deviations: list[Deviation]) -> None:
    worst = worst_of_each(deviations)
    assert [one.quantity for one in worst] == list(QUANTITIES)
    largest = {one.quantity: one.relative for one in worst}
    assert all(other.relative <= largest[other.quantity] for other in deviations)


def test_one_percent_in_one_layer_shows(network: S3Diff, reference: Path) -> None:
    weight = network.get_parameter("unet.mid_block.resnets.0.conv1.lora_B.weight")
    kept = weight.clone()
    try:
        weight.mul_(1.01)
        wrong = {one.quantity for one in compare_with_reference(network, reference) if not one}
    finally:
        weight.copy_(kept)
    assert {"ε, positive", "ε, negative"} <= wrong
    assert not wrong & {"latent", "modulation, UNet", "degradation estimate"}


def test_the_worst_of_a_quantity_is_its_broken_case() -> None:
    good = Deviation("s0.d0", "latent", 1e-6, 1e-7, 1e-5)
    broken = replace(good, case="s0.d1", relative=float("nan"))
    assert good
    assert not broken
    assert worst_of_each([good, broken, good]) == [broken]


def test_a_folder_without_results_is_named(network: S3Diff, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected reference\.json and reference\.safetensors"):
        compare_with_reference(network, tmp_path)
    with pytest.raises(CheckpointError, match=r"s3diff\.pkl does not exist"):
        reference_network(tmp_path)


def test_restore_is_the_whole_chain(network: S3Diff, truth: dict[str, Tensor]) -> None:
    lr = truth["s0.lr_u8"].permute(2, 0, 1)[None].float() / 255
    axes = dict(zip(network.config.degradation_axes, truth["s0.d0.degradation"][0].tolist(), strict=True))
    restored = network.restore(lr, **axes)
    assert (restored.image - truth["s0.d0.sr_wavelet"]).abs().max() < 1e-4
    assert relative(restored.forward.x0, truth["s0.d0.x0"]) < 1e-4
    estimated = network.restore(lr)
    assert (estimated.image - truth["s0.d2.sr_wavelet"]).abs().max() < 1e-4


def test_reference_facts(network: S3Diff, truth: dict[str, Tensor], description: dict[str, Any]) -> None:
    facts = description["facts"]
    unet, vae = lora_layers(network.unet), lora_layers(network.vae)
    assert len(unet) == facts["lora_layers_unet"]
    assert len(vae) == facts["lora_layers_vae"]
    assert {layer.scaling for layer in unet.values()} == {facts["scaling_unet"]}
    assert {layer.scaling for layer in vae.values()} == {facts["scaling_vae"]}
    assert sorted({layer.block for layer in unet.values()}) == facts["unet_blocks_used"]
    config = network.config
    assert config.guidance == description["guidance_scale"]
    assert (config.positive_prompt, config.negative_prompt) == (
        description["pos_prompt"],
        description["neg_prompt"],
    )
    alpha = float(truth["alpha_cumprod_999"])
    assert torch.tensor(network.one_step.alpha_cumprod).isclose(torch.tensor(alpha))
