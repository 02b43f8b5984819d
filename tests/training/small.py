"""A tiny base model and random checkpoints for it: made here, in a second, from nothing that is downloaded.

Every weight is random, norms included, so a wrong scaling, transpose, block or order shows in the results.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import capture
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import S3Diff
from s3diff_training.train.new_base import BaseArchitecture, new_base, save_base

VAE_WIDTHS = {3: (8, 16, 16), 4: (8, 8, 16, 16)}
UNET_WIDTHS = (8, 16, 24, 24)
TEXT_WIDTH = 32
GROUPS = 4
SMALL_RANKS = NetworkConfig(rank_unet=5, rank_vae=3)
"""The released configuration but for the ranks, which differ so that nothing can take one for the other."""


def small_base(vae_levels: int) -> BaseModel:
    """Make a base model of the layout of SD 2.1 with 4 UNet levels and `vae_levels` (3 or 4) of the VAE."""
    with torch.random.fork_rng():
        torch.manual_seed(vae_levels)
        texts = new_base(BaseArchitecture(text_width=TEXT_WIDTH))
        base = replace(texts, vae=_vae(VAE_WIDTHS[vae_levels]), unet=_unet())
        for part in (base.text_encoder, base.vae, base.unet):
            _randomise_norms(part.eval())
    return base


def save_small_base(folder: Path, vae_levels: int) -> Path:
    """Write `small_base` as a diffusers folder and return the folder."""
    save_base(small_base(vae_levels), folder)
    return folder


def fresh(base: BaseModel) -> BaseModel:
    """Copy what a network modifies of its base, so that one base serves many networks."""
    return replace(base, vae=copy.deepcopy(base.vae), unet=copy.deepcopy(base.unet))


def random_checkpoint(base: BaseModel, config: NetworkConfig, seed: int = 0) -> Checkpoint:
    """Make a checkpoint that fits `base`, in which every tensor is random and matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the estimator's branches keep part of what they start with
        checkpoint = capture(S3Diff(fresh(base), config), {"made by": "tests"})
    tensors = {name: _random(name, tensor, generator) for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def random_photograph(images: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth shapes with noise on them: `[images, 3, height, width]` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def relative(found: Tensor | None, expected: Tensor) -> float:
    """Largest difference over the largest magnitude: comparable between quantities of any scale."""
    assert found is not None
    assert found.shape == expected.shape
    assert found.isfinite().all()
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def block_index(name: str, vae_levels: int) -> int:
    """Say which C turns the layer of that full name: `unet.down_blocks.0.…`, `vae.decoder.mid_block.…`.

    UNet of four levels: down 0 to 3, middle 4, up 5 to 8, rest 9. VAE: the encoder's down blocks, middle,
    rest, then (where it has LoRA, Table 4) the decoder's middle, up blocks, rest.
    """
    part, *path = name.split(".")
    if part == "unet":
        side = path[0]
        starts, rest = {"down_blocks": 0, "mid_block": 4, "up_blocks": 5}, 9
    else:
        side, path = path[1], path[1:]
        encoder = name.startswith("vae.encoder.")
        after = vae_levels + 2
        starts = (
            {"down_blocks": 0, "mid_block": vae_levels}
            if encoder
            else {"mid_block": after, "up_blocks": after + 1}
        )
        rest = vae_levels + 1 if encoder else 2 * vae_levels + 3
    if side not in starts:
        return rest
    return starts[side] + (0 if side == "mid_block" else int(path[1]))


def lora_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the full names (`unet.…`, `vae.…`) of the layers for which a checkpoint has LoRA."""
    end = ".lora_A.weight"
    return [name.removesuffix(end) for name in tensors if name.endswith(end)]


def _vae(widths: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=GROUPS,
        scaling_factor=0.18215,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=UNET_WIDTHS,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=1,
        norm_num_groups=GROUPS,
        attention_head_dim=(1, 2, 3, 3),  # the numbers of heads, in spite of the name
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
    )


@torch.no_grad()
def _randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw around what a new network holds, as wide as keeps every layer's output near its input's size."""
    noise = torch.randn(tensor.shape, generator=generator)
    fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
    if ".lora_" in name or ".fuse.weight" in name:
        return noise / math.sqrt(fan_in)
    if name.startswith("skips."):
        return 0.5 * noise / math.sqrt(fan_in)
    if name.startswith("estimator.fc_degree."):
        return tensor + 2 * noise / math.sqrt(fan_in)  # or every image would score one half
    if tensor.ndim > 1:
        return tensor + 0.2 * noise / math.sqrt(fan_in)
    return tensor + 0.1 * noise
