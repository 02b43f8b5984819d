"""Parity with what the released code computes on a small random model (shared/reference)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from s3diff_training.checkpoints import build_network, read_checkpoint
from s3diff_training.network import S3Diff, bicubic_upscale, load_base
from s3diff_training.network.color import correct_color
from s3diff_training.network.diffusion import guide
from s3diff_training.network.modulation import Modulation

CASES = [f"s{image}.d{degradation}" for image in range(2) for degradation in range(3)]
GUIDANCE = 1.07


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference"


@pytest.fixture(scope="module")
def truth(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "reference.safetensors")


@pytest.fixture(scope="module")
def network(reference: Path) -> S3Diff:
    checkpoint = read_checkpoint(reference / "s3diff.pkl", reference / "de_net.pth")
    return build_network(load_base(reference / "base"), checkpoint)


def relative(ours: Tensor | None, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude: comparable between quantities of any scale."""
    assert ours is not None
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_quantity_matches_the_released_code(
    network: S3Diff, truth: dict[str, Tensor], case: str
) -> None:
    image = case.split(".")[0]
    lr = truth[f"{image}.lr_u8"].permute(2, 0, 1)[None].float() / 255
    degradation = truth[f"{case}.degradation"]
    errors: dict[str, float] = {}

    padded = network.prepare(lr)
    errors["padded"] = relative(padded, truth[f"{image}.padded"])
    errors["estimate"] = relative(network.estimator(lr), truth[f"{image}.estimate"])
    positive = network.encode_prompts([network.config.positive_prompt])
    negative = network.encode_prompts([network.config.negative_prompt])
    errors["text_pos"] = relative(positive, truth["text_pos"])
    errors["text_neg"] = relative(negative, truth["text_neg"])

    modulation: Modulation = network.modulation(degradation)
    errors["vae_modulation"] = relative(modulation.vae, truth[f"{case}.vae_modulation"])
    errors["unet_modulation"] = relative(modulation.unet, truth[f"{case}.unet_modulation"])
    latent = network.encode(padded, modulation).latent
    errors["latent"] = relative(latent, truth[f"{case}.latent"])
    eps_pos, eps_neg = network.predict_noise_pair(latent, positive, negative, modulation)
    errors["eps_pos"] = relative(eps_pos, truth[f"{case}.eps_pos"])
    errors["eps_neg"] = relative(eps_neg, truth[f"{case}.eps_neg"])
    x0 = network.one_step.denoise(latent, guide(eps_pos, eps_neg, GUIDANCE))
    assert relative(x0, truth[f"{case}.x0"]) < 1e-4
    single = network.one_step.denoise(latent, eps_pos)
    assert relative(single, truth[f"{case}.single.x0"]) < 1e-4

    height, width = (4 * side for side in lr.shape[-2:])
    decoded = (network.decode(x0, modulation)[..., :height, :width] + 1) / 2
    for fix in ("none", "wavelet", "adain"):
        restored = correct_color(decoded, bicubic_upscale(lr).clamp(0, 1), fix)
        assert (restored - truth[f"{case}.sr_{fix}"]).abs().max() < 1e-4, fix
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}


def test_restore_is_the_whole_chain(network: S3Diff, truth: dict[str, Tensor]) -> None:
    lr = truth["s0.lr_u8"].permute(2, 0, 1)[None].float() / 255
    axes = dict(zip(network.config.degradation_axes, truth["s0.d0.degradation"][0].tolist(), strict=True))
    restored = network.restore(lr, **axes)
    assert (restored.image - truth["s0.d0.sr_wavelet"]).abs().max() < 1e-4
    assert relative(restored.x0, truth["s0.d0.x0"]) < 1e-4
    estimated = network.restore(lr)
    assert (estimated.image - truth["s0.d2.sr_wavelet"]).abs().max() < 1e-4


def test_reference_facts(network: S3Diff, reference: Path) -> None:
    from s3diff_training.network import lora_layers

    facts = json.loads((reference / "reference.json").read_text())["facts"]
    unet, vae = lora_layers(network.unet), lora_layers(network.vae)
    assert len(unet) == facts["lora_layers_unet"]
    assert len(vae) == facts["lora_layers_vae"]
    assert {layer.scaling for layer in unet.values()} == {facts["scaling_unet"]}
    assert {layer.scaling for layer in vae.values()} == {facts["scaling_vae"]}
    assert sorted({layer.block for layer in unet.values()}) == facts["unet_blocks_used"]
