"""Sensor noise: Gaussian and Poisson, per channel or shared by the channels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from s3diff_training.degradations.draws import chance, uniform
from s3diff_training.degradations.settings import StageSettings

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""


def draw_noise(images: Tensor, stage: StageSettings, generator: Generator) -> Tensor:
    """Draw each sample's noise as Real-ESRGAN does (section 3.1 "Noise").

    Args:
        images: float32 [N, 3, h, w] in [0, 1]; the rate of Poisson noise follows them.
        stage: probabilities and ranges of kind and strength.
        generator: on the images' device.

    Returns:
        float32 [N, 3, h, w], to be added to `images`.
    """
    count = len(images)
    is_gaussian = chance(generator, count, stage.gaussian_probability)
    is_grey = chance(generator, count, stage.grey_probability)
    sigma = uniform(generator, count, stage.noise_sigma_range) / 255
    scale = uniform(generator, count, stage.poisson_scale_range)
    noise = torch.empty_like(images)
    for grey in (False, True):
        gaussian_rows = (is_gaussian & (is_grey == grey)).nonzero().flatten()
        poisson_rows = (~is_gaussian & (is_grey == grey)).nonzero().flatten()
        if len(gaussian_rows):
            noise[gaussian_rows] = _gaussian(
                _signal(images[gaussian_rows], grey), sigma[gaussian_rows], generator
            )
        if len(poisson_rows):
            noise[poisson_rows] = _poisson(
                _signal(images[poisson_rows], grey), scale[poisson_rows], generator
            )
    return noise


def _signal(images: Tensor, grey: bool) -> Tensor:
    """The channels that get a noise of their own: [N, 1, h, w] (luma) if `grey`, otherwise all three."""
    if not grey:
        return images
    weights = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _gaussian(signal: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    return torch.randn(signal.shape, generator=generator, device=signal.device).mul_(sigma.view(-1, 1, 1, 1))


def _poisson(signal: Tensor, scale: Tensor, generator: Generator) -> Tensor:
    """Poisson noise of one photon per grey level, times `scale` [N].

    Real-ESRGAN takes for the photons at white the power of two at or above the number of grey levels that the
    image uses, so an image of few levels, hence a dim or flat one, is noisier.
    """
    levels = (signal.clamp(0, 1) * 255).round_()
    used = [torch.bincount(row.flatten().long(), minlength=256).count_nonzero() for row in levels]
    photons_per_level = (2 ** torch.stack(used).log2().ceil() / 255).view(-1, 1, 1, 1)
    counted = torch.poisson(levels * photons_per_level, generator=generator)
    return counted.div_(photons_per_level).sub_(levels).mul_(scale.view(-1, 1, 1, 1) / 255)
