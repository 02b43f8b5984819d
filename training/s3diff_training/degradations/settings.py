"""The numbers of the degradation pipeline; the defaults are those S3Diff was trained with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from s3diff_runtime.errors import RequestError
from s3diff_training.degradations.draws import Range

ResizeMode = Literal["area", "bilinear", "bicubic"]


def range_problems(name: str, interval: Range, lowest: float, highest: float = math.inf) -> list[str]:
    """Say what is wrong with an interval that has to be ascending and inside [lowest, highest]."""
    if len(interval) == 2 and lowest <= interval[0] <= interval[1] <= highest:
        return []
    return [f"{name} is {interval}, expected two ascending numbers in [{lowest}, {highest}]"]


def probability_problems(name: str, value: float) -> list[str]:
    """Say what is wrong with a probability."""
    return [] if 0 <= value <= 1 else [f"{name} is {value}, expected a probability in [0, 1]"]


def distribution_problems(name: str, values: Sequence[float], count: int) -> list[str]:
    """Say what is wrong with the probabilities of `count` exclusive outcomes."""
    if (
        len(values) == count
        and all(value >= 0 for value in values)
        and math.isclose(sum(values), 1, abs_tol=1e-6)
    ):
        return []
    return [f"{name} is {values}, expected {count} probabilities that sum to 1"]


@dataclass(frozen=True)
class KernelSettings:
    """What blur kernels are drawn from (Real-ESRGAN, sections 3.1 and 3.3; sizes in pixels of its input).

    Raises:
        RequestError: naming every field that is out of range, at once.
    """

    kind_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Of the kinds Gaussian, generalized Gaussian, plateau, each isotropic, then anisotropic."""
    sinc_probability: float = 0.1
    """That a kernel is a low-pass instead of one of the six kinds."""
    sigma_range: Range = (0.2, 1.5)
    """Standard deviation along each axis, in pixels."""
    generalized_beta_range: Range = (0.5, 2.0)
    """Shape β of a generalized Gaussian; half of the draws lie below 1 and half above."""
    plateau_beta_range: Range = (1.0, 1.5)
    """Shape β of a plateau kernel; half of the draws lie below 1 and half above."""
    smallest_size: int = 7
    largest_size: int = 21
    """Kernels are squares of an odd size, drawn uniformly from the odd numbers in between."""

    def __post_init__(self) -> None:
        """Check every field and report all that is wrong in one error."""
        problems = [
            *distribution_problems("kind_probabilities", self.kind_probabilities, 6),
            *probability_problems("sinc_probability", self.sinc_probability),
            *range_problems("sigma_range", self.sigma_range, 0.05),
            *range_problems("generalized_beta_range", self.generalized_beta_range, 0.1),
            *range_problems("plateau_beta_range", self.plateau_beta_range, 0.1),
        ]
        sizes = (self.smallest_size, self.largest_size)
        if not (1 <= sizes[0] <= sizes[1]) or any(size % 2 == 0 for size in sizes):
            problems.append(f"kernel sizes are {sizes}, expected ascending odd numbers")
        if problems:
            raise RequestError("wrong kernel settings: " + "; ".join(problems))


@dataclass(frozen=True)
class StageSettings:
    """One round of blur, resize, noise and JPEG. The defaults are the released first stage.

    Raises:
        RequestError: naming every field that is out of range, at once.
    """

    kernels: KernelSettings = field(default_factory=KernelSettings)
    blur_probability: float = 1.0
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Of enlarging, shrinking and keeping the size."""
    resize_range: Range = (0.3, 1.5)
    """Factors to shrink (below 1) and enlarge (above 1) by: of HR in the first stage, of LR in the second."""
    gaussian_probability: float = 0.5
    """That the noise is Gaussian; otherwise it is Poisson."""
    noise_sigma_range: Range = (1.0, 15.0)
    """Standard deviation of Gaussian noise, in grey levels of 255."""
    poisson_scale_range: Range = (0.05, 2.0)
    """Factor on Poisson noise; 1 is the noise of one photon per grey level."""
    grey_probability: float = 0.4
    """That the three channels share one noise."""
    jpeg_quality_range: Range | None = (60.0, 95.0)
    """JPEG quality of 100; None leaves JPEG out."""

    def __post_init__(self) -> None:
        """Check every field and report all that is wrong in one error."""
        problems = [
            *probability_problems("blur_probability", self.blur_probability),
            *distribution_problems("resize_probabilities", self.resize_probabilities, 3),
            *range_problems("resize_range", self.resize_range, 0.25, 4.0),
            *probability_problems("gaussian_probability", self.gaussian_probability),
            *range_problems("noise_sigma_range", self.noise_sigma_range, 0.0, 255.0),
            *range_problems("poisson_scale_range", self.poisson_scale_range, 0.0),
            *probability_problems("grey_probability", self.grey_probability),
        ]
        if len(self.resize_range) == 2 and not self.resize_range[0] <= 1 <= self.resize_range[1]:
            problems.append(f"resize_range is {self.resize_range}, expected to contain 1")
        if self.jpeg_quality_range is not None:
            problems += range_problems("jpeg_quality_range", self.jpeg_quality_range, 1.0, 100.0)
        if problems:
            raise RequestError("wrong degradation stage settings: " + "; ".join(problems))


def _released_second_stage() -> StageSettings:
    return StageSettings(
        kernels=KernelSettings(sigma_range=(0.2, 1.0)),
        blur_probability=0.5,
        resize_probabilities=(0.3, 0.4, 0.3),
        resize_range=(0.6, 1.2),
        noise_sigma_range=(1.0, 12.0),
        poisson_scale_range=(0.05, 1.0),
        jpeg_quality_range=(60.0, 100.0),
    )


@dataclass(frozen=True)
class DegradationSettings:
    """Both stages and what frames them. `dataclasses.asdict` gives JSON types. Defaults: released S3Diff.

    Raises:
        RequestError: naming every field that is out of range, at once.
    """

    first: StageSettings = field(default_factory=StageSettings)
    second: StageSettings = field(default_factory=_released_second_stage)
    final_sinc_probability: float = 0.8
    """That the last low-pass, which makes ringing, is applied."""
    no_degradation_probability: float = 0.01
    """That a sample is only resized to the LR size."""
    resize_modes: tuple[ResizeMode, ...] = get_args(ResizeMode)
    """Interpolations that each resize draws from, with equal chances."""

    def __post_init__(self) -> None:
        """Check every field and report all that is wrong in one error."""
        problems = [
            *probability_problems("final_sinc_probability", self.final_sinc_probability),
            *probability_problems("no_degradation_probability", self.no_degradation_probability),
        ]
        if not self.resize_modes or not set(self.resize_modes) <= set(get_args(ResizeMode)):
            problems.append(
                f"resize_modes is {self.resize_modes}, expected some of {', '.join(get_args(ResizeMode))}"
            )
        if problems:
            raise RequestError("wrong degradation settings: " + "; ".join(problems))
