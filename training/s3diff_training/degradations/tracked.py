"""A batch on its way through the pipeline: images, their noise-free twins, and the blur collected so far."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor

from s3diff_training.degradations.kernels import filter_images, kernel_area
from s3diff_training.degradations.settings import ResizeMode

_INTERPOLATION_AREA: dict[ResizeMode, float] = {"area": 0.0, "bilinear": 1.25, "bicubic": 0.361}
"""Area - 1 of each interpolation in pixels of its input: (∫h²)⁻² - 1 with ∫h² of 2/3 for the triangle and 6/7
for torch's bicubic (a = -0.75). Area interpolation is the pixel's own box: the pitch accounts for it."""


class TrackedBatch:
    """Applies one step after the other to images and twins alike, and keeps account of what each step blurs.

    Areas are in LR pixels: a grid of h by w pixels has a pitch area of (LR pixels) / (h·w).
    """

    def __init__(self, hr: Tensor, scale: int) -> None:
        """Start from float32 [N, 3, h, w] in [0, 1]; LR is `scale` times smaller."""
        self.lr_size = (hr.shape[-2] // scale, hr.shape[-1] // scale)
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

    def replace_rows(self, rows: Tensor, other: TrackedBatch) -> None:
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
