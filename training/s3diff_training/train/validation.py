"""Scores of a restorer on held-out pairs, beside the bicubic baseline's (paper section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError
from s3diff_training.data import (
    PhotographFolder,
    from_uint8,
    to_uint8,
)
from s3diff_training.degradations.pipeline import DegradationPipeline
from s3diff_training.metrics import psnr_y, ssim_y
from s3diff_training.network.color import bicubic

SIDE_MULTIPLE = 32
"""Of the sides of HR images, in pixels: those of LR are then multiples of 8."""
Restore = Callable[[Tensor], Tensor]
"""From LR `[1, 3, h, w]` to SR `[1, 3, 4h, 4w]`, both in [0, 1]."""


@dataclass(frozen=True)
class Pair:
    """LR `[1, 3, h, w]` and its truth HR `[1, 3, 4h, 4w]`, float32 in [0, 1] on the CPU."""

    name: str
    lr: Tensor
    hr: Tensor


@dataclass(frozen=True)
class ValidationScores:
    """Means over the pairs: PSNR (dB) and SSIM on Y, LPIPS (lower is better) when it was asked for."""

    psnr_y: float
    ssim_y: float
    lpips: float | None
    count: int

    def named(self, prefix: str = "") -> dict[str, float]:
        """The scores by name, as a trainer's `validate` returns them."""
        scores = {"psnr_y": self.psnr_y, "ssim_y": self.ssim_y, "lpips": self.lpips}
        return {prefix + name: value for name, value in scores.items() if value is not None}


@torch.no_grad()
def validate_pairs(
    restore: Restore, pairs: Iterable[Pair], lpips: nn.Module | None = None
) -> ValidationScores:
    """Restore every pair's LR and score it against HR, both as 8-bit images.

    Args:
        restore: moves its input to its own device; the result may live anywhere.
        pairs: at least one.
        lpips: called with two `[1, 3, H, W]` in [-1, 1] on its own device, gives `[1]`.

    Raises:
        RequestError: for no pairs, or a result of the wrong size.
    """
    rows = [_score(pair, restore(pair.lr), lpips) for pair in pairs]
    if not rows:
        raise RequestError("there are no pairs to validate on")
    psnr, ssim, distance = (float(column) for column in np.mean(rows, axis=0))
    return ValidationScores(psnr, ssim, None if lpips is None else distance, len(rows))


def scores_beside_bicubic(
    restore: Restore, pairs: Sequence[Pair], lpips: nn.Module | None
) -> dict[str, float]:
    """Scores of `restore` by name, and of bicubic interpolation as `bicubic_…`; see `validate_pairs`."""
    ours = validate_pairs(restore, pairs, lpips).named()
    return ours | validate_pairs(bicubic, pairs, lpips).named("bicubic_")


def held_out_pairs(
    folder: PhotographFolder, pipeline: DegradationPipeline, seeds: Sequence[int], size: int = 512
) -> list[Pair]:
    """Fixed synthetic pairs: every photograph, degraded once with every seed.

    HR is the centre of the photograph, up to `size` pixels a side, in multiples of 32 (so LR sides are
    multiples of 8). The draws depend on the seed and the photograph's place in the folder alone. Meant for a
    few dozen photographs: all pairs stay in memory.

    Raises:
        RequestError: for a photograph that is damaged or has a side below 32.
    """
    pairs = []
    for index, path in enumerate(folder.paths):
        hr = from_uint8(_centre(folder.pixels_of(index), size, path))[None]
        for seed in seeds:
            state = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            lr = pipeline(hr, torch.Generator().manual_seed(state)).lr
            pairs.append(Pair(f"{path.stem}-{seed}", lr, hr))
    return pairs


def _score(pair: Pair, restored: Tensor, lpips: nn.Module | None) -> tuple[float, float, float]:
    if restored.shape != pair.hr.shape:
        got, expected = tuple(restored.shape), tuple(pair.hr.shape)
        raise RequestError(f"{pair.name}: restored to {got}; the truth is {expected}")
    result, truth = to_uint8(restored), to_uint8(pair.hr)
    distance = math.nan if lpips is None else _distance(lpips, result, truth)
    return psnr_y(result, truth), ssim_y(result, truth), distance


def _distance(lpips: nn.Module, result: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    weights = next(lpips.parameters())
    images = [(from_uint8(image)[None] * 2 - 1).to(weights.device) for image in (result, truth)]
    return float(lpips(*images))


def _centre(pixels: NDArray[np.uint8], size: int, path: Path) -> NDArray[np.uint8]:
    height, width = (min(side, size) // SIDE_MULTIPLE * SIDE_MULTIPLE for side in pixels.shape[:2])
    if not height or not width:
        raise RequestError(f"{path} or the size {size} is smaller than {SIDE_MULTIPLE} pixels a side")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
