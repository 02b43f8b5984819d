"""The one step of diffusion, as a closed formula (paper section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_TIMESTEP = 999
"""SD-Turbo's first step, the only one taken when no noise is added."""


@dataclass(frozen=True)
class OneStep:
    """The timestep of the only UNet evaluation and the signal left at it."""

    timestep: int
    alpha_cumprod: float
    """Cumulative product of 1 - beta at `timestep`; 0.00466 at 999 for SD-Turbo."""
    adds_noise: bool
    """Whether the latent is first noised to `timestep` (Table 8)."""

    def start(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        """The UNet's input: the latent itself, or the latent with the timestep's noise added."""
        if not self.adds_noise:
            return latent
        noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)
        return math.sqrt(self.alpha_cumprod) * latent + math.sqrt(1 - self.alpha_cumprod) * noise

    def denoise(self, latent: Tensor, noise_prediction: Tensor) -> Tensor:
        """x0 in float32: errors of the prediction grow by 1/sqrt(alpha) = 14.6, too much for fp16."""
        signal, noise = math.sqrt(self.alpha_cumprod), math.sqrt(1 - self.alpha_cumprod)
        return (latent.float() - noise * noise_prediction.float()) / signal


def guide(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance in float32 (eq. 5): `negative + scale (positive - negative)`."""
    return negative.float() + scale * (positive.float() - negative.float())
