"""The second-order degradation of Real-ESRGAN (Wang et al. 2021, section 3.2), as S3Diff's release sets it.

Batched on tensors. Resize factors and interpolations are drawn once per batch, because they fix the tensors'
size, and all else per sample. Every draw comes from the caller's generator. HR is not sharpened first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from kornia.enhance import jpeg_codec_differentiable
from torch import Generator, Tensor

from s3diff_runtime.errors import refuse
from s3diff_runtime.vocabulary import SCALE
from s3diff_training.degradations.kernels import (
    draw_final_sinc_kernels,
    draw_kernels,
    filter_images,
    kernel_area,
)
from s3diff_training.degradations.settings import (
    DegradationSettings,
    ResizeMode,
    StageSettings,
    chance,
    choice,
    uniform,
)

SMALLEST_SIDE = 32
"""Smaller HR crops would be shrunk to a few pixels on the way."""
NOISE_FULL_SCALE = 15.0
"""Noise level 1, as RMS in grey levels of 255."""
BLUR_FULL_SCALE = 1.25
"""Blur level 1, as standard deviation of the equivalent Gaussian in LR pixels."""
_INTERPOLATION_AREA: dict[ResizeMode, float] = {"area": 0.0, "bilinear": 1.25, "bicubic": 0.361}
"""Area - 1 of each interpolation in pixels of its input: (∫h²)⁻² - 1 with ∫h² of 2/3 for the triangle and 6/7
for torch's bicubic (a = -0.75). Area interpolation is the pixel's own box: the pitch accounts for it."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""


class DegradedBatch(NamedTuple):
    """Training pairs with the true degradation levels."""

    lr: Tensor
    """float32 [N, 3, h/4, w/4] in [0, 1], on 8-bit levels."""
    hr: Tensor
    """float32 [N, 3, h, w], as given."""
    noise: Tensor
    """float32 [N] in [0, 1]; see `DegradationPipeline`."""
    blur: Tensor
    """Likewise."""

    def levels(self, axes: Sequence[str]) -> Tensor:
        """The true levels [N, 2] in the order of `axes`, which are `noise` and `blur`."""
        return torch.stack([getattr(self, axis) for axis in axes], dim=1)


class TrackedBatch:
    """Applies one step after the other to images and twins alike, and keeps account of what each step blurs.

    Areas are in LR pixels: a grid of h by w pixels has a pitch area of (LR pixels) / (h·w).
    """

    def __init__(self, hr: Tensor) -> None:
        """Start from float32 [N, 3, h, w] in [0, 1]."""
        self.lr_size = (hr.shape[-2] // SCALE, hr.shape[-1] // SCALE)
        # [1, N, 3, h, w] until the first noise parts the twins, then [2, N, 3, h, w]: degraded, twin.
        # A copy: the steps below write in place.
        self._images = hr.unsqueeze(0).clone()
        self._blur_area = hr.new_zeros(len(hr))
        self._coarsest_pitch = hr.new_full((len(hr),), self._pitch_area)

    @property
    def degraded(self) -> Tensor:
        """The images so far, float32 [N, 3, h, w]."""
        return self._images[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at present."""
        return self._images.shape[-2], self._images.shape[-1]

    @property
    def _pitch_area(self) -> float:
        height, width = self.size
        return self.lr_size[0] * self.lr_size[1] / (height * width)

    def blur(self, rows: Tensor, kernels: Tensor) -> None:
        """Filter the samples `rows` (bool [N]) with their kernels, of [N, k, k] those of `rows`."""
        if not rows.any():
            return
        chosen = kernels[rows]
        images = self._images[:, rows]
        filtered = filter_images(images.flatten(0, 1), chosen.repeat(len(images), 1, 1))
        self._images[:, rows] = filtered.view_as(images)
        self._blur_area = self._blur_area + rows * (kernel_area(kernels) - 1) * self._pitch_area

    def resize(self, size: tuple[int, int], mode: ResizeMode) -> None:
        """Interpolate to (height, width), not antialiased, as in Real-ESRGAN; nothing at the present size."""
        if size == self.size:
            return
        self._blur_area = self._blur_area + _INTERPOLATION_AREA[mode] * self._pitch_area
        resized = F.interpolate(self._images.flatten(0, 1), size=size, mode=mode)
        self._images = resized.view(*self._images.shape[:3], *size)
        self._coarsest_pitch = self._coarsest_pitch.clamp(min=self._pitch_area)

    def clamp(self) -> None:
        """Clip to [0, 1]."""
        self._images.clamp_(0, 1)

    def add_noise(self, noise: Tensor) -> None:
        """Add [N, 3, h, w] to the images, not to the twins, and clip both."""
        self._images = torch.stack([self.degraded + noise, self._images[-1]])
        self.clamp()

    def compress(self, rows: Tensor, quality: Tensor) -> None:
        """Write and read the samples `rows` (bool [N]) as JPEG of `quality` [N] in [1, 100], not their twins.

        kornia's codec replicates the border up to a multiple of 16 and crops it off again.
        Only after `add_noise`, which parts the twins.
        """
        self.clamp()
        if rows.any():
            self._images[0, rows] = jpeg_codec_differentiable(self.degraded[rows], quality[rows]).clamp(0, 1)

    def replace_rows(self, rows: Tensor, other: Self) -> None:
        """Replace the samples `rows` (bool [N]) by those of another batch of the same size, without noise."""
        self._images[:, rows] = other.degraded
        self._blur_area = self._blur_area.masked_scatter(rows, other._blur_area)
        self._coarsest_pitch = self._coarsest_pitch.masked_scatter(rows, other._coarsest_pitch)

    def noise_rms(self) -> Tensor:
        """Root mean square difference of images and twins, [N], in grey levels of 255."""
        return 255 * (self._images[0] - self._images[-1]).square().mean(dim=(1, 2, 3)).sqrt()

    def blur_sigma(self) -> Tensor:
        """Standard deviation of the equivalent Gaussian, [N], in LR pixels."""
        lost = (self._coarsest_pitch - 1).clamp(min=0)
        return ((self._blur_area + lost) / (4 * math.pi)).sqrt()


class DegradationPipeline:
    """Makes low-resolution images from high-resolution ones and says how noisy and how blurred they became.

    The levels train the degradation estimator. MM-RealSR, where S3Diff's estimator comes from, learns its two
    scores by ranking and leaves their scale open. The measures here are this project's own:

    noise: a twin of every sample takes the same blurs, resizes and clamps without noise and JPEG. The level
        is the root mean square of (LR - twin), before the final rounding, over `NOISE_FULL_SCALE` grey
        levels, clamped to 1. So JPEG artefacts count, and of noise what later blurs and resizes left over.
    blur: every blur adds its area - 1 (`kernels.kernel_area`, in pixels of the image it was applied to),
        every interpolation adds its own, and the coarsest grid on the way adds its pixel's area less an LR
        pixel's; all are expressed in LR pixels. A Gaussian of standard deviation s has area 4π s², so areas
        add up as variances do, and the sum B stands for s = sqrt(B / 4π). The level is s / `BLUR_FULL_SCALE`,
        clamped to 1.

    Both full scales are the 99th percentiles under the released settings, rounded, over 128-pixel crops of
    photographs (RealSR's HR images), so the levels spread over [0, 1]; the medians are about 0.35 and 0.43.
    """

    def __init__(self, settings: DegradationSettings | None = None) -> None:
        self.settings = settings if settings is not None else DegradationSettings()

    @torch.no_grad()
    def __call__(self, hr: Tensor, generator: Generator) -> DegradedBatch:
        """Degrade a batch; the same images, settings and generator state give the same result.

        Args:
            hr: float32 [N, 3, h, w] in [0, 1]; h and w multiples of the scale and at least 32.
            generator: source of all randomness, on the device of `hr`.

        Raises:
            RequestError: naming everything that is wrong with `hr` and `generator`, at once.
        """
        self._check(hr, generator)
        batch = TrackedBatch(hr)
        self._first_stage(batch, generator)
        self._second_stage(batch, generator)
        bare = chance(generator, len(hr), self.settings.no_degradation_probability)
        mode = self._draw_mode(generator)
        if bare.any():
            untouched = TrackedBatch(hr[bare])
            untouched.resize(batch.lr_size, mode)
            batch.replace_rows(bare, untouched)
        return DegradedBatch(
            lr=(batch.degraded.clamp(0, 1) * 255).round() / 255,
            hr=hr,
            noise=(batch.noise_rms() / NOISE_FULL_SCALE).clamp(max=1),
            blur=(batch.blur_sigma() / BLUR_FULL_SCALE).clamp(max=1),
        )

    def _first_stage(self, batch: TrackedBatch, generator: Generator) -> None:
        stage = self.settings.first
        self._blur(batch, stage, generator)
        self._resize(batch, stage, batch.size, generator)
        batch.add_noise(draw_noise(batch.degraded, stage, generator))
        everyone = torch.ones(len(batch.degraded), dtype=torch.bool, device=batch.degraded.device)
        self._compress(batch, stage, everyone, generator)

    def _second_stage(self, batch: TrackedBatch, generator: Generator) -> None:
        """Unlike in the first stage, JPEG comes before or after the step to LR size, with equal chances."""
        stage = self.settings.second
        count = len(batch.degraded)
        self._blur(batch, stage, generator)
        self._resize(batch, stage, batch.lr_size, generator)
        batch.add_noise(draw_noise(batch.degraded, stage, generator))
        early = chance(generator, count, 0.5)
        self._compress(batch, stage, early, generator)
        batch.resize(batch.lr_size, self._draw_mode(generator))
        rings = chance(generator, count, self.settings.final_sinc_probability)
        batch.blur(rings, draw_final_sinc_kernels(stage.kernels, count, generator))
        self._compress(batch, stage, ~early, generator)
        batch.clamp()

    def _blur(self, batch: TrackedBatch, stage: StageSettings, generator: Generator) -> None:
        count = len(batch.degraded)
        rows = chance(generator, count, stage.blur_probability)
        batch.blur(rows, draw_kernels(stage.kernels, count, generator))

    def _resize(
        self, batch: TrackedBatch, stage: StageSettings, base: tuple[int, int], generator: Generator
    ) -> None:
        """Resize to `base` (height, width) times a factor that is drawn for the whole batch."""
        lowest, highest = stage.resize_range
        direction = int(choice(generator, 1, stage.resize_probabilities))
        factor = float(uniform(generator, 1, ((1.0, highest), (lowest, 1.0), (1.0, 1.0))[direction]))
        height, width = (max(2, int(side * factor)) for side in base)
        batch.resize((height, width), self._draw_mode(generator))

    def _compress(
        self, batch: TrackedBatch, stage: StageSettings, rows: Tensor, generator: Generator
    ) -> None:
        if stage.jpeg_quality_range is not None:
            batch.compress(rows, uniform(generator, len(rows), stage.jpeg_quality_range))

    def _draw_mode(self, generator: Generator) -> ResizeMode:
        modes = self.settings.resize_modes
        return modes[int(choice(generator, 1, [1.0] * len(modes)))]

    def _check(self, hr: Tensor, generator: Generator) -> None:
        problems = []
        if hr.ndim != 4 or hr.shape[0] < 1 or hr.shape[1] != 3:
            problems.append(f"shape {list(hr.shape)}, expected [N, 3, H, W]")
        elif min(hr.shape[-2:]) < SMALLEST_SIDE or any(side % SCALE for side in hr.shape[-2:]):
            problems.append(
                f"size {list(hr.shape[-2:])}, expected multiples of {SCALE}, at least {SMALLEST_SIDE}"
            )
        if hr.dtype != torch.float32:
            problems.append(f"type {hr.dtype}, expected torch.float32 in [0, 1]")
        if generator.device.type != hr.device.type:
            problems.append(f"device {hr.device}, expected the generator's, {generator.device}")
        elif hr.numel() and not (hr.amin() >= 0 and hr.amax() <= 1):
            problems.append(f"values from {float(hr.amin()):.3g} to {float(hr.amax()):.3g}, expected [0, 1]")
        refuse(problems, "cannot degrade these images")


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
        for chosen, draw, strength in ((is_gaussian, _gaussian, sigma), (~is_gaussian, _poisson, scale)):
            rows = (chosen & (is_grey == grey)).nonzero().flatten()
            if len(rows):
                noise[rows] = draw(_signal(images[rows], grey), strength[rows], generator)
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
