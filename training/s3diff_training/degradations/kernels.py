"""Blur kernels: (generalized) Gaussian, plateau and circular low-pass; drawing, applying and measuring them.

Definitions follow Real-ESRGAN (Wang et al. 2021, section 3.1 "Blur", 3.3 "Ringing and overshoot artifacts").
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from s3diff_runtime.errors import RequestError
from s3diff_training.degradations.settings import KernelSettings, Range, chance, choice, uniform
from s3diff_training.network.color import reflected

_NEGLIGIBLE = 1e-12
SMALL_KERNEL = 13
"""Below this size a low-pass may not cut lower than π/3: a small window cannot resolve less."""


def gaussian_kernel(
    size: Tensor,
    sigma_x: Tensor,
    sigma_y: Tensor,
    theta: Tensor,
    beta: Tensor,
    *,
    plateau: bool = False,
    padded_size: int = 21,
) -> Tensor:
    """Make kernels of the Gaussian family; isotropic where sigma_x equals sigma_y.

    With q = xᵀ Σ⁻¹ x and Σ the rotated diagonal covariance, a kernel is in proportion to exp(-q^β/2), which
    is a Gaussian for β = 1, or of the plateau kind, 1 / (1 + q^β). Every tensor has one number a kernel, [N].

    Args:
        size: odd side of the support in pixels; outside it a kernel is 0.
        sigma_x, sigma_y: standard deviation along the two principal axes, in pixels.
        theta: angle in radians from the image's x axis to the first principal axis.
        beta: the exponent β.
        plateau: which of the two formulas.
        padded_size: odd side of the returned kernels.

    Returns:
        float32 [N, padded_size, padded_size], each summing to 1.

    Raises:
        RequestError: for sizes that are even or do not fit into `padded_size`.
    """
    x, y, inside = _grid(size, padded_size)
    cosine, sine = _column(theta.cos()), _column(theta.sin())
    along = (cosine * x + sine * y) / _column(sigma_x)
    across = (cosine * y - sine * x) / _column(sigma_y)
    distance = (along.square() + across.square()) ** _column(beta)
    weights = 1 / (1 + distance) if plateau else torch.exp(-0.5 * distance)
    return _normalised(weights * inside)


def sinc_kernel(size: Tensor, cutoff: Tensor, padded_size: int = 21) -> Tensor:
    """Make circular low-pass kernels ω J₁(ω r) / (2π r), J₁ the Bessel function of the first kind.

    Args:
        size: odd side of the support in pixels, [N]; outside it a kernel is 0.
        cutoff: cut-off frequency ω in radians per pixel (π is the highest), [N].
        padded_size: odd side of the returned kernels.

    Returns:
        float32 [N, padded_size, padded_size], each summing to 1; raises as `gaussian_kernel`.
    """
    x, y, inside = _grid(size, padded_size)
    frequency = _column(cutoff)
    radius = (x.square() + y.square()).sqrt()
    ring = frequency * torch.special.bessel_j1(frequency * radius) / (2 * math.pi * radius.clamp(min=0.5))
    # J₁(z) / z tends to 1/2 at the centre.
    weights = torch.where(radius == 0, frequency.square() / (4 * math.pi), ring)
    return _normalised(weights * inside)


def draw_kernels(settings: KernelSettings, count: int, generator: Generator) -> Tensor:
    """Draw one blur kernel per sample, each with its own kind, size, shape and angle.

    Returns:
        float32 [count, k, k] on the generator's device with k = `settings.largest_size`, each summing to 1.
    """
    padded = settings.largest_size
    kind = choice(generator, count, settings.kind_probabilities)
    size = _draw_sizes(settings, count, generator)
    sigma_x = uniform(generator, count, settings.sigma_range)
    sigma_y = torch.where(kind % 2 == 0, sigma_x, uniform(generator, count, settings.sigma_range))
    theta = uniform(generator, count, (-math.pi, math.pi))
    generalized = _draw_betas(settings.generalized_beta_range, count, generator)
    plateau = _draw_betas(settings.plateau_beta_range, count, generator)
    shape = (size, sigma_x, sigma_y, theta)
    family = torch.stack(
        [
            gaussian_kernel(*shape, torch.ones_like(theta), padded_size=padded),
            gaussian_kernel(*shape, generalized, padded_size=padded),
            gaussian_kernel(*shape, plateau, plateau=True, padded_size=padded),
        ]
    )
    chosen = family[kind // 2, torch.arange(count, device=kind.device)]
    is_sinc = chance(generator, count, settings.sinc_probability)
    lowest = torch.where(size < SMALL_KERNEL, math.pi / 3, math.pi / 5)
    cutoff = lowest + (math.pi - lowest) * uniform(generator, count, (0.0, 1.0))
    low_pass = sinc_kernel(size, cutoff, padded)
    return torch.where(is_sinc[:, None, None], low_pass, chosen)


def draw_final_sinc_kernels(settings: KernelSettings, count: int, generator: Generator) -> Tensor:
    """Draw one low-pass per sample for the end of the pipeline: sizes of `settings`, cut-off in [π/3, π].

    Returns:
        float32 [count, k, k] with k = `settings.largest_size`, each summing to 1.
    """
    cutoff = uniform(generator, count, (math.pi / 3, math.pi))
    return sinc_kernel(_draw_sizes(settings, count, generator), cutoff, settings.largest_size)


def filter_images(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its kernel, the border reflected (as often as a small image needs).

    Args:
        images: float32 [N, C, h, w], h and w at least 2.
        kernels: float32 [N, k, k], k odd, symmetric about their centre (convolution is correlation then).

    Returns:
        float32 [N, C, h, w].
    """
    count, channels, height, width = images.shape
    pad = kernels.shape[-1] // 2
    rows, columns = (reflected(side, pad, pad, images.device) for side in (height, width))
    padded = images[..., rows, :][..., columns]
    weights = kernels.repeat_interleave(channels, dim=0).unsqueeze(1)
    return F.conv2d(padded.flatten(0, 1).unsqueeze(0), weights, groups=count * channels).view_as(images)


def kernel_area(kernels: Tensor) -> Tensor:
    """Measure over how many pixels each kernel averages: 1 / Σ k², [N] from [N, k, k].

    The inverse of a filter's gain on white noise (its equivalent noise bandwidth): it needs no image, and
    serves low-passes too, whose second moment may be negative. An impulse has 1, a square of n by n pixels
    n², a Gaussian wider than a pixel 4π times the product of its deviations, a low-pass of cut-off ω 4π / ω².
    """
    return 1 / kernels.square().sum(dim=(1, 2))


def _draw_sizes(settings: KernelSettings, count: int, generator: Generator) -> Tensor:
    steps = (settings.largest_size - settings.smallest_size) // 2 + 1
    drawn = torch.randint(steps, (count,), generator=generator, device=generator.device)
    return settings.smallest_size + 2 * drawn


def _draw_betas(interval: Range, count: int, generator: Generator) -> Tensor:
    """Half of the draws from below 1 and half from above, so that both shapes are equally frequent."""
    low, high = interval
    middle = min(max(1.0, low), high)
    below = uniform(generator, count, (low, middle))
    above = uniform(generator, count, (middle, high))
    return torch.where(chance(generator, count, 0.5), below, above)


def _column(values: Tensor) -> Tensor:
    """Shape a number per kernel so that it broadcasts over [N, k, k]."""
    return values[:, None, None]


def _grid(size: Tensor, padded_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates x [1, 1, k] and y [1, k, 1] about the centre, and which are in the support [N, k, k]."""
    if padded_size % 2 == 0 or bool(((size % 2 == 0) | (size < 1) | (size > padded_size)).any()):
        raise RequestError(
            f"kernel sizes {size.tolist()} in {padded_size}: expected odd sizes within an odd size"
        )
    line = torch.arange(padded_size, dtype=torch.float32, device=size.device) - padded_size // 2
    x, y = line[None, None, :], line[None, :, None]
    return x, y, torch.maximum(x.abs(), y.abs()) <= _column(size) // 2


def _normalised(kernels: Tensor) -> Tensor:
    # Tails too small to matter go to exact zeros: a processor multiplies subnormal numbers many times slower.
    kept = kernels * (kernels.abs() > _NEGLIGIBLE)
    return kept / kept.sum(dim=(1, 2), keepdim=True)
