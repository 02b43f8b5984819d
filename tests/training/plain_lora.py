"""Random checkpoints of plain LoRA for tiny base models, in the layout of OSEDiff's training code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import UNET_TARGETS
from s3diff_training.network.lora import targeted_names

RANK_UNET, RANK_VAE = 3, 2


def osediff_content(base: BaseModel, seed: int = 0) -> dict[str, Any]:
    """Make what `osediff.pkl` holds, for a base model; every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    unet, vae = layers_of(base.unet, (*UNET_TARGETS, "conv_in")), layers_of(base.vae.encoder, _VAE)
    vae = {f"encoder.{name}": layer for name, layer in vae.items()} | {"quant_conv": base.vae.quant_conv}
    content: dict[str, Any] = {"rank_unet": RANK_UNET, "rank_vae": RANK_VAE}
    content |= {f"unet_lora_{part}_modules": names for part, names in split(unet).items()}
    content["vae_lora_encoder_modules"] = [*vae, *vae]  # the released lists repeat names
    content["state_dict_unet"] = lora_of(unet, RANK_UNET, generator)
    for kind in ("weight", "bias"):
        trained = getattr(base.unet.conv_in, kind)
        noise = 0.1 * torch.randn(trained.shape, generator=generator)
        content["state_dict_unet"][f"conv_in.base_layer.{kind}"] = trained.detach() + noise
    content["state_dict_vae"] = lora_of(vae, RANK_VAE, generator)
    return content


def pisasr_content(base: BaseModel, seed: int = 0) -> dict[str, Any]:
    """Make what `pisa_sr.pkl` holds, for a base model; every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    unet = layers_of(base.unet, (*UNET_TARGETS, "conv_in"))
    content: dict[str, Any] = {"state_dict_unet": {}}
    for suffix, rank in (("_pix", RANK_UNET), ("_sem", RANK_VAE)):
        content[f"lora_rank_unet{suffix}"] = rank
        content |= {f"unet_lora_{part}_modules{suffix}": names for part, names in split(unet).items()}
        content["state_dict_unet"] |= lora_of(unet, rank, generator, suffix)
    return content


def write_pisasr(base: BaseModel, path: Path, seed: int = 0) -> Path:
    """Write a random `pisa_sr.pkl` for a base model."""
    torch.save(pisasr_content(base, seed), path)
    return path


def write_osediff(base: BaseModel, path: Path, seed: int = 0) -> Path:
    """Write a random `osediff.pkl` for a base model."""
    torch.save(osediff_content(base, seed), path)
    return path


_VAE = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)


def layers_of(model: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the layers that LoRA goes to, by name."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {name: layers[name] for name in targeted_names(layers, targets)}


def split(layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Sort names into the three lists of the released files."""
    found: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name in layers:
        found[_part_of(name)].append(name)
    return found


def lora_of(
    layers: Mapping[str, nn.Module], rank: int, generator: torch.Generator, suffix: str = ""
) -> dict[str, Tensor]:
    """Make a pair of matrices for each layer, of the adapter of its list."""
    tensors = {}
    for name, layer in layers.items():
        rows, *columns = layer.weight.shape  # type: ignore[misc]
        adapter = f"default_{_part_of(name)}{suffix}"
        down = torch.randn(rank, *columns, generator=generator)
        up = torch.randn(rows, rank, *(1 for _ in columns[1:]), generator=generator)
        tensors[f"{name}.lora_A.{adapter}.weight"] = 0.3 * down / down[0].numel() ** 0.5
        tensors[f"{name}.lora_B.{adapter}.weight"] = 0.3 * up
    return tensors


def _part_of(name: str) -> str:
    if name.startswith(("down_blocks", "conv_in", "encoder", "quant_conv")):
        return "encoder"
    return "decoder" if name.startswith(("up_blocks", "conv_out")) else "others"
