"""Tiny networks of both layouts, variants of them, and how the tests of this room compare tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tests.training.small import SMALL_RANKS, fresh, random_checkpoint, random_photograph, small_base
from torch import Tensor, nn

from s3diff_runtime.engines.flavours import FLAVOURS
from s3diff_training.checkpoints.native import build_network, write_checkpoint
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import S3Diff
from s3diff_training.train.new_base import BaseArchitecture, new_base, save_base
from s3diff_training.weights import ModelSource

CPU_ENGINES = tuple(name for name, flavour in FLAVOURS.items() if "cpu" in flavour.devices)
"""What bundles are held against PyTorch on; all in f32, which is what they get of bundles in fp32."""
LAYOUTS = ("sd", "f4")
"""`sd`: SD-Turbo's, four VAE levels, attention in the first block. `f4`: that of the model that ships."""
DEGRADATIONS = torch.tensor([[0.15, 0.9], [0.7, 0.3]])
"""Two different ones, in the order of the network's axes."""


@dataclass(frozen=True)
class Files:
    """The weights of a tiny network on disk."""

    base: Path
    checkpoint: Path

    def source(self) -> ModelSource:
        """How Python names them."""
        return ModelSource(base=str(self.base), checkpoint=self.checkpoint)

    def arguments(self) -> list[str]:
        """The options of the command line that name them."""
        return ["--base", str(self.base), "--checkpoint", str(self.checkpoint)]


def tiny_base(layout: str) -> BaseModel:
    """Make a base model of one of `LAYOUTS`, all of whose weights matter."""
    if layout == "sd":
        return small_base(4)
    sizes = BaseArchitecture(
        latent_channels=4,
        vae_widths=(8, 8, 12),
        unet_widths=(8, 16, 16),
        unet_groups=4,
        head_width=8,
        text_width=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = new_base(sizes)
        for part in (base.text_encoder, base.vae, base.unet):
            part.eval()
        _let_it_predict_noise(base.unet)
    return base


def tiny_network(base: BaseModel, config: NetworkConfig = SMALL_RANKS, seed: int = 2) -> S3Diff:
    """Adapt a copy of `base` with a random checkpoint."""
    return build_network(fresh(base), random_checkpoint(base, config, seed)).eval()


def write_files(base: BaseModel, folder: Path, config: NetworkConfig = SMALL_RANKS, seed: int = 2) -> Files:
    """Write `base` and a random checkpoint for it."""
    files = Files(folder / "base", folder / "tiny.safetensors")
    save_base(base, files.base)
    write_checkpoint(random_checkpoint(base, config, seed), files.checkpoint)
    return files


def photographs(images: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures as the graphs take them: uint8 `[images, height, width, 3]`."""
    levels = (random_photograph(images, height, width, seed) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())


def error(found: Tensor | NDArray[np.generic], truth: Tensor | NDArray[np.generic]) -> float:
    """Norm of the difference over the norm of the truth, in float64."""
    ours, theirs = (torch.as_tensor(value).double() for value in (found, truth))
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def _let_it_predict_noise(unet: nn.Module) -> None:
    """A new UNet's last layer is zero; give it, and the norms, something to say."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
        elif isinstance(module, nn.Conv2d) and name == "conv_out":
            module.weight.normal_(std=0.1)
            nn.init.normal_(module.bias, std=0.1) if module.bias is not None else None
