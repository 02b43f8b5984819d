"""The numbers of the degradation pipeline (defaults: those S3Diff was trained with), and draws from them.

All draws come from one explicit generator, so that a seed reproduces a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from s3diff_runtime.options import Options, group, option

Range = tuple[float, float]
ResizeMode = Literal["area", "bilinear", "bicubic"]


def interval_problems(name: str, interval: Range | None) -> Iterator[str]:
    """Say what is wrong with an interval that has to ascend."""
    if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
        yield f"{name} is {interval}, expected two ascending numbers"


def distribution_problems(name: str, values: Sequence[float], count: int) -> Iterator[str]:
    """Say what is wrong with the probabilities of `count` exclusive outcomes."""
    if len(values) != count or min(values) < 0 or not math.isclose(sum(values), 1, abs_tol=1e-6):
        yield f"{name} is {values}, expected {count} probabilities that sum to 1"


@dataclass(frozen=True)
class KernelSettings(Options):
    """What blur kernels are drawn from (Real-ESRGAN, sections 3.1 and 3.3; sizes in pixels of its input)."""

    kind_probabilities: tuple[float, ...] = option(
        (0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        "Of the kinds Gaussian, generalized Gaussian, plateau, each isotropic, then anisotropic.",
    )
    sinc_probability: float = option(
        0.1, "That a kernel is a low-pass instead of one of the six kinds.", least=0, most=1
    )
    sigma_range: Range = option((0.2, 1.5), "Standard deviation along each axis, in pixels.", least=0.05)
    generalized_beta_range: Range = option(
        (0.5, 2.0), "Shape β of a generalized Gaussian; half of the draws lie below 1, half above.", least=0.1
    )
    plateau_beta_range: Range = option((1.0, 1.5), "Shape β of a plateau kernel, likewise.", least=0.1)
    smallest_size: int = option(7, "Smallest side of a kernel; sides are odd, drawn uniformly.", least=1)
    largest_size: int = option(21, "Largest side of a kernel.", least=1)

    def problems(self) -> Iterator[str]:
        """Intervals that do not ascend, probabilities that do not sum to 1."""
        yield from distribution_problems("kind_probabilities", self.kind_probabilities, 6)
        for name in ("sigma_range", "generalized_beta_range", "plateau_beta_range"):
            yield from interval_problems(name, getattr(self, name))
        sizes = (self.smallest_size, self.largest_size)
        if sizes[0] > sizes[1] or any(size % 2 == 0 for size in sizes):
            yield f"kernel sizes are {sizes}, expected ascending odd numbers"


@dataclass(frozen=True)
class StageSettings(Options):
    """One round of blur, resize, noise and JPEG. The defaults are the released first stage."""

    kernels: KernelSettings = group(KernelSettings)
    blur_probability: float = option(1.0, "That an image is blurred.", least=0, most=1)
    resize_probabilities: tuple[float, float, float] = option(
        (0.2, 0.7, 0.1), "Of enlarging, shrinking and keeping the size."
    )
    resize_range: Range = option(
        (0.3, 1.5),
        "Factors to shrink (below 1) and enlarge (above 1) by: of HR in the first stage, then of LR.",
        least=0.25,
        most=4,
    )
    gaussian_probability: float = option(
        0.5, "That the noise is Gaussian; otherwise it is Poisson.", least=0, most=1
    )
    noise_sigma_range: Range = option(
        (1.0, 15.0), "Standard deviation of Gaussian noise, in grey levels of 255.", least=0, most=255
    )
    poisson_scale_range: Range = option(
        (0.05, 2.0), "Factor on Poisson noise; 1 is the noise of one photon per grey level.", least=0
    )
    grey_probability: float = option(0.4, "That the three channels share one noise.", least=0, most=1)
    jpeg_quality_range: Range | None = option(
        (60.0, 95.0), "JPEG quality of 100; None leaves JPEG out.", least=1, most=100
    )

    def problems(self) -> Iterator[str]:
        """Intervals that do not ascend, probabilities that do not sum to 1."""
        yield from distribution_problems("resize_probabilities", self.resize_probabilities, 3)
        for name in ("resize_range", "noise_sigma_range", "poisson_scale_range", "jpeg_quality_range"):
            yield from interval_problems(name, getattr(self, name))
        if not self.resize_range[0] <= 1 <= self.resize_range[-1]:
            yield f"resize_range is {self.resize_range}, expected to contain 1"


RELEASED_SECOND_STAGE = StageSettings(
    kernels=KernelSettings(sigma_range=(0.2, 1.0)),
    blur_probability=0.5,
    resize_probabilities=(0.3, 0.4, 0.3),
    resize_range=(0.6, 1.2),
    noise_sigma_range=(1.0, 12.0),
    poisson_scale_range=(0.05, 1.0),
    jpeg_quality_range=(60.0, 100.0),
)


@dataclass(frozen=True)
class DegradationSettings(Options):
    """Both stages and what frames them. The defaults are those of the released S3Diff."""

    first: StageSettings = group(StageSettings)
    second: StageSettings = group(RELEASED_SECOND_STAGE)
    final_sinc_probability: float = option(
        0.8, "That the last low-pass, which makes ringing, is applied.", least=0, most=1
    )
    no_degradation_probability: float = option(
        0.01, "That a sample is only resized to the LR size.", least=0, most=1
    )
    resize_modes: tuple[ResizeMode, ...] = option(
        get_args(ResizeMode), "Interpolations that each resize draws from, with equal chances."
    )

    def problems(self) -> Iterator[str]:
        """No interpolation to draw from."""
        if not self.resize_modes:
            yield f"resize_modes is empty, expected some of {', '.join(get_args(ResizeMode))}"


def uniform(generator: Generator, count: int, interval: Range) -> Tensor:
    """Draw float32 [count] uniformly from `interval`, on the generator's device."""
    low, high = interval
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def chance(generator: Generator, count: int, probability: float) -> Tensor:
    """Draw bool [count], each true with `probability`."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def choice(generator: Generator, count: int, weights: Sequence[float]) -> Tensor:
    """Draw int64 [count], index i with a probability in proportion to `weights[i]`."""
    probabilities = torch.tensor(weights, dtype=torch.float32, device=generator.device)
    return torch.multinomial(probabilities, count, replacement=True, generator=generator)
