"""A rescaled UNet computes the same, on a residual stream of another scale."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.small import (
    SMALL_RANKS,
    fresh,
    random_checkpoint,
    random_photograph,
    relative,
    small_base,
)
from torch import Tensor, nn

from s3diff_training.checkpoints.native import build_network
from s3diff_training.network.model import S3Diff

_TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "package_demo_model.py"))
rescale_lora, rescale_residual_stream = _TOOL["rescale_lora"], _TOOL["rescale_residual_stream"]
FACTOR = 1 / 64


def largest(network: S3Diff, image: Tensor) -> tuple[Tensor, dict[str, float]]:
    """x0, and the largest value that each residual block of the UNet puts out."""
    found: dict[str, float] = {}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _given, output: found.update({name: float(output.abs().max())})

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in network.unet.named_modules()
        if type(module).__name__ in ("ResnetBlock2D", "Downsample2D", "Upsample2D")
    ]
    x0 = network.restore(image, noise=0.3, blur=0.6).forward.x0
    for hook in hooks:
        hook.remove()
    return x0, found


def test_same_result_on_a_smaller_stream() -> None:
    base = small_base(3)
    checkpoint = random_checkpoint(base, SMALL_RANKS, seed=4)
    image = random_photograph(1, 24, 16, seed=5)
    expected, before = largest(build_network(fresh(base), checkpoint).eval(), image)
    rescaled = fresh(base)
    rescale_residual_stream(rescaled.unet, FACTOR)
    changed = replace(checkpoint, tensors=rescale_lora(checkpoint.tensors, FACTOR))
    found, after = largest(build_network(rescaled, changed).eval(), image)
    # The norms before attention keep their epsilon, which the smaller variance feels a little.
    assert relative(found, expected) < 1e-3
    assert len(before) > 10
    assert after == pytest.approx({name: value * FACTOR for name, value in before.items()}, rel=1e-2)


def test_epsilon_goes_with_the_stream() -> None:
    unet = small_base(3).unet
    old = unet.config.norm_eps
    rescale_residual_stream(unet, FACTOR)
    assert unet.config.norm_eps == pytest.approx(old * FACTOR**2)
    assert unet.conv_norm_out.eps == unet.config.norm_eps


def test_only_writers_and_the_biases_of_carriers_change() -> None:
    base = small_base(3)
    tensors = random_checkpoint(base, SMALL_RANKS, seed=4).tensors
    changed = {
        name for name, tensor in rescale_lora(tensors, 0.5).items() if not torch.equal(tensor, tensors[name])
    }
    assert {"unet.conv_in.weight", "unet.conv_in.bias"} <= changed
    assert "unet.mid_block.resnets.0.conv2.lora_B.weight" in changed
    assert all(name.startswith("unet.") and "lora_A" not in name for name in changed)
    assert not any("conv_shortcut" in name or "conv1" in name for name in changed)
