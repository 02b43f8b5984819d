"""The second-order degradation of Real-ESRGAN (Wang et al. 2021, section 3.2), as S3Diff's release sets it.

Batched on tensors. Resize factors and interpolations are drawn once per batch, because they fix the tensors'
size, and all else per sample. Every draw comes from the caller's generator. HR is not sharpened first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from s3diff_runtime.errors import RequestError
from s3diff_training.degradations.draws import chance, choice, uniform
from s3diff_training.degradations.kernels import draw_final_sinc_kernels, draw_kernels
from s3diff_training.degradations.noise import draw_noise
from s3diff_training.degradations.settings import DegradationSettings, ResizeMode, StageSettings
from s3diff_training.degradations.tracked import TrackedBatch

SMALLEST_SIDE = 32
"""Smaller HR crops would be shrunk to a few pixels on the way."""
NOISE_FULL_SCALE = 15.0
"""Noise level 1, as RMS in grey levels of 255."""
BLUR_FULL_SCALE = 1.25
"""Blur level 1, as standard deviation of the equivalent Gaussian in LR pixels."""


@dataclass(frozen=True)
class DegradedBatch:
    """Training pairs with the true degradation levels.

    lr: float32 [N, 3, h/scale, w/scale] in [0, 1], on 8-bit levels.
    hr: float32 [N, 3, h, w], as given.
    noise: float32 [N] in [0, 1]; see `DegradationPipeline`.
    blur: float32 [N] in [0, 1]; see `DegradationPipeline`.
    """

    lr: Tensor
    hr: Tensor
    noise: Tensor
    blur: Tensor

    def levels(self, axes: Sequence[str]) -> Tensor:
        """The true levels [N, 2] in the order of `axes`, which are `noise` and `blur`."""
        return torch.stack([getattr(self, axis) for axis in axes], dim=1)


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

    def __init__(self, settings: DegradationSettings | None = None, scale: int = 4) -> None:
        """Set up for HR images `scale` times the size of LR ones; `settings` defaults to the released ones.

        Raises:
            RequestError: for a scale below 1.
        """
        if scale < 1:
            raise RequestError(f"degradation scale is {scale}, expected 1 or more")
        self.settings = settings if settings is not None else DegradationSettings()
        self.scale = scale

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
        batch = TrackedBatch(hr, self.scale)
        self._first_stage(batch, generator)
        self._second_stage(batch, generator)
        bare = chance(generator, len(hr), self.settings.no_degradation_probability)
        mode = self._draw_mode(generator)
        if bare.any():
            untouched = TrackedBatch(hr[bare], self.scale)
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
        elif min(hr.shape[-2:]) < SMALLEST_SIDE or any(side % self.scale for side in hr.shape[-2:]):
            problems.append(
                f"size {list(hr.shape[-2:])}, expected multiples of {self.scale}, at least {SMALLEST_SIDE}"
            )
        if hr.dtype != torch.float32:
            problems.append(f"type {hr.dtype}, expected torch.float32 in [0, 1]")
        if generator.device.type != hr.device.type:
            problems.append(f"device {hr.device}, expected the generator's, {generator.device}")
        elif hr.numel() and not (hr.amin() >= 0 and hr.amax() <= 1):
            problems.append(f"values from {float(hr.amin()):.3g} to {float(hr.amax()):.3g}, expected [0, 1]")
        if problems:
            raise RequestError("cannot degrade these images: " + "; ".join(problems))
