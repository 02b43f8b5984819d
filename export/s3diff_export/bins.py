"""Bins of degradation space: choosing them, and what choosing them costs in exactness."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from s3diff_runtime.bundle.manifest import Bin
from s3diff_runtime.errors import RequestError
from s3diff_training.network import S3Diff
from s3diff_training.network.color import bicubic_upscale, correct_color
from s3diff_training.network.diffusion import guide

_GRID = re.compile(r"([1-9]\d?)x([1-9]\d?)")
MEASURED_GRIDS = (1, 2, 3, 4, 6)
"""Sides of the square grids that `bin_costs` compares."""


@dataclass(frozen=True)
class BinCost:
    """How far the nearest bin's result is from the exact one, over a set of degradations."""

    bins: str
    count: int
    epsilon_relative_mean: float
    """Mean over images of the norm of the error of ε (positive prompt) over the norm of ε."""
    epsilon_relative_max: float
    image_psnr_mean: float
    """Of the final images, wavelet-corrected, in dB; over R, G and B."""
    image_psnr_min: float

    def to_dict(self) -> dict[str, object]:
        """All fields as JSON types."""
        return asdict(self)


def grid(noise: int, blur: int) -> tuple[Bin, ...]:
    """The centres of a grid of equal cells: `noise` by `blur` of them."""
    return tuple(
        _bin((row + 0.5) / noise, (column + 0.5) / blur) for row in range(noise) for column in range(blur)
    )


def parse_bins(text: str) -> tuple[Bin, ...]:
    """Bins from `3x3` (noise by blur) or from a CSV file with the columns `noise` and `blur`.

    Raises:
        RequestError: for anything else; names every bad line of a file.
    """
    match = _GRID.fullmatch(text)
    if match:
        return grid(int(match[1]), int(match[2]))
    path = Path(text)
    if not path.is_file():
        raise RequestError(f"bins {text!r}: expected a grid such as 3x3, or a CSV file with noise and blur")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != {"noise", "blur"}:
            raise RequestError(f"{path} has columns {reader.fieldnames}; expected noise,blur")
        rows = list(reader)
    bins, problems = [], []
    for number, row in enumerate(rows, start=2):
        try:
            bins.append(_bin(float(row["noise"]), float(row["blur"])))
        except (TypeError, ValueError):
            problems.append(f"line {number}: noise {row['noise']!r}, blur {row['blur']!r}")
    names = [bin.name for bin in bins]
    problems += [f"{name} twice (centres closer than 0.01)" for name in set(names) if names.count(name) > 1]
    if problems or not bins:
        raise RequestError(f"{path} needs centres in [0, 1]; wrong: {'; '.join(problems) or 'no lines'}")
    return tuple(bins)


def nearest(bins: Sequence[Bin], noise: float, blur: float) -> Bin:
    """The bin with the closest centre; the first of equally close ones, as in the runtime."""
    return min(bins, key=lambda bin: (bin.noise - noise) ** 2 + (bin.blur - blur) ** 2)


@torch.no_grad()
def bin_costs(
    network: S3Diff, images: Sequence[Tensor], chosen: Sequence[Bin], degradations: int = 8, seed: int = 0
) -> Iterator[BinCost]:
    """Compare nearest-bin results with exact ones, for the chosen bins and for square grids.

    Merging is exact at a bin's centre, so the centre's modulation stands for the merged graph.

    Args:
        network: with modulated LoRA.
        images: LR `[1, 3, h, w]` in [0, 1]; small ones will do.
        chosen: the bins of the build, compared first.
        degradations: number of (noise, blur) points per image, drawn uniformly.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    points = [
        (index, *torch.rand(2, generator=generator).tolist())
        for index in range(len(images))
        for _ in range(degradations)
    ]
    prompts = network.encode_prompts([network.config.positive_prompt, network.config.negative_prompt])

    @cache  # sets of bins share centres, and points share their nearest one
    def result(index: int, noise: float, blur: float) -> tuple[Tensor, Tensor]:
        return _result(network, images[index], noise, blur, prompts)

    sets = {"chosen": tuple(chosen)} | {f"{side}x{side}": grid(side, side) for side in MEASURED_GRIDS}
    for name, bins in sets.items():
        errors, psnrs = [], []
        for index, noise, blur in points:
            centre = nearest(bins, noise, blur)
            exact, picture = result(index, noise, blur)
            binned, restored = result(index, centre.noise, centre.blur)
            errors.append(float((binned - exact).norm() / exact.norm()))
            psnrs.append(float(-10 * torch.log10(torch.mean((picture - restored) ** 2).clamp(min=1e-12))))
        count = len(points)
        yield BinCost(name, len(bins), sum(errors) / count, max(errors), sum(psnrs) / count, min(psnrs))


def _bin(noise: float, blur: float) -> Bin:
    return Bin(name=f"noise{round(noise * 100):03d}-blur{round(blur * 100):03d}", noise=noise, blur=blur)


def _result(
    network: S3Diff, image: Tensor, noise: float, blur: float, prompts: Tensor
) -> tuple[Tensor, Tensor]:
    """ε of the positive prompt `[1, c, h, w]`, and the final image `[1, 3, 4h, 4w]`."""
    values = {"noise": noise, "blur": blur}
    degradation = torch.tensor([[values[axis] for axis in network.config.degradation_axes]])
    modulation = network.modulation(degradation)
    latent, skips = network.encode(network.prepare(image), modulation)
    positive, negative = network.predict_noise_pair(latent, prompts[:1], prompts[1:], modulation)
    x0 = network.one_step.denoise(latent, guide(positive, negative, network.config.guidance))
    height, width = (4 * side for side in image.shape[-2:])
    restored = (network.decode(x0, modulation, skips)[..., :height, :width] + 1) / 2
    return positive, correct_color(restored, bicubic_upscale(image).clamp(0, 1), "wavelet")
