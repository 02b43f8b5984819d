"""Rescales what runs through a UNet's residual connections, so that float16 can hold it.

Everything that reads the residual stream of a Stable Diffusion UNet normalises it first (GroupNorm), or
passes it on linearly. Its scale is therefore free, training lets it drift, and in a UNet that was trained
from nothing it can grow beyond 65504, which overflows in float16 although nothing is wrong in float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

_WRITERS = re.compile(r"conv_in|.*\.resnets\.\d+\.conv2|.*\.attentions\.\d+\.proj_out")
"""Layers whose output is added to the stream; they read what was normalised."""
_CARRIERS = re.compile(r".*\.conv_shortcut|.*samplers\.0\.conv")
"""Layers that read the stream itself, linearly; only their bias has a scale of its own."""


@torch.no_grad()
def rescale_residual_stream(unet: UNet2DConditionModel, factor: float) -> None:
    """Multiply the residual stream of a UNet by a factor, in place; what the UNet computes stays the same.

    Exactly so for a power of two, but for the norms before attention, whose epsilon of 1e-6 is not an option
    of the model: keep the stream's variance well above that. The epsilon of all other norms goes with the
    factor.

    Args:
        unet: of Stable Diffusion's layout, without LoRA.
        factor: above 0.
    """
    for name, parameter in unet.named_parameters():
        parameter.mul_(_scale(name, factor))
    old = unet.config.norm_eps
    new = old * factor**2
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm) and module.eps == old:
            module.eps = new
    unet.register_to_config(norm_eps=new)


def rescale_lora(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The tensors of a checkpoint for a UNet whose residual stream was rescaled.

    Args:
        tensors: by their names in `S3Diff.state_dict()`.
        factor: as for the UNet.
    """
    return {
        name: tensor * _scale(name.removeprefix("unet."), factor) if name.startswith("unet.") else tensor
        for name, tensor in tensors.items()
    }


def _scale(name: str, factor: float) -> float:
    """What a parameter is multiplied by: `layer.weight`, `layer.bias`, or of LoRA `layer.lora_B.weight`."""
    layer, _, kind = name.rpartition(".")
    layer, _, lora = layer.partition(".lora_")
    writes = _WRITERS.fullmatch(layer) and lora != "A"
    carries = _CARRIERS.fullmatch(layer) and kind == "bias"
    return factor if writes or carries else 1.0
